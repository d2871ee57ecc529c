"""The Flax networks, the loss' gradient and the training are PyTorch's, float32.

References are tests/reference/ ("recorded", needs no torch) and, where torch is
installed, the same recorded anew ("live"); see record_reference.py. Errors are
relative, by norm and by largest element; both must be within the tolerance.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from parity import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    TRAJECTORY_TOLERANCE,
    assert_close,
    batch_of,
    errors,
    stepper,
)
from safetensors.numpy import load_file

from ti_flax.diffusion.process import Ddpm
from ti_flax.models import base_model, vae
from ti_flax.models.torch_params import Params
from ti_flax.step.bank import Batch
from ti_flax.step.state import State

RECORDED = Path(__file__).parents[1] / "reference"
KINDS = ("sd1", "sd2")
PARTS = ("text_encoder", "unet", "vae", "training")


class Reference(NamedTuple):
    """One kind of model, our copy of it, and what PyTorch computes with it."""

    model: base_model.BaseModel
    params: dict[str, Params]
    text_encoder: dict[str, np.ndarray]
    unet: dict[str, np.ndarray]
    vae: dict[str, np.ndarray]
    training: dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    """GPUs and TPUs round the factors of float32 products unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def record_live(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind to the folder of a recording made now, once a session."""

    @functools.cache
    def record(kind: str) -> Path:
        for library in ("torch", "diffusers", "transformers"):
            pytest.importorskip(library)
        folder = tmp_path_factory.mktemp("reference") / kind
        with warnings.catch_warnings():
            # What these libraries deprecate among themselves is not ours to mend.
            warnings.simplefilter("ignore")
            import record_reference

            record_reference.record(kind, folder)
        return folder

    return record


@pytest.fixture(
    scope="session",
    params=[
        pytest.param((kind, source), marks=[pytest.mark.slow] * (source == "live"))
        for source in ("recorded", "live")
        for kind in KINDS
    ],
    ids="-".join,
)
def reference(
    request: pytest.FixtureRequest, record_live: Callable[[str], Path]
) -> Reference:
    kind, source = request.param
    folder = RECORDED / kind if source == "recorded" else record_live(kind)
    model = base_model.open_model(str(folder / "model"))
    return Reference(
        model=model,
        params={name: model.load(name) for name in ("text_encoder", "unet", "vae")},
        **{part: load_file(folder / f"{part}.safetensors") for part in PARTS},
    )


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


# One executable serves the recorded and the live reference: their modules are equal.
@functools.partial(jax.jit, static_argnames=("module", "method"))
def apply(
    module: nn.Module, params: Params, *inputs: Any, method: str
) -> tuple[jax.Array, dict[str, Any]]:
    """The output, and what every module inside returned."""
    output, captured = module.apply(
        {"params": params}, *inputs, method=method, capture_intermediates=True
    )
    return output, captured["intermediates"]


def apply_with_blocks(
    module: nn.Module, params: Params, *inputs: Any, method: str = "__call__"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The output, and by path that of every module made of others and of every norm."""
    output, captured = apply(module, params, *inputs, method=method)
    layers = {
        path[:-1]
        for path in flax.traverse_util.flatten_dict(params)
        if path[-1] in ("kernel", "embedding")
    }
    blocks = {}
    for (*path, called), (result, *_) in flax.traverse_util.flatten_dict(
        captured
    ).items():
        if called == "__call__" and path and tuple(path) not in layers:
            # A down block also returns its skip connections.
            blocks["/".join(path)] = result[0] if isinstance(result, tuple) else result
    return output, blocks


def assert_blocks_close(
    ours: dict[str, jax.Array], recorded: dict[str, np.ndarray], under: str = ""
) -> None:
    """Every block of ours is one of PyTorch's and the other way round, and agrees."""
    prefix = f"block.{under}"
    theirs = {
        torch_path(name.removeprefix("block.")): nhwc(array)
        if array.ndim == 4 or name.endswith(".group_norm")
        else array
        for name, array in recorded.items()
        if name.startswith(prefix)
    }
    assert theirs.keys() == ours.keys()
    assert len(theirs) > 10
    # PyTorch may keep pixels as tokens where we keep their height and width.
    found = {
        path: errors(ours[path], array.reshape(ours[path].shape))
        for path, array in theirs.items()
    }
    # Written so that a NaN is a fault.
    faults = [
        f"{path}: {by_norm:.1e} by norm, {largest:.1e} largest"
        for path, (by_norm, largest) in found.items()
        if not max(by_norm, largest) <= FORWARD_TOLERANCE
    ]
    assert not faults, "\n".join(faults)


def torch_path(name: str) -> str:
    """`down_blocks.0.resnets.1` to `down_blocks_0/resnets_1`."""
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


def test_text_encoder_and_its_blocks_are_pytorchs(reference: Reference) -> None:
    recorded, model = reference.text_encoder, reference.model
    ids = recorded["ids"]
    no_rows = jnp.zeros((len(ids), 0, recorded["output"].shape[-1]))
    output, blocks = apply_with_blocks(
        model.family.text_encoders[0].module,
        reference.params["text_encoder"],
        jnp.asarray(ids),
        no_rows,
    )
    assert_close(output, recorded["output"], FORWARD_TOLERANCE)
    assert_blocks_close(blocks, recorded)


def test_unet_and_its_blocks_are_pytorchs(reference: Reference) -> None:
    recorded, model = reference.unet, reference.model
    output, blocks = apply_with_blocks(
        model.family.denoiser.module,
        reference.params["unet"],
        nhwc(recorded["sample"]),
        jnp.asarray(recorded["timesteps"]),
        recorded["context"],
    )
    assert_close(output, nhwc(recorded["output"]), FORWARD_TOLERANCE)
    assert_blocks_close(blocks, recorded)


def test_vae_encoder_and_its_blocks_are_pytorchs(reference: Reference) -> None:
    recorded, model = reference.vae, reference.model
    moments, blocks = apply_with_blocks(
        model.family.autoencoder.module,
        reference.params["vae"],
        nhwc(recorded["pixels"]),
        method="encode",
    )
    assert_close(moments, nhwc(recorded["moments"]), FORWARD_TOLERANCE)
    assert_blocks_close(blocks, recorded, under="encoder")


def test_vae_decoder_and_its_blocks_are_pytorchs(reference: Reference) -> None:
    recorded, model = reference.vae, reference.model
    decoded, blocks = apply_with_blocks(
        model.family.autoencoder.module,
        reference.params["vae"],
        nhwc(recorded["latents"]),
        method="decode",
    )
    assert_close(decoded, nhwc(recorded["decoded"]), FORWARD_TOLERANCE)
    assert_blocks_close(blocks, recorded, under="decoder")


def test_posterior_sample_is_diffusers(reference: Reference) -> None:
    moments, noise, sample = (
        nhwc(reference.vae[f"posterior.{name}"])
        for name in ("moments", "noise", "sample")
    )
    ours = vae.sample_posterior(jnp.asarray(moments), jnp.asarray(noise))
    np.testing.assert_allclose(ours, sample, rtol=1e-5, atol=1e-5)


def test_noisy_latents_and_targets_are_diffusers(reference: Reference) -> None:
    recorded = reference.training
    schedule = Ddpm.from_json(reference.model.scheduler)
    # diffusers multiplies 1000 factors in float32, we in float64.
    np.testing.assert_allclose(
        schedule.alphas_cumprod, recorded["alphas_cumprod"], rtol=1e-5
    )
    arguments = [
        jnp.asarray(recorded[name].reshape(-1, *recorded[name].shape[2:]))
        for name in ("latents", "noise", "timesteps")
    ]
    for ours, name in (
        (schedule.add_noise(*arguments), "x_t"),
        (schedule.target(*arguments), "target"),
    ):
        assert_close(ours, recorded[name].reshape(ours.shape), 1e-5)


def steps(reference: Reference) -> tuple[Callable, Callable]:
    """`parity.stepper` of the recorded training, for rows of the one text encoder."""
    recorded = reference.training

    def read_batch(index: int) -> Batch:
        ids = {"text_encoder": recorded["ids"][index]}
        return batch_of(recorded, index, ids, np.zeros((2, 6)))

    begin, take = stepper(reference.model, reference.params, read_batch)

    def take_step(state: State, index: int) -> tuple[State, Array, Array]:
        state, loss, grads = take(state, index)
        return state, loss, grads["text_encoder"]

    return lambda rows: begin({"text_encoder": rows}), take_step


def test_gradient_to_the_rows_is_autograds(reference: Reference) -> None:
    """At every point of PyTorch's trajectory: many timesteps, prompts and rows."""
    recorded = reference.training
    begin, take_step = steps(reference)
    for index, rows in enumerate([recorded["initial_rows"], *recorded["rows"][:-1]]):
        _, loss, grads = take_step(begin(rows), index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        assert_close(grads, recorded["grads"][index], GRADIENT_TOLERANCE)


def test_training_stays_on_pytorchs_trajectory(reference: Reference) -> None:
    recorded = reference.training
    begin, take_step = steps(reference)
    initial_rows = recorded["initial_rows"]
    state = begin(initial_rows)
    for index, (rows, loss) in enumerate(
        zip(recorded["rows"], recorded["losses"], strict=True)
    ):
        state, our_loss, _ = take_step(state, index)
        # Of the way gone, not of the rows, whose larger part is where they began.
        our_way = state.rows["text_encoder"][0] - initial_rows
        assert_close(our_way, rows - initial_rows, TRAJECTORY_TOLERANCE)
        assert_close(our_loss, loss, TRAJECTORY_TOLERANCE)
    assert index == 19


@pytest.mark.parametrize("kind", KINDS)
def test_committed_recordings_are_what_the_script_records(
    kind: str, record_live: Callable[[str], Path]
) -> None:
    """Weights and ids bit for bit; the rest to what another torch build may change."""
    live = record_live(kind)
    paths = sorted(path.relative_to(live) for path in live.rglob("*.safetensors"))
    committed = RECORDED / kind
    assert paths == sorted(
        path.relative_to(committed) for path in committed.rglob("*.safetensors")
    )
    for path in paths:
        new, old = load_file(live / path), load_file(committed / path)
        assert new.keys() == old.keys(), path
        for name in new:
            if path.parts[0] == "model" or new[name].dtype != np.float32:
                np.testing.assert_array_equal(new[name], old[name], f"{path} {name}")
            else:
                assert_close(new[name], old[name], 1e-4)
