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

# --train_batch_size N for the fewest examples, but not fewer than the configuration
# asks for, that all devices share evenly; nothing where that is so or a batch is given.
batch_for() { # devices words-of-the-training
    local devices=$1 file='' batch word last=''
    shift
    for word in "$@"; do
        case $word in
            --train_batch_size | --train_batch_size=*) return ;;
            --config=*) file=${word#--config=} ;;
        esac
        if [ "$last" = --config ]; then
            file=$word
        fi
        last=$word
    done
    # A file of a container image may be only there.
    batch=$(sed -n 's/^train_batch_size: *\([1-9][0-9]*\) *\(#.*\)\{0,1\}$/\1/p' "$file" 2>/dev/null) || true
    batch=${batch:-4} # ti_flax's default
    if ((batch % devices)); then
        printf '%s %s' --train_batch_size $(((batch + devices - 1) / devices * devices))
    fi
}
