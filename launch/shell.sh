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

# Whether all of a text is as an extended regular expression says; a-z are ASCII's.
matches() { # text expression
    local LC_ALL=C
    [[ $1 =~ ^($2)$ ]]
}

# Google's rules, https://cloud.google.com/storage/docs/buckets#naming
check_bucket() { # name
    local expected='' part='[-a-z0-9_]{1,63}'
    if ! matches "$1" "$part(\.$part)*" || ! matches "$1" '[a-z0-9].{1,220}[a-z0-9]'; then
        expected="3 to 63 of a-z, 0-9, - and _ (more with dots), a letter or digit first and last"
    elif matches "$1" '[0-9]+(\.[0-9]+){3}'; then
        expected="a name that is no IP address"
    elif matches "$1" 'goog.*|.*g[o0][o0]gle.*'; then
        expected="a name without google"
    fi
    [ -z "$expected" ] || fail "--bucket: expected $expected, found '$1'"
}

value_of() { # key words-of-the-training; the value that they give it last, or nothing
    local key=--$1 found='' last='' word
    shift
    for word in "$@"; do
        case $word in "$key"=*) found=${word#*=} ;; esac
        if [ "$last" = "$key" ]; then
            found=$word
        fi
        last=$word
    done
    echo "$found"
}

# The file that --config names, also by the name of a recipe; empty where there is none.
config_of() { # words-of-the-training
    local file
    file=$(value_of config "$@")
    case $file in
        '' | */* | *.*) ;;
        *) [ -f "$file" ] || file=ti_flax/config/recipes/$file.yaml ;;
    esac
    echo "$file"
}

# --train_batch_size N for the fewest examples, but not fewer than the configuration
# asks for, that all devices share evenly; nothing where that is so or a batch is given.
batch_for() { # devices words-of-the-training
    local devices=$1 batch even
    shift
    batch=$(value_of train_batch_size "$@")
    if [ -n "$batch" ]; then
        if [[ $batch =~ ^[1-9][0-9]*$ ]] && ((batch % devices)); then
            even=$(((batch + devices - 1) / devices * devices))
            echo "warning: train_batch_size $batch on $devices devices takes as long as $even" >&2
        fi
        return
    fi
    # A file of a container image may be only there.
    batch=$(sed -n 's/^train_batch_size: *\([1-9][0-9]*\) *\(#.*\)\{0,1\}$/\1/p' "$(config_of "$@")" 2>/dev/null) || true
    batch=${batch:-4} # ti_flax's default
    if ((batch % devices)); then
        printf '%s %s' --train_batch_size $(((batch + devices - 1) / devices * devices))
    fi
}

# Ends, before anything is made, where the training would: by its own rules where a Python
# here has its requirements. Paths are those of this repository, which the cloud gets.
check_training() { # repository devices words-of-the-training
    local root=$1 devices=$2 file keys='' python fsdp
    shift 2
    file=$(cd "$root" && config_of "$@")
    case $file in
        /bucket/*)
            echo "not checked here: $file and the keys beside it" >&2
            return
            ;;
        /* | output/*) fail "--config: expected a file of $root outside output, or one below /bucket, found '$file'" ;;
    esac
    for python in "$root/.venv/bin/python" "${PYTHON:-python3}"; do
        if PYTHONPATH=$root "$python" -c 'import ti_flax.config.concepts' 2>/dev/null; then
            keys=$(cd "$root" && PYTHONPATH=$root "$python" -m ti_flax.train "$@" --print_config) || exit
            break
        fi
    done
    if [ -z "$keys" ]; then
        [ -z "$file" ] || [ -f "$root/$file" ] || fail "--config: no file '$file' in $root"
        echo "not checked here: the keys of the training; launch/local.sh --setup_only installs what that needs" >&2
        return
    fi
    fsdp=$(sed -n '/^fsdp: /{s///p;q;}' <<<"$keys")
    ((devices % ${fsdp:-1} == 0)) || fail "fsdp: expected a divisor of the $devices devices, found $fsdp"
}
