#!/usr/bin/env bash
# Trains on a Cloud TPU from this machine, and brings the result here.
#
#   launch/tpu_vm.sh run NAME --zone ZONE --data DIR --output DIR [options]
#                        [-- --config FILE --key value ...]
#   launch/tpu_vm.sh log NAME --zone ZONE        the end of the log
#   launch/tpu_vm.sh fetch NAME --zone ZONE --output DIR
#   launch/tpu_vm.sh delete NAME --zone ZONE
#
# `run` makes the TPU (or takes the one of that name), installs ti_flax, copies the
# pictures and what DIR has of an earlier run, trains in tmux, shows the log, and fetches
# the output every minute. Break it off and start it again: it takes up what is running.
# A TPU that is preempted is made anew and resumes from the last checkpoint fetched.
#
#   --data DIR           the pictures; becomes --train_data_dir
#   --output DIR         where the result comes to; becomes --output_dir
#   --zone ZONE          such as us-west4-a
#   --project ID         default: gcloud's own
#   --accelerator TYPE   default v5litepod-4; more than one host (v5litepod-16): all train
#   --version VERSION    the TPU VM's image, default v2-alpha-tpuv5-lite
#   --spot               a third of the price, may be preempted
#   --queued             wait in Google's queue until there is one
#   --delete             delete the TPU when training has ended
#   --attempts N         TPUs to make, with those preempted, default 20
#   --dry_run            print the commands and run none
#
# After --: the arguments of `python -m ti_flax.train`. The file of --config is copied.
# Without --train_batch_size, the configured one is raised to a multiple of the devices.
# Exit code: that of the training (0 well, 2 a mistake to mend).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"
need_bash

zone='' data='' output='' accelerator=v5litepod-4 version=v2-alpha-tpuv5-lite
spot=false queued=false delete=false attempts=20
where=()
config=() training=()
seconds=${TI_FLAX_POLL_SECONDS:-60}

[ $# -gt 0 ] || help "${BASH_SOURCE[0]}"
case $1 in
    --help | -h) help "${BASH_SOURCE[0]}" ;;
    run | log | fetch | delete) action=$1 ;;
    *) fail "expected run, log, fetch or delete, found '$1'; see --help" ;;
esac
shift
case ${1:-} in
    --help | -h) help "${BASH_SOURCE[0]}" ;;
    '' | -*) fail "expected the name of the TPU after '$action'; see --help" ;;
esac
name=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help "${BASH_SOURCE[0]}" ;;
        --spot) spot=true ;;
        --queued) queued=true ;;
        --delete) delete=true ;;
        --dry_run) dry_run=true ;;
        --data | --output | --zone | --accelerator | --version | --attempts)
            has_value "$@"
            printf -v "${1#--}" "%s" "$2"
            shift
            ;;
        --project)
            has_value "$@"
            where=(--project="$2")
            shift
            ;;
        --)
            shift
            training=("$@")
            break
            ;;
        *) fail "unknown option '$1'; arguments of the training come after --" ;;
    esac
    shift
done
[ -n "$zone" ] || fail "--zone is missing; gcloud compute tpus locations list has them"
where=(--zone="$zone" "${where[@]}")
need gcloud "https://cloud.google.com/sdk/docs/install says how"

tpu() { # verb arguments
    local verb=$1
    shift
    run gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"
}

on_all() { # command; on every host of the slice
    tpu ssh "$name" --worker=all --command="$1"
}

state() { # of the TPU; empty if there is none
    local text
    show gcloud compute tpus tpu-vm describe "$name" '--format=value(state)' "${where[@]}"
    $dry_run && return
    if text=$(gcloud compute tpus tpu-vm describe "$name" '--format=value(state)' \
        "${where[@]}" 2>&1); then
        echo "$text"
    elif ! grep -qi 'not.found' <<<"$text"; then
        fail "gcloud: $(tail -n 1 <<<"$text")" 1
    fi
}

queue_state() {
    gcloud compute tpus queued-resources describe "$name" \
        '--format=value(state.state)' "${where[@]}"
}

drop() { # the TPU and its place in the queue
    if $queued; then
        run gcloud compute tpus queued-resources delete "$name" --force --quiet \
            "${where[@]}"
    else
        tpu delete "$name" --quiet
    fi
}

create() { # returns 1 if it was preempted while being made
    local options=() log found
    $spot && options=(--spot)
    log=$scratch/log
    if $queued; then
        set -- gcloud compute tpus queued-resources create "$name" --node-id="$name" \
            --accelerator-type="$accelerator" --runtime-version="$version"
    else
        set -- gcloud compute tpus tpu-vm create "$name" \
            --accelerator-type="$accelerator" --version="$version"
    fi
    if $queued && ! $dry_run && queue_state >/dev/null 2>&1; then
        echo "$name is in the queue already" >&2
    elif ! run "$@" "${options[@]}" "${where[@]}" 2>&1 | tee "$log" >&2; then
        found=$(grep -v '^+' "$log" | tail -n 1)
        case $(tr '[:upper:]' '[:lower:]' <"$log") in
            *preempted*) return 1 ;;
            *quota*) fail "quota refused: $found; ask for quota for $accelerator in $zone, or take another --zone or --accelerator" ;;
            *capacity* | *resource_exhausted* | *stockout*) fail "no $accelerator free in $zone: $found; wait with --queued, or take another --zone" ;;
            *) fail "gcloud could not create $name: $found" 1 ;;
        esac
    fi
    while $queued && ! $dry_run; do
        found=$(queue_state)
        case $found in
            ACTIVE) break ;;
            FAILED | SUSPENDED | SUSPENDING)
                drop
                return 1
                ;;
        esac
        echo "queued: $found" >&2
        sleep "$seconds"
    done
    $dry_run || [ "$(state)" = READY ]
}

