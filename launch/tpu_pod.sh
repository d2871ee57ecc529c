#!/usr/bin/env bash
# Trains on every host of a TPU slice: launch/tpu_vm.sh with a slice of several hosts.
#
#   launch/tpu_pod.sh run NAME --zone ZONE --data DIR --output DIR [options]
#                         [-- --config FILE --key value ...]
#
# Actions and options (--dry_run too) are those of launch/tpu_vm.sh; --accelerator is
# v5litepod-16 (four hosts) unless given. Each host gets the sources and the pictures and runs the same
# command; JAX finds the others by the TPU's metadata. train_batch_size is raised to a
# multiple of the chips unless given here. Host 0 writes, and its output is what is fetched.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
case ${1:-} in
    '' | --help | -h)
        # shellcheck source=launch/shell.sh
        . "$here/shell.sh"
        help "${BASH_SOURCE[0]}"
        ;;
esac
if [ "$1" = run ] && [ $# -gt 1 ]; then
    set -- "$1" "$2" --accelerator v5litepod-16 "${@:3}"
fi
exec "$here/tpu_vm.sh" "$@"
