"""What a run of one concept in PyTorch takes: its steps, from start to exit.

`python -m ti_flax.benchmarks.concepts.train_torch KEYS`, of `ConceptsKeys` as JSON. The
weights and pictures are random, of the same shapes; nothing is written.
"""

import os
import sys

from ti_flax.benchmarks.concepts import drawn
from ti_flax.benchmarks.concepts.keys import ConceptsKeys
from ti_flax.benchmarks.keys import StepKeys
from ti_flax.runtime.errors import UserError, run


def main() -> None:
    """Takes as many steps as the configuration has: PyTorch's has no rule to stop."""
    keys = ConceptsKeys.model_validate_json(sys.argv[1])
    # JAX is wanted for shapes alone: the GPU is PyTorch's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        from ti_flax.benchmarks import step_torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no {error.name}; pip install it there, or name "
            "another Python with pytorch_python"
        ) from error
    from ti_flax.models import attention, base_model
    from ti_flax.runtime import sharding

    config = drawn.configuration(keys)
    step_keys = StepKeys(
        resolution=config.resolution,
        train_batch_size=config.train_batch_size,
        dtype=config.mixed_precision,
        pytorch=keys.pytorch,
    )
    mesh = sharding.make_mesh()
    dtype = base_model.denoiser_dtype(config.mixed_precision, "cpu")
    plan = attention.Plan("plain", mesh)
    model = base_model.open_model(keys.model, dtype=dtype, plan=plan)
    take_step = step_torch.random_step(step_keys, model, mesh)
    for _ in range(config.max_train_steps):
        loss = take_step()
    print(f"{step_torch.library(keys.pytorch)}: the last loss is {float(loss):.4f}")


if __name__ == "__main__":
    run(main)