ready() { # makes the TPU unless it is there
    case $(state) in
        READY) return ;;
        '') ;;
        PREEMPTED | TERMINATED | STOPPED) drop ;;
        *) fail "$name is neither READY nor gone; wait, or delete it" 1 ;;
    esac
    create
}

quoted() { # words, for the shell of the TPU
    printf '%q ' "$@"
}

install() {
    local archive=$scratch/ti_flax.tar.gz
    run git -C "$root" archive --prefix=ti_flax/ --output="$archive" HEAD
    tpu scp "$archive" "$name:" --worker=all
    # The image's own Python is older than 3.11; uv brings one.
    # shellcheck disable=SC2016
    on_all 'set -e; mkdir -p run; tar xzf ti_flax.tar.gz; python3 -m pip install --user --quiet uv; python3 -m uv python install --quiet 3.12; PYTHON=$(python3 -m uv python find 3.12) bash ti_flax/launch/local.sh --setup_only'
    tpu scp --recurse "$data" "$name:run/" --worker=all
    if [ ${#config[@]} -gt 0 ]; then
        tpu scp "${config[1]}" "$name:run/config.yaml" --worker=all
    fi
    if [ -d "$output" ]; then
        tpu scp --recurse "$output" "$name:run/" --worker=all
    fi
}

devices() { # that JAX sees: two cores of a chip are one from v4 on
    local count=${accelerator##*-}
    case $accelerator in
        *-0 | *-*[!0-9]* | *[!0-9]) echo 1 ;; # gcloud will say what it is
        v4-* | v5p-*) echo $((count > 1 ? count / 2 : 1)) ;;
        *) echo "$count" ;;
    esac
}

start() {
    local command batch
    read -ra batch <<<"$(batch_for "$(devices)" "${config[@]}" "${training[@]}")"
    command=$(quoted ../ti_flax/.venv/bin/python -m ti_flax.train \
        ${config[@]:+--config config.yaml} \
        "${training[@]}" "${batch[@]}" \
        --train_data_dir "$(basename "$data")" --output_dir "$(basename "$output")" \
        --resume_from_checkpoint latest)
    # 75: stopped by a signal, with its state saved. On a TPU that is still there, again.
    command="cd run; rm -f exit_code; code=75; while [ \$code = 75 ]; do $command >>log 2>&1; code=\$?; done; echo \$code >exit_code"
    on_all "tmux has-session -t ti_flax 2>/dev/null || tmux new-session -d -s ti_flax $(quoted "$command")"
}

fetch() {
    local parent
    parent=$(dirname "$output")
    run mkdir -p "$parent"
    tpu scp --recurse "$name:run/$(basename "$output")" "$parent" --worker=0
}

follow() { # until the training ends (its code in $code) or the TPU is gone (returns 1)
    local seen=0 text
    code=0
    while true; do
        set -- gcloud compute tpus tpu-vm ssh "$name" --worker=0 \
            --command="cd run; tail -c +$((seen + 1)) log; echo; echo \"exit:\$(cat exit_code 2>/dev/null)\"" \
            "${where[@]}"
        show "$@"
        $dry_run && return
        if ! text=$("$@"); then
            [ "$(state)" = READY ] || return 1
            sleep "$seconds"
            continue
        fi
        code=${text##*exit:}
        text=${text%$'\n'exit:*}
        printf '%s' "$text"
        seen=$((seen + $(printf '%s' "$text" | wc -c)))
        fetch || echo "nothing fetched yet" >&2
        [ -z "$code" ] || return 0
        sleep "$seconds"
    done
}

case $action in
    delete)
        drop
        exit
        ;;
    log)
        tpu ssh "$name" --worker=0 --command='tail -n 100 run/log'
        exit
        ;;
esac
[ -n "$output" ] || fail "--output is missing: where the result comes to"
output=${output%/}
if [ "$action" = fetch ]; then
    fetch
    exit
fi
[ -n "$data" ] || fail "--data is missing: the folder with the pictures"
data=${data%/}
[ -d "$data" ] || fail "--data: no folder '$data'"
if [ "${training[0]:-}" = --config ]; then
    config=("${training[@]:0:2}")
    training=("${training[@]:2}")
    [ -f "${config[1]:-}" ] || fail "--config: no file '${config[1]:-}'"
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for ((attempt = 1; attempt <= attempts; attempt++)); do
    if ready; then
        install
        start
        if follow; then
            if $delete; then
                drop
            fi
            [ "$code" = 0 ] || fail "the training ended with code $code; its last words are above" "$code"
            exit 0
        fi
    fi
    echo "$name was preempted; making it anew ($attempt of $attempts)" >&2
done
fail "$name was preempted $attempts times; take another --zone, or leave --spot out" 75
