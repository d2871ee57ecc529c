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
import optax
import pytest
from jaxtyping import Array
from safetensors.numpy import load_file

from ti_flax.diffusion.process import Ddpm
from ti_flax.models import base_model, vae
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank, Batch
from ti_flax.step.optimizer import adamw
from ti_flax.step.slots import Slot, stack
from ti_flax.step.state import State, init_state

RECORDED = Path(__file__).parents[1] / "reference"
KINDS = ("sd1", "sd2")
PARTS = ("text_encoder", "unet", "vae", "training")

FORWARD_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# Adam divides by the gradient's own size, which amplifies a float32 error wherever a
# gradient is near zero: 2e-5 of the way gone is measured, 10 times that allowed. The
# decay of the rows by AdamW's usual 1e-2 is 6e-4, and must fail.
TRAJECTORY_TOLERANCE = 2e-4


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
    params=[(kind, source) for source in ("recorded", "live") for kind in KINDS],
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


def errors(ours: Any, theirs: np.ndarray) -> tuple[float, float]:
    """Relative errors: by norm, and of the largest element."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.any(theirs), "a reference of zeros compares nothing"
    difference = ours - theirs
    return (
        float(np.linalg.norm(difference) / np.linalg.norm(theirs)),
        float(np.abs(difference).max() / np.abs(theirs).max()),
    )


def assert_close(ours: Any, theirs: np.ndarray, tolerance: float) -> None:
    # Written so that a NaN fails.
    assert all(error <= tolerance for error in errors(ours, theirs)), (
        f"relative errors by norm and by largest element {errors(ours, theirs)}, "
        f"tolerance {tolerance}"
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


@functools.cache
def compile_step(folder: str) -> tuple[train_step.StepRecipe, Callable[..., Any]]:
    """The recipe of the recorded training, and its step from given examples:
    (state, params, batch) to (state, loss, gradient).
    """
    learning_rate = optax.constant_schedule(5e-3)  # record_reference.LEARNING_RATE
    recipe = train_step.StepRecipe(
        family=base_model.open_model(folder).family,
        optimizer=adamw(learning_rate, 0.9, 0.999, 1e-8, 0.0, None),
        learning_rate=learning_rate,
        train_batch_size=2,
        gradient_accumulation_steps=1,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )

    @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
    def take_step(state: State, params: dict[str, Params], batch):
        loss, grads = train_step.gradients(state.rows, params, batch, recipe)
        bank = unused_bank(state.rows["text_encoder"].shape[1])
        state, _ = train_step.apply_gradients(state, loss, grads, bank, recipe)
        return state, loss[0], grads["text_encoder"][0]

    return recipe, take_step


def stepper(reference: Reference) -> tuple[Callable, Callable]:
    """`begin(rows)` to the state before the first step, and `take_step` from it."""
    recipe, take_step = compile_step(str(reference.model.source.path))

    def begin(rows: np.ndarray) -> State:
        state = init_state({"text_encoder": jnp.asarray(rows)[None]}, recipe.optimizer)
        # As a step returns it: another placement would compile a second executable.
        return jax.device_put(state, sharding.replicated(recipe.mesh))

    def take(state: State, index: int) -> tuple[State, Array, Array]:
        batch = read_batch(reference.training, index)
        return take_step(state, reference.params, batch)

    return begin, take


def read_batch(recorded: dict[str, np.ndarray], index: int) -> Batch:
    """The recorded examples of one step, for one slot."""
    return Batch(
        latents=np.moveaxis(recorded["latents"][index], 1, -1)[None],
        noise=np.moveaxis(recorded["noise"][index], 1, -1)[None],
        times=recorded["timesteps"][index][None].astype(np.int32),
        ids={"text_encoder": recorded["ids"][index][None].astype(np.int32)},
        sizes=np.zeros((1, 2, 6), np.int32),
    )


def unused_bank(num_vectors: int) -> Bank:
    """One slot from which nothing is drawn: examples come from the recording."""
    _, bank = stack(
        [
            Slot(
                seed_key=jax.random.key(0),
                moments=jnp.zeros((1, 1, 1, 1, 8)),
                sizes=np.zeros((1, 1, 6), np.int32),
                prompts={"text_encoder": np.zeros((1, 1), np.int32)},
                rows={"text_encoder": np.zeros((num_vectors, 1), np.float32)},
                max_train_steps=1000,
                norms={"text_encoder": 1.0},
            )
        ]
    )
    return bank


def test_gradient_to_the_rows_is_autograds(reference: Reference) -> None:
    """At every point of PyTorch's trajectory: many timesteps, prompts and rows."""
    recorded = reference.training
    begin, take_step = stepper(reference)
    for index, rows in enumerate([recorded["initial_rows"], *recorded["rows"][:-1]]):
        _, loss, grads = take_step(begin(rows), index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        assert_close(grads, recorded["grads"][index], GRADIENT_TOLERANCE)


def test_training_stays_on_pytorchs_trajectory(reference: Reference) -> None:
    recorded = reference.training
    begin, take_step = stepper(reference)
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
