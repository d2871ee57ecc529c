"""What lies on the devices during a run: weights and encoded pictures."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8

from ti_flax.config import run_config
from ti_flax.data.masks import loss_weights
from ti_flax.data.moments import encode_in_batches
from ti_flax.models.family import Family
from ti_flax.models.torch_params import Params
from ti_flax.runtime import hosts, sharding
from ti_flax.step.slots import Encoded, Slot
from ti_flax.step.state import Rule
from ti_flax.text.initial_rows import vocabulary_norms
from ti_flax.training.inputs import Inputs
from ti_flax.training.recipe import learning_rates

_log = logging.getLogger(__name__)

ENCODE_BATCH_SIZE = 4


class Resident(NamedTuple):
    """What lies on the devices during a run, whatever the concept.

    `tables`, the vocabularies' [V, D], and `norms`, the median length of their trained
    rows and what 99 % of all are below, are by text encoder.
    """

    # Of the networks of a train step; and with previews, of the autoencoder that which
    # decodes.
    frozen: Mapping[str, Params]
    params: Mapping[str, Params]
    tables: Mapping[str, Float32[np.ndarray | Array, "V _"]]
    norms: Mapping[str, tuple[float, float]]

    @property
    def high_norms(self) -> dict[str, float]:
        """What 99 % of a vocabulary's rows are shorter than, by text encoder."""
        return {name: high for name, (_, high) in self.norms.items()}


def load(inputs: Inputs, autoencoder: Params, previews: bool) -> Resident:
    """Reads the other weights and puts all on the devices.

    Of the autoencoder, what previews need.
    """
    model, family, mesh = inputs.model, inputs.model.family, inputs.mesh
    layout = functools.partial(sharding.over_fsdp, mesh)
    frozen = {name: model.load(name, layout) for name in family.trained_through}
    params = dict(frozen)
    if previews:
        decoder = {name: autoencoder[name] for name in family.picture_params}
        params[family.autoencoder.name] = sharding.replicate(decoder, mesh)
    hosts.barrier()
    tables = {
        encoder.name: sharding.whole(encoder.table(frozen[encoder.name]))
        for encoder in family.text_encoders
    }
    return Resident(
        frozen=frozen,
        params=params,
        tables=tables,
        norms={name: vocabulary_norms(table) for name, table in tables.items()},
    )


def make_slot(
    config: run_config.Config,
    inputs: Inputs,
    resident: Resident,
    buckets: list[Encoded],
) -> Slot:
    """A concept for a slot; `buckets` are its encoded pictures."""
    return Slot(
        seed_key=jax.random.key(config.seed, impl="threefry2x32"),
        buckets=buckets,
        prompts=inputs.prompts.ids,
        rows=inputs.initial_rows(resident.tables),
        max_train_steps=config.max_train_steps,
        learning_rates=learning_rates(config),
        norms={name: held_norm(config, *both) for name, both in resident.norms.items()},
        caption_dropout_rate=config.caption_dropout_rate,
        unmasked_probability=config.unmasked_probability,
        rule=stop_rule(config),
    )


def held_norm(config: run_config.TrainingKeys, median: float, high: float) -> float:
    """The one of a vocabulary's two norms that `hold_row_norm` holds rows to."""
    return median if config.hold_row_norm == "median" else high


def tell_length(config: run_config.TrainingKeys, slot: Slot) -> None:
    """Says how long `hold_row_norm` keeps the vectors of each text encoder."""
    kind = config.hold_row_norm
    if kind == "initializer":
        held = [np.linalg.norm(each, axis=-1) for each in slot.rows.values()]
    elif kind in ("clip", "median"):
        held = [[norm] for norm in slot.norms.values()]
    else:
        return
    told = ", ".join(f"{norm:.3g}" for norm in np.concatenate(held))
    at = "at most as long as" if kind == "clip" else "held at"
    _log.info("hold_row_norm %s: vectors are %s %s", kind, at, told)


def stop_rule(config: run_config.TrainingKeys) -> Rule:
    """When a word has learned."""
    match config.stop:
        case "dvar":
            return Rule.of_slot(dvar_eps=config.dvar_eps)
        case "plateau":
            return Rule.of_slot(
                patience=config.plateau_patience, min_delta=config.plateau_min_delta
            )
    return Rule.of_slot()


Encode = Callable[[Array | np.ndarray], Array]


def jit_encode(family: Family) -> jax.stages.Wrapped:
    """The jitted (params of the autoencoder, pixels) to moments."""
    module = family.autoencoder.module
    return jax.jit(
        lambda params, pixels: module.apply({"params": params}, pixels, method="encode")
    )


def make_encode(family: Family, params: Params) -> Encode:
    """Pixels to moments, compiled once; `params` are the autoencoder's."""
    return functools.partial(jit_encode(family), params)


def encode_buckets(
    config: run_config.Config, inputs: Inputs, encode: Encode, progress: bool
) -> list[Encoded]:
    """The pictures of each size, encoded."""
    pictures, family, flip = inputs.pictures, inputs.model.family, config.random_flip
    spans, encoded = inputs.prompts.spans, []
    for _, numbers, listed in inputs.buckets:
        crops = [crop for number in numbers for crop in pictures.crops[number]]
        moments = encode_pictures(encode, crops, flip, ENCODE_BATCH_SIZE, progress)
        weights = None
        if inputs.masks is not None:
            weights = loss_weights(
                np.stack([inputs.masks[number] for number in numbers]),
                family.downscale,
                flip,
                config.unmasked_weight,
                config.normalize_masked_area_loss,
            )
        sizes = np.array(
            [pictures.cuts[number].sizes() for number in numbers], np.int32
        )
        encoded.append(
            Encoded(
                moments=moments.reshape(len(numbers), -1, *moments.shape[2:]),
                sizes=sizes[:, :, : 1 + flip].reshape(len(numbers), -1, 6),
                pictures=listed,
                prompt_spans=spans[numbers],
                loss_weights=weights,
            )
        )
    return encoded


def encode_pictures(
    encode: Encode,
    images: Sequence[UInt8[np.ndarray, "H W 3"]] | UInt8[np.ndarray, "N H W 3"],
    flip: bool,
    batch_size: int,
    progress: bool,
) -> Float32[np.ndarray, "N F h w Z"]:
    """Moments of every picture and, with `flip`, of its mirror image (F = 2)."""
    batch_size = min(batch_size, len(images) * (1 + flip))
    return encode_in_batches(images, encode, batch_size, flip, progress)
