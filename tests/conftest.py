"""Every test runs on 8 devices that share this machine's CPU."""

import inspect
import itertools
import logging
import os
import re
import tempfile
from pathlib import Path

# Compiling is most of the suite's time; code that runs once need not be optimised.
# Set in the environment so that processes started by tests have it too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

# Where libtpu is installed, JAX would look for a TPU, slowly and with complaints.
os.environ["JAX_PLATFORMS"] = "cpu"

# Runs that differ in numbers only share their executables.
_cache = tempfile.TemporaryDirectory(prefix="ti_flax-test-cache-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# pytest's workers share the folder, and JAX locks it only where its size has a bound.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(8 * 2**30))

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook("ti_flax", "typechecking.check")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


_SKIPS = re.compile(r"(importorskip|find_spec)\W+(torch|diffusers|invokeai)")
# Rooms whose tests are quick, or lean on what differs between Pythons.
_LOWER_ROOMS = {"config", "data", "diffusion", "formats", "models", "text"}


def pytest_collection_modifyitems(items):
    """Marks what .ci/run repeats on the Python that has PyTorch."""
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in _LOWER_ROOMS or "golden" in item.name or _asks_for_torch(item):
            item.add_marker("every_python")


def _asks_for_torch(item):
    """Whether a test or a fixture of it is skipped where PyTorch is not."""
    fixtures = itertools.chain(*item._fixtureinfo.name2fixturedefs.values())
    sources = map(inspect.getsource, [item.function, *(each.func for each in fixtures)])
    return any(_SKIPS.search(source) for source in sources)


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
def pictures(tmp_path_factory):
    """A folder with three pictures of noise."""
    import runs

    return runs.draw_pictures(tmp_path_factory.mktemp("pictures"))
