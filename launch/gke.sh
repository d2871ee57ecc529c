#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, by a JobSet that restarts after preemption.
#
#   launch/gke.sh run NAME --image IMAGE --bucket BUCKET [options]
#                 [-- --config FILE --key value ...]
#   launch/gke.sh log NAME       follows the log of host 0; NAME-I for part I
#   launch/gke.sh delete NAME
#
# IMAGE is launch/Dockerfile.tpu, built and pushed. The bucket (its name, without gs://) is
# mounted at /bucket in every host: pictures in BUCKET/NAME/pictures, the result in
# BUCKET/NAME/output. Paths after -- are paths in the image, such as configs/cat_toy.yaml.
# Without --train_batch_size, the configured one is raised to a multiple of the chips.
#
#   --accelerator KIND   default tpu-v5-lite-podslice
#   --topology SHAPE     default 2x4, with --parts 2x2
#   --hosts N            hosts of that topology, default 2, with --parts 1
#   --chips N            TPU chips of a host, default 4
#   --parts N            trains BUCKET/NAME/pictures as a list of concepts, a folder of
#                        pictures each: JobSets NAME-0 to NAME-(N-1) share it, each on a
#                        slice of one host
#   --spot               nodes that cost a third and may be preempted
#   --dry_run            print the manifest and the commands, run none
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"
need_bash

image='' bucket='' accelerator=tpu-v5-lite-podslice topology='' hosts='' chips=4 spot=
parts=''
training=()
[ $# -gt 0 ] || help "${BASH_SOURCE[0]}"
case $1 in
    --help | -h) help "${BASH_SOURCE[0]}" ;;
    run | log | delete) action=$1 ;;
    *) fail "expected run, log or delete, found '$1'; see --help" ;;
esac
shift
[[ ${1:-} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "expected a name of small letters, digits and dashes after '$action', found '${1:-}'"
name=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help "${BASH_SOURCE[0]}" ;;
        --dry_run) dry_run=true ;;
        --spot) spot='cloud.google.com/gke-spot: "true"' ;;
        --image | --bucket | --accelerator | --topology | --hosts | --chips | --parts)
            has_value "$@"
            printf -v "${1#--}" "%s" "$2"
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
need kubectl "https://kubernetes.io/docs/tasks/tools says how"

case $action in
    log)
        run kubectl logs --follow --tail=-1 --selector \
            "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
        exit
        ;;
    delete)
        run kubectl delete jobset "$name" --ignore-not-found
        exit
        ;;
esac
if [ -n "$parts" ]; then
    topology=${topology:-2x2} hosts=${hosts:-1}
    [[ $parts =~ ^[1-9][0-9]*$ ]] || fail "--parts: expected a number, found '$parts'"
    [ "$hosts" = 1 ] || fail "--hosts: expected 1 with --parts, found '$hosts'"
else
    topology=${topology:-2x4} hosts=${hosts:-2}
fi
[[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "--hosts: expected a number, found '$hosts'"
[[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips: expected a number, found '$chips'"
[ -n "$image" ] || fail "--image is missing: launch/Dockerfile.tpu, built and pushed"
[ -n "$bucket" ] || fail "--bucket is missing: the name of the bucket with the pictures"

# A text in YAML's single quotes.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

# Applies the manifest of one JobSet: its name, then arguments of the training.
apply() {
    local jobset=$1 arguments='' manifest word
    shift
    for word in "${training[@]}" "$@" --output_dir "/bucket/$name/output" \
        --resume_from_checkpoint latest; do
        case $word in
            *$'\n'*) fail "an argument of the training has more than one line" ;;
        esac
        arguments+="$(quoted "$word"), "
    done
    manifest=$(<"$root/launch/gke_jobset.yaml")
    fill() { manifest=${manifest//"@$1@"/"$2"}; }
    fill NAME "$jobset"
    fill HOSTS "$hosts"
    fill CHIPS "$chips"
    fill ACCELERATOR "$accelerator"
    fill TOPOLOGY "$topology"
    fill SPOT "$spot"
    fill IMAGE "$image"
    fill BUCKET "$bucket"
    fill ARGUMENTS "[${arguments%, }]"
    if $dry_run; then
        echo "$manifest"
    fi
    run kubectl apply --filename - <<<"$manifest"
}

if [ -n "$parts" ]; then
    for ((part = 0; part < parts; part++)); do
        apply "$name-$part" --concepts "/bucket/$name/pictures" --part "$part/$parts"
    done
    log="log $name-0 follows the first"
else
    # Here are the files that the image holds, that of --config among them.
    read -ra batch <<<"$(cd "$root" && batch_for "$((hosts * chips))" "${training[@]}")"
    apply "$name" "${batch[@]}" --train_data_dir "/bucket/$name/pictures"
    log="log $name follows it"
fi
echo "launch/gke.sh $log; the result comes to gs://$bucket/$name/output" >&2
