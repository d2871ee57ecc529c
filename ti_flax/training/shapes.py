"""How large a run's arrays are, known before there are any."""

import numpy as np

from ti_flax.config import run_config
from ti_flax.step.abstract import BucketShape, RunShapes
from ti_flax.training.inputs import Inputs


def run_shapes(config: run_config.Config, inputs: Inputs) -> RunShapes:
    """Of the step: it compiles while weights are read and pictures encoded."""
    pictures, crops = inputs.pictures, len(inputs.pictures.crops[0])
    return RunShapes(
        buckets=tuple(
            BucketShape(
                *inputs.latents[size],
                pictures=len(numbers),
                listed=int(np.isin(inputs.listed, numbers).sum()),
            )
            for size, numbers in pictures.buckets().items()
        ),
        vectors=config.num_vectors,
        views=crops * (1 + config.random_flip),
        prompts={name: ids.shape for name, ids in inputs.prompts.ids.items()},
        masked=inputs.masks is not None,
    )
