"""SDXL and its relatives are PyTorch's, float32, from the context to a picture.

The reference is tests/reference/sdxl/, which is held to what PyTorch gives where it is
installed; see record_sdxl.py. Tolerances are those of test_parity.py.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sdxl_models
from safetensors.numpy import load_file

from ti_flax.diffusion import scheduler_config
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank, Batch
from ti_flax.step.optimizer import adamw
from ti_flax.step.slots import Slot, stack
from ti_flax.step.state import State, init_state
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer, token_ids

RECORDED = Path(__file__).parents[1] / "reference" / "sdxl"
ENCODERS = ("text_encoder", "text_encoder_2")
FORWARD_TOLERANCE, GRADIENT_TOLERANCE, TRAJECTORY_TOLERANCE = 1e-4, 1e-3, 2e-4
Arrays = dict[str, np.ndarray]


class Reference(NamedTuple):
    """A model, its params, and what PyTorch computes with it."""

    model: base_model.BaseModel
    params: dict[str, Params]
    recorded: Arrays


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind, eos) to the folder of that model."""

    @functools.cache
    def folder(kind: str, eos: int = sdxl_models.EOS) -> Path:
        path = tmp_path_factory.mktemp("sdxl") / "model"
        sdxl_models.write(kind, path, eos)
        return path

    return folder


# Every kind in the long checks; in the quick ones those with all that they differ in.
KINDS = [
    kind if kind in ("sdxl", "ssd-1b") else pytest.param(kind, marks=pytest.mark.slow)
    for kind in sdxl_models.KINDS
]


@pytest.fixture(scope="module", params=KINDS)
def reference(request: pytest.FixtureRequest, folders: Callable[..., Path]):
    model = base_model.open_model(str(folders(request.param)))
    params = {name: model.load(name) for name in model.family.parts}
    recorded = load_file(RECORDED / f"{request.param}.safetensors")
    return Reference(model, params, recorded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recordings_are_what_pytorch_gives(kind: str, folders):
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library)
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        import record_sdxl

        live = record_sdxl.record(kind, folders(kind))
    recorded = load_file(RECORDED / f"{kind}.safetensors")
    assert live.keys() == recorded.keys()
    for name, new in live.items():
        if new.dtype == np.float32:
            assert_close(new, recorded[name], FORWARD_TOLERANCE)
        else:
            # Pictures are of 256 levels, all else whole numbers.
            most = 1 if name.startswith("picture.") else 0
            assert np.abs(new.astype(int) - recorded[name]).max() <= most


