"""Every test runs on 8 devices that share this machine's CPU."""

import functools
import inspect
import itertools
import logging
import os
import re
import tempfile

# For the tests marked `gpu`, which are skipped elsewhere.
ON_GPU = os.environ.get("TI_FLAX_TESTS_ON") == "cuda"

# Compiling is most of the suite's time; code that runs once need not be optimised.
# Set in the environment so that processes started by tests have it too.
if not ON_GPU:
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )

# Where libtpu is installed, JAX would look for a TPU, slowly and with complaints.
os.environ["JAX_PLATFORMS"] = "cuda,cpu" if ON_GPU else "cpu"

# Runs that differ in numbers only share their executables.
_cache = tempfile.TemporaryDirectory(prefix="ti_flax-test-cache-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# pytest's workers share the folder, and JAX locks it only where its size has a bound.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(8 * 2**30))

import jax  # noqa: E402
import pytest  # noqa: E402
import typechecking  # noqa: E402

# `.ci/run` checks them once, and then runs the code as users do.
if os.environ.get("TI_FLAX_TESTS_CHECK_TYPES") != "no":
    typechecking.install()

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


# `library` goes through their names.
_LIBRARIES = r"(torch|diffusers|invokeai|library)"
_SKIPS = re.compile(rf"(importorskip|find_spec)\W+{_LIBRARIES}")
_MODULE_SKIPS = re.compile(rf"^\w+ = pytest\.importorskip\W+{_LIBRARIES}", re.MULTILINE)
# Rooms and files that lean on the standard library, which differs between Pythons: its
# parsers, zip files, pickles, Unicode. The golden step is one of another JAX, too.
_LEAN_ON_PYTHON = {
    *("config", "data", "formats", "text"),
    *("test_as_people_have_them", "test_golden_step", "test_hostile_models"),
}
# Rooms without a file that takes long.
_QUICK_ROOMS = {"config", "data", "formats", "publishing", "reports", "text"}


def pytest_collection_modifyitems(items):
    """Marks what .ci/run repeats on the Python that has PyTorch.

    Rooms that take long come first, so that no worker begins one when the others end.
    """
    for item in items:
        leans = not _LEAN_ON_PYTHON.isdisjoint((item.path.parent.name, item.path.stem))
        # What was recorded is compared with where PyTorch is not.
        if leans or ("recorded" not in item.name and _asks_for_torch(item)):
            item.add_marker("every_python")
        if item.get_closest_marker("gpu") and not ON_GPU:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))
    items.sort(key=lambda item: item.path.parent.name in _QUICK_ROOMS)


def _asks_for_torch(item):
    """Whether a test, a fixture of it or its file is skipped where PyTorch is not."""
    fixtures = itertools.chain(*item._fixtureinfo.name2fixturedefs.values())
    functions = [item.function, *(each.func for each in fixtures)]
    return any(map(_function_asks, functions)) or _file_asks_for_torch(item.path)


@functools.cache
def _function_asks(function):
    return _SKIPS.search(inspect.getsource(function)) is not None


@functools.cache
def _file_asks_for_torch(path):
    return _MODULE_SKIPS.search(path.read_text()) is not None


@pytest.fixture(autouse=True)
def quiet_logger():
    """The level that the last test's command set would let its successor hear INFO."""
    logging.getLogger("ti_flax").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a tiny random model, as `python -m ti_flax.random_model` makes."""
    from ti_flax.models import random_model

    folder = tmp_path_factory.mktemp("model")
    random_model.write_random_model(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """As `tiny_model`, of the networks that compile soonest."""
    import slots

    from ti_flax.models import known, random_model

    small = {
        "unet": slots.CONFIGS["unet"] | {"cross_attention_dim": 32},
        "text_encoder": known.TINY["text_encoder"] | {"num_hidden_layers": 1},
    }
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known.SHAPES, "small", known.TINY | small)
        random_model.write_random_model(folder, "small")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with three pictures of noise."""
    import runs

    return runs.draw_pictures(tmp_path_factory.mktemp("pictures"))
