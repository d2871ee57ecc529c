"""The memory that loading a network takes, beyond what was taken before."""

import subprocess
import sys
from pathlib import Path

# Peak of anonymous memory, that is without mapped file pages, while weights load.
_MEASURE = """
import pathlib, sys, threading
import jax, jax.numpy as jnp
from ti_flax.models import base_model, torch_params
from ti_flax.runtime import process

def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    global peak
    while not done.wait(0.0005):
        peak = max(peak, anonymous())

model = base_model.open_model(sys.argv[1], dtype=jnp.bfloat16)
# What tracing takes does not grow with the model.
torch_params.param_shapes(model.family.denoiser.module)
# Or the weights would lie in what imports have left.
process.give_back_freed()
peak = before = anonymous()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(model.load("unet"))
done.set()
watcher.join()
print(max(peak, anonymous()) - before)
"""


def of_unet(model: Path) -> int:
    """Bytes at most, while the UNet is loaded in bfloat16; Linux alone."""
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)
