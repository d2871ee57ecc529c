#!/usr/bin/env bash
# Trains where SkyPilot finds a spot TPU (or GPU), and resumes elsewhere when it is taken.
#
#   launch/skypilot.sh run NAME --bucket gs://BUCKET --data DIR [options]
#                      [-- --config FILE --key value ...]
#   launch/skypilot.sh log NAME       follows the log
#   launch/skypilot.sh delete NAME    cancels the job
#
# The result comes to BUCKET/NAME/output; BUCKET/cache keeps downloads and compiled
# programs for later runs. Paths after -- are paths in this repository, which is copied
# along.
#
#   --parts N       DIR is a list of concepts, a folder of pictures each: jobs NAME-0 to
#                   NAME-(N-1), on a machine each, share it
#   --gpus KIND:N   such as A100:1 or tpu-v6e-4, instead of the TPU of launch/skypilot.yaml
#   --cpus N, --memory GB   what the machine has at least: 8+, 64+
#   --secret NAME   a variable of this machine that the job gets and no log shows, such as
#                   HF_TOKEN; may be given several times
#   --dry_run       check all, print the command and do not run it
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"
need_bash

bucket='' data='' gpus='' parts='' options=() training=()
[ $# -gt 0 ] || help "${BASH_SOURCE[0]}"
case $1 in
    --help | -h) help "${BASH_SOURCE[0]}" ;;
    run | log | delete) action=$1 ;;
    *) fail "expected run, log or delete, found '$1'; see --help" ;;
esac
shift
case ${1:-} in
    --help | -h) help "${BASH_SOURCE[0]}" ;;
    '' | -*) fail "expected the name of the job after '$action'; see --help" ;;
esac
name=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help "${BASH_SOURCE[0]}" ;;
        --dry_run) dry_run=true ;;
        --bucket | --data | --gpus | --parts)
            has_value "$@"
            printf -v "${1#--}" "%s" "$2"
            shift
            ;;
        --cpus | --memory)
            has_value "$@"
            options+=("$1" "$2")
            shift
            ;;
        --secret)
            has_value "$@"
            matches "$2" '[a-zA-Z_][a-zA-Z0-9_]*' ||
                fail "--secret: expected the name of a variable, without its value"
            [ -n "${!2:-}" ] || fail "--secret: $2 is not set here; export it"
            options+=("$1" "$2")
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
need sky "pip install 'skypilot[gcp]' has it"

case $action in
    log)
        run sky jobs logs --name "$name"
        exit
        ;;
    delete)
        run sky jobs cancel --name "$name" --yes
        exit
        ;;
esac
matches "$name" '[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?' ||
    fail "expected a name of letters, digits, - _ and dots that begins with a letter, found '$name'"
[ -n "$bucket" ] || fail "--bucket is missing, such as gs://my-bucket"
case $bucket in
    gs://*) check_bucket "$(cut -d / -f 3 <<<"$bucket")" ;;
    *://*) ;; # of another cloud, whose rules SkyPilot knows
    *) fail "--bucket: expected gs://NAME, found '$bucket'" ;;
esac
[ -n "$data" ] || fail "--data is missing: the folder with the pictures"
[ -d "$data" ] || fail "--data: no folder '$data'"
data=$(cd "$data" && pwd)
cd "$root" # the workdir of launch/skypilot.yaml
devices=${gpus:-tpu-v5litepod-4}
case $devices in
    tpu-*-*[0-9]) devices=${devices##*-} ;;
    *:*) devices=${devices##*:} ;;
    *) devices=1 ;;
esac
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--gpus: expected KIND:N, found '$gpus'"
[[ $parts =~ ^([1-9][0-9]*)?$ ]] || fail "--parts: expected a number, found '$parts'"
if [ -n "$gpus" ]; then
    options+=(--gpus "$gpus")
fi

# Launches one job: its name, what its pictures are to the training, and its arguments.
launch() {
    local job=$1 key=$2 arguments=''
    shift 2
    if [ $# -gt 0 ]; then
        printf -v arguments '%q ' "$@"
    fi
    run sky jobs launch --name "$job" --yes --detach-run "${options[@]}" \
        --env "RUN=$name" --env "BUCKET=$bucket" --env "DATA=$data" --env "KEY=$key" \
        --env "ARGUMENTS=${arguments% }" launch/skypilot.yaml
}

if [ -n "$parts" ]; then
    check_training "$root" "$devices" "${training[@]}" --concepts "$data" \
        --output_dir "/bucket/$name/output"
    for ((part = 0; part < parts; part++)); do
        launch "$name-$part" concepts "${training[@]}" --part "$part/$parts"
    done
else
    read -ra batch <<<"$(batch_for "$devices" "${training[@]}")"
    check_training "$root" "$devices" "${training[@]}" "${batch[@]}" \
        --train_data_dir "$data" --output_dir "/bucket/$name/output"
    launch "$name" train_data_dir "${training[@]}" "${batch[@]}"
fi
