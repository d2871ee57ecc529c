#!/usr/bin/env bash
# Sets up a virtual environment beside the sources and runs the tests in it.
#   tests/run.sh [pytest arguments]
# PYTHON names the interpreter (default python3). On Python 3.11 the tests compare with
# PyTorch; on newer ones with what was recorded from it (tests/reference).
# PINS=colab or kaggle takes the versions of tests/colab.txt or kaggle.txt, has no PyTorch,
# and runs the tests that lean on them most.
# SETUP=only sets up and runs nothing; SETUP=made runs in what was set up so.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
pins=${PINS:-}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv=.venv-test-$version${pins:+-$pins}
# A file's tests share fixtures. (loadgroup of pytest-xdist 3.8 does nothing under
# pytest 9.2.) In the order of conftest.py: by itself it begins files of few tests, which
# are the long ones, last.
workers=(-n 2 --dist loadfile --no-loadscope-reorder)
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
# Wheels that lie on this machine, in pip's setting.
export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}}

install() { # by uv, which links packages from its cache; where that cannot, by pip
    "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv" "$@" ||
        "${pip[@]}" "$@"
}

setup() {
    "$python" -m venv "$venv"
    "${pip[@]}" uv
    if [ -n "$pins" ]; then
        # Their packages stay as they are, as in the notebook; without jax[tpu].
        install --constraint "tests/$pins.txt" -e . \
            beartype hypothesis ipykernel nbclient nbformat matplotlib pytest \
            pytest-xdist regex
    elif [ "$version" = 3.11 ]; then
        # First and by itself: nothing that follows may pull another build of it.
        "${pip[@]}" torch==2.13.0
        install -e '.[test,torch]'
        # InvokeAI's loader of embeddings, with what its import needs: it pins a PyTorch.
        install --no-deps invokeai compel \
            blake3 pydantic-settings pyparsing python-dotenv
    else
        install -e '.[test]'
    fi
    # Only its vocabulary file is read; its dependencies would bring PyTorch.
    install --no-deps open_clip_torch
    # Only the schema of its tasks is read.
    [ -n "$pins" ] || install --no-deps skypilot
}

[ "${SETUP:-}" = made ] || setup
[ "${SETUP:-}" != only ] || exit 0
if [ -n "$pins" ]; then
    parts=(tests/test_notebook.py tests/checkpoints/test_store.py
        tests/text/test_tokenizer.py)
    # Kaggle has Colab's JAX: what leans on nothing else is not run twice.
    of_jax() { grep -E '^(jax|flax|optax)' "tests/$1.txt"; }
    if [ "$pins" = colab ] || [ "$(of_jax "$pins")" != "$(of_jax colab)" ]; then
        steps=tests/step/test_train_step.py
        parts+=(tests/models/test_parity.py tests/step/test_golden_step.py
            "$steps::test_only_learned_rows_change"
            "$steps::test_ten_and_ten_steps_equal_twenty_bit_for_bit")
    fi
    exec "$venv/bin/python" -m pytest "${workers[@]}" "${parts[@]}" "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/ty" check --quiet --error-on-warning --python "$venv"
"$venv/bin/python" -m pytest "${workers[@]}" "$@"