def assert_close(ours: Any, theirs: np.ndarray, tolerance: float) -> None:
    """By norm, and by the largest element; a NaN fails."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.any(theirs), "a reference of zeros compares nothing"
    difference = ours - theirs
    by_norm = np.linalg.norm(difference) / np.linalg.norm(theirs)
    largest = np.abs(difference).max() / np.abs(theirs).max()
    assert by_norm <= tolerance, (by_norm, largest)
    assert largest <= tolerance, (by_norm, largest)


def read_batch(recorded: Arrays, index: int) -> Batch:
    """The recorded examples of one step, for one slot."""
    return Batch(
        latents=np.moveaxis(recorded["latents"][index], 1, -1)[None],
        noise=np.moveaxis(recorded["noise"][index], 1, -1)[None],
        times=recorded["timesteps"][index][None].astype(np.int32),
        ids={
            name: recorded[f"ids.{name}"][index][None].astype(np.int32)
            for name in ENCODERS
        },
        sizes=recorded["sizes"][index][None].astype(np.int32),
    )


def unused_bank(rows: Arrays) -> Bank:
    """One slot from which nothing is drawn: examples come from the recording."""
    slot = Slot(
        seed_key=jax.random.key(0),
        moments=jnp.zeros((1, 1, 1, 1, 8)),
        sizes=np.zeros((1, 1, 6), np.int32),
        prompts={name: np.zeros((1, 1), np.int32) for name in rows},
        rows=rows,
        max_train_steps=1000,
        norms=dict.fromkeys(rows, 1.0),
    )
    return stack([slot])[1]


def initial_rows(recorded: Arrays) -> Arrays:
    return {name: recorded[f"initial_rows.{name}"] for name in ENCODERS}


@functools.cache
def compile_step(folder: Path):
    learning_rate = optax.constant_schedule(5e-3)  # record_sdxl.LEARNING_RATE
    recipe = train_step.StepRecipe(
        family=base_model.open_model(str(folder)).family,
        optimizer=adamw(learning_rate, 0.9, 0.999, 1e-8, 0.0, None),
        learning_rate=learning_rate,
        train_batch_size=2,
        gradient_accumulation_steps=1,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )

    @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
    def take_step(state: State, params: dict[str, Params], batch: Batch, bank: Bank):
        loss, grads = train_step.gradients(state.rows, params, batch, recipe)
        state, _ = train_step.apply_gradients(state, loss, grads, bank, recipe)
        return state, loss[0], {name: each[0] for name, each in grads.items()}

    return recipe, take_step


def begin(reference: Reference, rows: Arrays):
    """State with these rows, and the function (state, index) to the next."""
    recipe, take_step = compile_step(reference.model.source.path)
    bank = unused_bank(initial_rows(reference.recorded))
    state = init_state(
        {name: jnp.asarray(each)[None] for name, each in rows.items()}, recipe.optimizer
    )
    state = jax.device_put(state, sharding.replicated(recipe.mesh))

    def take(state: State, index: int):
        batch = read_batch(reference.recorded, index)
        return take_step(state, reference.params, batch, bank)

    return state, take


def test_context_pooled_text_and_prediction_are_pytorchs(reference: Reference):
    model, params, recorded = reference
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), read_batch(recorded, 0))
    rows = {
        name: jnp.broadcast_to(each, (2, *each.shape))
        for name, each in initial_rows(recorded).items()
    }
    told = jax.jit(model.family.encode_text)(params, batch.ids, rows, batch.sizes)
    context, pooled, sizes = told
    assert_close(context, recorded["context"], FORWARD_TOLERANCE)
    assert_close(pooled, recorded["pooled"], FORWARD_TOLERANCE)
    np.testing.assert_array_equal(sizes, recorded["sizes"][0])
    x_t = model.family.process.add_noise(batch.latents, batch.noise, batch.times)
    apply = jax.jit(model.family.denoiser.module.apply)
    prediction = apply({"params": params["unet"]}, x_t, batch.times, *told)
    theirs = np.moveaxis(recorded["prediction"], 1, -1)
    assert_close(prediction, theirs, FORWARD_TOLERANCE)


def test_gradients_to_the_rows_of_both_encoders_are_autograds(reference: Reference):
    """At every point of PyTorch's way, through context and through pooled text."""
    recorded = reference.recorded
    for index in range(20):
        rows = initial_rows(recorded)
        if index:
            rows = {name: recorded[f"rows.{name}"][index - 1] for name in ENCODERS}
        state, take = begin(reference, rows)
        _, loss, grads = take(state, index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        for name in ENCODERS:
            theirs = recorded[f"grads.{name}"][index]
            assert_close(grads[name], theirs, GRADIENT_TOLERANCE)


def test_training_stays_on_pytorchs_trajectory(reference: Reference):
    recorded, first = reference.recorded, initial_rows(reference.recorded)
    state, take = begin(reference, first)
    for index in range(20):
        state, loss, _ = take(state, index)
        assert_close(loss, recorded["losses"][index], TRAJECTORY_TOLERANCE)
        for name in ENCODERS:
            way = recorded[f"rows.{name}"][index] - first[name]
            ours = np.asarray(state.rows[name][0]) - first[name]
            assert_close(ours, way, TRAJECTORY_TOLERANCE)


@pytest.mark.parametrize("negative", ["", "blur"], ids=["alone", "negative"])
def test_a_picture_is_that_of_diffusers_pipeline(reference: Reference, negative: str):
    """By the model's own scheduler; without a negative prompt, zeros are told."""
    recorded = reference.recorded
    theirs = recorded["picture.negative" if negative else "picture.alone"]
    rows = {name: recorded[f"picture.{name}"] for name in ENCODERS}
    [ours] = draw_picture(reference, rows, negative)
    assert ours.shape == theirs.shape
    assert np.ptp(theirs) > 50
    # A pixel on the edge between two of 256 levels may fall on either side.
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    other = recorded["picture.alone" if negative else "picture.negative"]
    assert np.abs(ours.astype(int) - other).max() > 1


def draw_picture(reference: Reference, rows: Arrays, negative: str) -> np.ndarray:
    model, params, recorded = reference
    family, noise = model.family, np.moveaxis(recorded["picture.noise"], 1, -1)
    tokenizers = {
        each.name: PromptTokenizer(
            load_tokenizer(model.tokenizer(each)),
            each.vocab_size,
            {"<cat>": len(rows[each.name])},
        )
        for each in family.text_encoders
    }
    ids = token_ids(tokenizers, ["a <cat> on a mat", negative])
    height, width = (2 * side for side in noise.shape[1:3])
    told = sampling.encode_prompts(
        params, ids, rows, family, (height, width), last_is_empty=not negative
    )
    sampler = scheduler_config.make_sampler(model.scheduler, "euler", 5)
    mesh = sharding.make_mesh(jax.devices()[:1])
    latents = sampling.sample_latents(
        params["unet"],
        sampler.steps,
        tuple(each[:1] for each in told),
        tuple(each[-1] for each in told),
        noise,
        5.0,
        stepper=sampler.stepper,
        denoiser=family.denoiser.module,
        mesh=mesh,
    )
    return np.asarray(
        sampling.decode_latents(
            params["vae"],
            latents,
            autoencoder=family.autoencoder.module,
            scale=family.scale,
            mesh=mesh,
        )
    )


@pytest.mark.parametrize("eos", [sdxl_models.EOS, 2], ids=["true", "hub"])
def test_pooled_text_is_that_of_the_first_end_of_a_prompt(folders, eos: int):
    """Words after the end, whose ids are higher, and further ends change nothing."""
    model = base_model.open_model(str(folders("sdxl", eos)))
    encoder = model.family.text_encoders[1]
    random, vocabulary = np.random.default_rng(0), encoder.vocab_size
    rows = random.normal(size=(1, 6, encoder.width)).astype(np.float32)
    ids = random.integers(1, sdxl_models.EOS - 1, size=(1, 77))
    ids[0, [2, 5, 6]] = vocabulary + np.array([5, 0, 3])
    ids[0, 9] = sdxl_models.EOS
    others = ids.copy()
    others[0, 10:] = random.integers(1, sdxl_models.EOS - 1, size=67)
    others[0, [12, 30]] = vocabulary + np.array([1, 4])
    others[0, 20:25] = sdxl_models.EOS
    params = model.load(encoder.name)
    one, two = (
        encoder.module.apply({"params": params}, jnp.asarray(each), jnp.asarray(rows))
        for each in (ids, others)
    )
    np.testing.assert_array_equal(one.pooled, two.pooled)
    assert np.abs(one.hidden - two.hidden).max() > 0.1
    # The formula again: causal, so a prompt that ends there has the same last state.
    short = encoder.module.apply(
        {"params": params}, jnp.asarray(ids[:, :10]), jnp.asarray(rows)
    )
    np.testing.assert_allclose(short.pooled, one.pooled, rtol=1e-5, atol=1e-5)
    # And pooled at a word, as transformers does with the Hub's files, it is another.
    at_word = ids.copy()
    at_word[0, 2:] = sdxl_models.EOS
    other = encoder.module.apply(
        {"params": params}, jnp.asarray(at_word), jnp.asarray(rows)
    )
    assert np.abs(other.pooled - one.pooled).max() > 0.1


def test_with_the_hubs_settings_the_documented_line_gives_our_picture(folders):
    """transformers pools at the highest id where a file's eos_token_id is 2."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    import record_sdxl

    folder = folders("sdxl", 2)
    recorded = load_file(RECORDED / "sdxl.safetensors")
    model = base_model.open_model(str(folder))
    params = {name: model.load(name) for name in model.family.parts}
    rows = {name: recorded[f"picture.{name}"] for name in ENCODERS}
    [ours] = draw_picture(Reference(model, params, recorded), rows, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        record_sdxl.teach(pipeline, *map(torch.from_numpy, rows.values()))
        noise = torch.from_numpy(recorded["picture.noise"])
        differs = record_sdxl.picture(pipeline, noise, None).numpy()
        pipeline.text_encoder_2.text_model.eos_token_id = sdxl_models.EOS
        agrees = record_sdxl.picture(pipeline, noise, None).numpy()
    assert np.abs(ours.astype(int) - agrees).max() <= 1
    assert np.abs(ours.astype(int) - differs).max() > 1
