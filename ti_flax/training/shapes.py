"""How large a run's arrays are, known before there are any."""

from ti_flax.config import run_config
from ti_flax.step.abstract import BucketShape, RunShapes
from ti_flax.step.optimizer import num_rates
from ti_flax.training.inputs import Inputs


def run_shapes(config: run_config.Config, inputs: Inputs) -> RunShapes:
    """Of the step: it compiles while weights are read and pictures encoded."""
    return RunShapes(
        buckets=tuple(
            BucketShape(*each.latents, len(each.numbers), len(each.listed))
            for each in inputs.buckets
        ),
        vectors=config.num_vectors,
        views=len(inputs.pictures.crops[0]) * (1 + config.random_flip),
        prompts={name: ids.shape for name, ids in inputs.prompts.ids.items()},
        masked=inputs.masks is not None,
        rates=num_rates(
            config.lr_scheduler, config.lr_warmup_steps, config.max_train_steps
        ),
    )
