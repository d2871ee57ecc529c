# shellcheck shell=bash
# What the scripts of this folder share; sourced, not run.

dry_run=false

fail() { # message [exit code]
    echo "error: $1" >&2
    exit "${2:-2}"
}

# The comment at the top of a script is its --help.
help() { # script
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$1"
    exit 0
}

need_bash() { # of macOS is 3.2
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
        fail "bash 4.4 or newer is needed, found $BASH_VERSION; brew install bash"
}

need() { # program where-to-get-it
    if ! $dry_run && ! command -v "$1" >/dev/null; then
        fail "$1 is not installed; $2"
    fi
}

has_value() { # option [its value]
    [ $# -ge 2 ] || fail "$1 needs a value; see --help"
}

show() { # command words
    {
        printf '+'
        printf ' %q' "$@"
        echo
    } >&2
}

run() { # command words; prints them, and runs them unless this is a dry run
    show "$@"
    $dry_run || "$@"
}
