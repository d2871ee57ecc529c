#!/usr/bin/env bash
# Sets up .venv beside the sources, once, and trains in it.
#
#   launch/local.sh                                  the quickstart, a few minutes
#   launch/local.sh --config configs/cat_toy.yaml [--key value ...]
#   launch/local.sh --setup_only                     the first part alone
#   launch/local.sh --dry_run [...]                  prints the commands and runs none
#
# PYTHON names the interpreter (default python3, 3.11 or newer). JAX is installed for what
# the machine has: a TPU, an NVIDIA GPU, or the CPU alone. All other arguments are those of
# `python -m ti_flax.train`; its --help lists them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"
venv=$root/.venv

setup_only=false
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help "${BASH_SOURCE[0]}" ;;
        --dry_run) dry_run=true ;;
        --setup_only) setup_only=true ;;
        *) break ;;
    esac
    shift
done

has_tpu() { compgen -G '/dev/accel*' || compgen -G '/dev/vfio/[0-9]*'; }
has_nvidia() { command -v nvidia-smi && nvidia-smi; }

if [ ! -x "$venv/bin/ti_flax-train" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer; set PYTHON to one that is"
    extra=
    if has_tpu >/dev/null; then
        extra='[tpu]'
    elif has_nvidia >/dev/null 2>&1; then
        extra='[cuda]'
    fi
    run "$python" -m venv "$venv"
    run "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$root$extra"
fi
if $setup_only; then
    exit 0
fi
module=ti_flax.train
if [ $# -eq 0 ]; then
    module=ti_flax.quickstart
fi
run "$venv/bin/python" -m "$module" "$@"
