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
# BUCKET/NAME/output; BUCKET/cache keeps downloads and compiled programs for later runs.
# Paths after -- are paths in the image, such as configs/cat_toy.yaml. Without
# --train_batch_size, the configured one is raised to a multiple of the chips.
#
#   --accelerator KIND   default tpu-v5-lite-podslice
#   --topology SHAPE     default 2x4, with --parts 2x2
#   --hosts N            hosts of that topology, default 2, with --parts 1
#   --chips N            TPU chips of a host, default 4
#   --parts N            trains BUCKET/NAME/pictures as a list of concepts, a folder of
#                        pictures each: JobSets NAME-0 to NAME-(N-1) share it, each on a
#                        slice of one host
#   --spot               nodes that cost a third and may be preempted
#   --cpu N, --memory N  what a host asks for beside its chips, such as 24 and 64Gi
#   --queue NAME         waits in that queue of Kueue (a LocalQueue of the namespace)
#   --service_account NAME   of Kubernetes; one that may read and write the bucket
#   --hub_token_secret NAME  a secret with the Hub's token under the key HF_TOKEN
#   --dry_run            check all, print the manifest and the commands, run none
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"
need_bash

image='' bucket='' accelerator=tpu-v5-lite-podslice topology='' hosts='' chips=4 spot=
parts='' cpu='' memory='' queue='' service_account='' hub_token_secret=''
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
        --image | --bucket | --accelerator | --topology | --hosts | --chips | --parts | \
            --cpu | --memory | --queue | --service_account | --hub_token_secret)
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
matches "$image" '[a-zA-Z0-9][-a-zA-Z0-9._:/@]*' ||
    fail "--image: expected REGISTRY/NAME:TAG, found '$image'"
[ -n "$bucket" ] || fail "--bucket is missing: the name of the bucket with the pictures"
check_bucket "$bucket"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail "--topology: expected a shape such as 2x4, found '$topology'"
((${topology//x/*} == hosts * chips)) ||
    fail "--topology: expected the $((hosts * chips)) chips of --hosts $hosts with --chips $chips, found $topology"

# A name of Kubernetes: RFC 1123's labels, with dots in between.
check_name() { # option most-characters
    local option=$1 found=${!1} label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
    if [ -n "$found" ] && { ((${#found} > $2)) || ! matches "$found" "$label(\.$label)*"; }; then
        fail "--$option: expected at most $2 small letters, digits, dashes and dots, found '$found'"
    fi
}
check_name accelerator 63
check_name queue 63
check_name service_account 253
check_name hub_token_secret 253

check_quantity() { # option example
    matches "${!1}" '([0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?)?' ||
        fail "--$1: expected a quantity such as $2, found '${!1}'"
}
check_quantity cpu 24
check_quantity memory 64Gi

# JobSet adds -train-0-HOST and five letters to the name of a pod; Kubernetes takes 63.
pod=$name${parts:+-$((parts - 1))}-train-0-$((hosts - 1))-abcde
((${#pod} <= 63)) ||
    fail "expected a name of at most $((63 - ${#pod} + ${#name})) characters, found '$name'"

token="- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: '$hub_token_secret', key: HF_TOKEN}}}"

# A text in YAML's single quotes.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

# Applies the manifest of one JobSet: its name, then arguments of the training.
apply() {
    local jobset=$1 arguments='' manifest word
    shift
    for word in --compilation_cache_dir /bucket/cache/jax "${training[@]}" "$@" \
        --output_dir "/bucket/$name/output" --resume_from_checkpoint latest; do
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
    fill LABELS "${queue:+kueue.x-k8s.io/queue-name: \"$queue\"}"
    fill SERVICE_ACCOUNT "${service_account:+serviceAccountName: \"$service_account\"}"
    fill TOKEN "${hub_token_secret:+$token}"
    fill REQUESTS "${cpu:+, cpu: \"$cpu\"}${memory:+, memory: \"$memory\"}"
    if $dry_run; then
        echo "$manifest"
    fi
    run kubectl apply --filename - <<<"$manifest"
}

if [ -n "$parts" ]; then
    # The folders of the concepts, which have the words, are in the bucket.
    check_training "$root" "$chips" --placeholder_token '<word>' "${training[@]}" \
        --train_data_dir "/bucket/$name/pictures" --output_dir "/bucket/$name/output"
    for ((part = 0; part < parts; part++)); do
        apply "$name-$part" --concepts "/bucket/$name/pictures" --part "$part/$parts"
    done
    log="log $name-0 follows the first"
else
    # Here are the files that the image holds, that of --config among them.
    read -ra batch <<<"$(cd "$root" && batch_for "$((hosts * chips))" "${training[@]}")"
    words=("${batch[@]}" --train_data_dir "/bucket/$name/pictures")
    check_training "$root" "$((hosts * chips))" "${training[@]}" "${words[@]}" \
        --output_dir "/bucket/$name/output"
    apply "$name" "${words[@]}"
    log="log $name follows it"
fi
echo "launch/gke.sh $log; the result comes to gs://$bucket/$name/output" >&2
