#!/usr/bin/env bash
# Sets up .venv beside the sources, once, and trains in it.
#   launch/local.sh                                     the quickstart
#   launch/local.sh --config configs/cat_toy.yaml [--key value ...]
# PYTHON names the interpreter (default python3, 3.11 or newer). JAX is installed for what
# the machine has: a TPU, an NVIDIA GPU, or the CPU alone.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv

if [ ! -x "$venv/bin/ti_flax-train" ]; then
    extra=
    if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        extra='[tpu]'
    elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        extra='[cuda]'
    fi
    echo "setting up $venv (ti_flax$extra)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$root$extra"
fi
if [ $# -eq 0 ]; then
    exec "$venv/bin/python" -m ti_flax.quickstart
fi
exec "$venv/bin/python" -m ti_flax.train "$@"
