"""SDXL and its relatives are PyTorch's, float32, from the context to a picture.

The reference is tests/reference/sdxl/, which is held to what PyTorch gives where it is
installed; see record_sdxl.py. Tolerances are those of parity.py.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sdxl_models
from parity import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    TRAJECTORY_TOLERANCE,
    Arrays,
    assert_close,
    batch_of,
    stepper,
)
from safetensors.numpy import load_file

from ti_flax.diffusion import scheduler_config
from ti_flax.diffusion.process import Ddpm
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step.bank import Batch
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer, token_ids

RECORDED = Path(__file__).parents[1] / "reference" / "sdxl"
ENCODERS = ("text_encoder", "text_encoder_2")


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
    kind
    if kind in ("sdxl", "ssd-1b", "inpainting", "playground")
    else pytest.param(kind, marks=pytest.mark.slow)
    for kind in sdxl_models.KINDS
]


# A step compiles longest. SSD-1B's and an inpainting model's go SDXL's way back: what
# they differ in is in the forward pass.
LEARNED_FROM = [
    kind
    if kind in ("sdxl", "playground")
    else pytest.param(kind, marks=pytest.mark.slow)
    for kind in sdxl_models.KINDS
]


def read_reference(kind: str, folders: Callable[..., Path]) -> Reference:
    model = base_model.open_model(str(folders(kind)))
    params = {name: model.load(name) for name in model.family.parts}
    recorded = load_file(RECORDED / f"{kind}.safetensors")
    return Reference(model, params, recorded)


@pytest.fixture(scope="module", params=KINDS)
def reference(request: pytest.FixtureRequest, folders: Callable[..., Path]):
    return read_reference(request.param, folders)


@pytest.fixture(scope="module", params=LEARNED_FROM)
def learned_from(request: pytest.FixtureRequest, folders: Callable[..., Path]):
    return read_reference(request.param, folders)


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


def read_batch(recorded: Arrays, index: int) -> Batch:
    """The recorded examples of one step, for one slot."""
    ids = {name: recorded[f"ids.{name}"][index] for name in ENCODERS}
    return batch_of(recorded, index, ids, recorded["sizes"][index])


def test_the_latents_of_a_grey_picture_are_pytorchs(reference: Reference):
    """What an inpainting model is told beside x_t, in training and in pictures."""
    model, params, recorded = reference
    family = model.family
    if "canvas" not in recorded:
        assert family.canvas is None
        return
    height, width = (2 * side for side in recorded["canvas"].shape[2:])
    # Of the params that stay during a run with previews.
    kept = {name: params["vae"][name] for name in family.picture_params}
    canvas = family.canvas(kept, size=(height, width))
    assert_close(canvas, np.moveaxis(recorded["canvas"], 1, -1)[0], FORWARD_TOLERANCE)
    # What a picture's own moments become in the bank.
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    moments = family.autoencoder.module.apply(
        {"params": params["vae"]}, jnp.asarray(pixels), method="encode"
    )
    assert moments.shape[-1] == family.moment_channels
    noise = jnp.asarray(
        random.normal(size=(2, height // 2, width // 2, 4)), jnp.float32
    )
    latents = family.scale.to_denoiser(family.sample_posterior(moments, noise))
    for each in latents:
        np.testing.assert_allclose(each[..., 4:], canvas[..., 1:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(latents[0, ..., :4], latents[1, ..., :4])
    times = jnp.array([0, 999])
    seen = family.process.add_noise(latents, noise, times)
    plain = Ddpm(*family.process)
    x_t = plain.add_noise(latents[..., :4], noise, times)
    np.testing.assert_array_equal(seen[..., :4], x_t)
    np.testing.assert_array_equal(seen[..., 4], 1)
    np.testing.assert_array_equal(seen[..., 5:], latents[..., 4:])


def initial_rows(recorded: Arrays) -> Arrays:
    return {name: recorded[f"initial_rows.{name}"] for name in ENCODERS}


def steps(reference: Reference):
    """`parity.stepper` of the recorded training."""
    read = functools.partial(read_batch, reference.recorded)
    return stepper(reference.model, reference.params, read)


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
    times = model.family.process.told(batch.times)
    prediction = apply({"params": params["unet"]}, x_t, times, *told)
    theirs = np.moveaxis(recorded["prediction"], 1, -1)
    assert_close(prediction, theirs, FORWARD_TOLERANCE)


def test_gradients_to_the_rows_of_both_encoders_are_autograds(learned_from: Reference):
    """At every point of PyTorch's way, through context and through pooled text."""
    recorded = learned_from.recorded
    begin, take_step = steps(learned_from)
    for index in range(20):
        rows = initial_rows(recorded)
        if index:
            rows = {name: recorded[f"rows.{name}"][index - 1] for name in ENCODERS}
        _, loss, grads = take_step(begin(rows), index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        for name in ENCODERS:
            theirs = recorded[f"grads.{name}"][index]
            assert_close(grads[name], theirs, GRADIENT_TOLERANCE)


def test_training_stays_on_pytorchs_trajectory(learned_from: Reference):
    recorded, first = learned_from.recorded, initial_rows(learned_from.recorded)
    begin, take_step = steps(learned_from)
    state = begin(first)
    for index in range(20):
        state, loss, _ = take_step(state, index)
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
    name = scheduler_config.find_name(model.scheduler)
    sampler = scheduler_config.make_sampler(model.scheduler, name, 5)
    mesh = sharding.make_mesh(jax.devices()[:1])
    latents = sampling.sample_latents(
        params["unet"],
        sampler.steps,
        tuple(each[:1] for each in told),
        tuple(each[-1] for each in told),
        noise,
        5.0,
        family.canvas and family.canvas(params["vae"], size=(height, width)),
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
