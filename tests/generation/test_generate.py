"""`python -m ti_flax.generate` from embeddings and prompts to PNG files."""

import dataclasses
import json
import logging
import re
import sys
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from ti_flax import generate as door
from ti_flax.diffusion import samplers, scheduler_config
from ti_flax.formats import find
from ti_flax.generation import generate, png, sampling
from ti_flax.models import base_model, unet
from ti_flax.runtime import errors, sharding
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

WIDTH = 32
PROMPTS = ("a <cat> beside a <dog>", "one <dog>, no more")
NEGATIVE = "blurry, <dog>"
SIDE = 32
SETTINGS = {
    "prompt": PROMPTS,
    "negative_prompt": NEGATIVE,
    "num_images": 5,
    "steps": 4,
    "seed": 7,
}


class Run(NamedTuple):
    """A run of ten pictures, eight at a time, and how often its sampling was traced."""

    images: list[Image.Image]
    output: Path
    traces: int


def write_embedding(path, token, vectors, width=WIDTH, seed=0):
    rows = np.random.default_rng(seed).normal(size=(vectors, width))
    safetensors.numpy.save_file({token: rows.astype(np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    return (
        write_embedding(folder / "cat.safetensors", "<cat>", 2, seed=1),
        write_embedding(folder / "dog.safetensors", "<dog>", 1, seed=2),
    )


@pytest.fixture(scope="module")
def run(small_model, embeddings, tmp_path_factory):
    output = tmp_path_factory.mktemp("pictures")
    traces = []
    sample = samplers.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            samplers, "sample", lambda *args: traces.append(1) or sample(*args)
        )
        images = generate.generate_images(
            progress=False,
            model=small_model,
            embedding=embeddings,
            output=output,
            **SETTINGS,
        )
    return Run(images, output, len(traces))


@pytest.fixture
def make(small_model, embeddings):
    """Runs that differ from a valid one by keys; they end before weights are read."""

    def make(**keys):
        valid = {"model": small_model, "embedding": embeddings, **SETTINGS}
        return generate.generate_images(progress=False, **valid | keys)

    return make


def refusal(make, **keys):
    """The one line that says what is wrong with these keys."""
    with pytest.raises(errors.UserError) as caught:
        make(**keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


# Pictures


def test_every_prompt_gets_its_pictures_as_files_and_in_a_grid(run):
    assert len(run.images) == 10
    names = sorted(path.name for path in run.output.iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(10)), "grid_00000.png"]
    for i, image in enumerate(run.images):
        assert image.size == (SIDE, SIDE)
        with Image.open(run.output / f"{i:05d}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), np.asarray(image))
    with Image.open(run.output / "grid_00000.png") as file:
        sheet = np.asarray(file)
    # A row for each prompt.
    tiles = sheet.reshape(2, SIDE, 5, SIDE, 3).swapaxes(1, 2).reshape(10, SIDE, SIDE, 3)
    np.testing.assert_array_equal(tiles, pixels(run.images))


def test_pictures_differ_by_prompt_and_by_seed(run):
    flat = pixels(run.images).reshape(10, -1)
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=-1)
    assert distances[~np.eye(10, dtype=bool)].min() > 1


def test_the_second_batch_does_not_compile_again(run):
    assert run.traces == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pictures_equal_those_of_stable_diffusion_pipeline(
    run, small_model, embeddings
):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    # So small a network runs many times faster without waiting for other threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(small_model)
    pipeline.set_progress_bar_config(disable=True)
    for file in embeddings:
        pipeline.load_textual_inversion(str(file))
    seeds = np.array([7, 8, 9, 10, 11] * 2, np.uint32)
    noise = np.asarray(sampling.draw_noise(seeds, (16, 16, 4)))
    theirs = pipeline(
        list(np.repeat(PROMPTS, 5)),
        negative_prompt=[NEGATIVE] * 10,
        num_inference_steps=SETTINGS["steps"],
        latents=torch.tensor(np.moveaxis(noise, -1, 1)),
        output_type="np",
    ).images
    torch.set_num_threads(threads)
    error = np.abs(np.round(255 * theirs) - pixels(run.images))
    assert error.mean() < 0.1
    assert error.max() <= 2


def test_a_picture_depends_on_prompt_and_seed_alone(run, make):
    # The third picture of the second prompt, as the first of one prompt.
    [image] = make(prompt=PROMPTS[1], num_images=1, seed=SETTINGS["seed"] + 2)
    assert np.abs(pixels([image]) - pixels(run.images[7:8])).max() <= 1


def test_pictures_do_not_depend_on_batches_and_devices(run, small_model, embeddings):
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = base_model.open_model(str(small_model))
    params = {name: model.load(name) for name in ("text_encoder", "unet", "vae")}
    tokenize = PromptTokenizer(
        load_tokenizer(small_model / "tokenizer"),
        model.family.text_encoders[0].vocab_size,
        {"<cat>": 2, "<dog>": 1},
    )
    rows = [find.load_embedding(file).rows["text_encoder"] for file in embeddings]
    told = sampling.encode_prompts(
        params,
        {"text_encoder": tokenize([*PROMPTS, NEGATIVE])},
        {"text_encoder": np.concatenate(rows)},
        model.family,
        (32, 32),
    )
    chosen = np.array([9, 0, 6])
    wanted = sampling.Wanted(
        prompts=chosen // 5,
        seeds=(SETTINGS["seed"] + chosen % 5).astype(np.uint32),
        told=told,
    )
    recipe = sampling.SamplingRecipe(
        family=model.family,
        sampler=scheduler_config.make_sampler(
            model.scheduler, "pndm", SETTINGS["steps"]
        ),
        guidance_scale=7.5,
        latent_shape=(16, 16, 4),
        mesh=mesh,
    )
    batches = list(sampling.make_images(params, wanted, recipe, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 1]
    theirs = pixels(run.images)[chosen]
    assert np.abs(np.concatenate(batches).astype(int) - theirs).max() <= 1


# Guidance


class Predictor(unet.UNet):
    """A small function of latents, timestep and context in the place of the UNet."""

    @nn.compact
    def __call__(self, x_t, timesteps, context):
        gain = self.param("gain", nn.initializers.ones, ())
        shift = context.mean(axis=(1, 2)) + timesteps / 1000
        return jnp.tanh(gain * x_t + shift[:, None, None, None])


PARAMS = {"gain": np.float32(0.9)}


@pytest.fixture(scope="module")
def recipe(small_model):
    model = base_model.open_model(str(small_model))
    config = {**model.scheduler, "timestep_spacing": "trailing"}
    denoiser = model.family.denoiser
    denoiser = denoiser._replace(module=Predictor(denoiser.module.config))
    return sampling.SamplingRecipe(
        family=dataclasses.replace(model.family, denoiser=denoiser),
        sampler=scheduler_config.make_sampler(config, "ddim", 1),
        guidance_scale=7.5,
        latent_shape=(16, 16, 4),
        mesh=sharding.make_mesh(),
    )


def test_guidance_leads_from_the_negative_prompt_through_the_prompt(recipe):
    random = np.random.default_rng(0)
    noise = random.normal(size=(8, 2, 2, 4)).astype(np.float32)
    context = random.normal(size=(8, 3, 5)).astype(np.float32)
    negative = random.normal(size=(3, 5)).astype(np.float32)

    def sample(context, negative, guidance_scale):
        latents = sampling.sample_latents(
            PARAMS,
            recipe.sampler.steps,
            (context,),
            None if negative is None else (negative,),
            noise,
            guidance_scale,
            stepper=recipe.sampler.stepper,
            denoiser=recipe.family.denoiser.module,
            mesh=recipe.mesh,
        )
        return np.asarray(latents)

    plain = sample(context, None, 0.0)
    away = sample(np.broadcast_to(negative, context.shape), None, 0.0)
    assert np.abs(plain - away).mean() > 0.1
    # One step of DDIM is linear in the prediction.
    for scale in (0.0, 1.0, 7.5):
        np.testing.assert_allclose(
            sample(context, negative, scale), away + scale * (plain - away), atol=1e-3
        )


@pytest.mark.parametrize(
    ("scale", "matters"), [(0.5, False), (1.0, False), (2.0, True)]
)
def test_up_to_1_there_is_no_guidance(recipe, small_model, scale, matters):
    params = {
        "unet": PARAMS,
        "vae": base_model.open_model(str(small_model)).load("vae"),
    }

    def picture(negative):
        wanted = sampling.Wanted(
            prompts=np.zeros(1, int),
            seeds=np.ones(1, np.uint32),
            told=(_filled(0.3, negative),),
        )
        chosen = recipe._replace(guidance_scale=scale)
        return next(sampling.make_images(params, wanted, chosen, 8))

    assert np.any(picture(-1.0) != picture(1.0)) == matters


def _filled(*values):
    return np.stack([np.full((3, 5), value, np.float32) for value in values])


def test_noise_is_standard_normal_and_each_seeds_own():
    both = sampling.draw_noise(np.array([3, 2**32 - 1], np.uint32), (32, 32, 4))
    alone = sampling.draw_noise(np.array([2**32 - 1], np.uint32), (32, 32, 4))
    np.testing.assert_array_equal(both[1], alone[0])
    assert np.all(np.abs(np.mean(both, axis=(1, 2, 3))) < 0.06)
    assert np.all(np.abs(np.std(both, axis=(1, 2, 3)) - 1) < 0.05)
    assert abs(np.corrcoef(np.reshape(both, (2, -1)))[0, 1]) < 0.06


# Files


def read_parameters(text):
    """As AUTOMATIC1111 reads them: prompt, negative prompt, and `key: value` pairs."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    at = next(
        (i for i, line in enumerate(lines) if line.startswith("Negative prompt:")),
        len(lines),
    )
    prompt, negative = "\n".join(lines[:at]), "\n".join(lines[at:])
    return prompt, negative.removeprefix("Negative prompt:").strip(), dict(pairs)


def test_a_png_says_how_to_make_it_again(run, small_model):
    with Image.open(run.output / "00006.png") as file:
        texts = file.text
    prompt, negative, pairs = read_parameters(texts["parameters"])
    assert (prompt, negative) == (PROMPTS[1], NEGATIVE)
    expected = {
        "Steps": "4",
        "Sampler": "PLMS",
        "CFG scale": "7.5",
        "Seed": "8",
        "Size": "32x32",
        "Model": small_model.name,
    }
    assert expected.items() <= pairs.items()
    assert json.loads(texts["ti_flax"]) | {"version": None} == {
        "version": None,
        "prompt": PROMPTS[1],
        "negative_prompt": NEGATIVE,
        "seed": 8,
        "steps": 4,
        "scheduler": "pndm",
        "guidance_scale": 7.5,
        "width": 32,
        "height": 32,
        "model": str(small_model),
        "words": {"<cat>": 2, "<dog>": 1},
    }
    assert run.images[6].info == texts


def test_texts_of_any_script_and_punctuation_survive(tmp_path):
    making = png.Making(
        prompt="<猫>, café: 100%\nsecond line",
        negative_prompt="",
        seed=1,
        steps=2,
        scheduler="dpmpp_2m",
        guidance_scale=8.0,
        width=8,
        height=4,
        model="models/my model, v1: best",
        words={"<猫>": 1},
    )
    image = png.to_image(np.zeros((4, 8, 3), np.uint8), making)
    png.save(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        texts = file.text
    prompt, negative, pairs = read_parameters(texts["parameters"])
    assert (prompt, negative) == (making.prompt, "")
    assert json.loads(pairs["Model"]) == "my model, v1: best"
    assert (pairs["Sampler"], pairs["CFG scale"]) == ("DPM++ 2M", "8")
    assert json.loads(texts["ti_flax"])["prompt"] == making.prompt


def test_every_scheduler_has_a_name_that_other_programs_know():
    assert set(png._SAMPLER_NAMES) == set(scheduler_config.SCHEDULERS)


def test_a_folder_is_continued_and_not_overwritten(tmp_path):
    assert png.next_number(tmp_path) == 0
    for name in ("00000.png", "00012.png", "grid_00099.png", "notes.txt"):
        (tmp_path / name).touch()
    assert png.next_number(tmp_path) == 13


def test_a_grid_that_is_not_full_ends_in_black():
    red, blue = (Image.new("RGB", (2, 3), colour) for colour in ("red", "blue"))
    sheet = np.asarray(png.grid([red, blue, red], columns=2))
    assert sheet.shape == (6, 4, 3)
    assert np.all(sheet[:3, 2:] == (0, 0, 255))
    assert np.all(sheet[3:, :2] == (255, 0, 0))
    assert not sheet[3:, 2:].any()


# Mistakes, each told in one line before any weights are read


@pytest.fixture
def no_weights(monkeypatch):
    def load(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(base_model.BaseModel, "load", load)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": "a <bird>"}, "<bird>, which no embedding teaches.*<cat>, <dog>"),
        ({"negative_prompt": "<ugly>"}, "<ugly>.*--embedding"),
        ({"embedding": (), "prompt": "a <cat>"}, "<cat>.*known: none"),
        ({"embedding": "nowhere.bin"}, "nowhere.bin does not exist"),
        ({"model": "nowhere"}, "no folder 'nowhere'"),
        ({"width": 33}, "width: 33 is not a multiple of 2.*take 34"),
        ({"scheduler": "heun"}, "scheduler: expected 'ddim', .* found 'heun'"),
        ({"steps": 2000}, "2000 steps do not fit"),
        ({"steps": 0}, "steps: expected greater than or equal to 1, found 0"),
        ({"prompt": ()}, "prompt: .*at least 1 item"),
        ({"num_images": "two"}, "num_images: expected a whole number, found 'two'"),
        ({"promt": "a <cat>"}, "unknown key 'promt'; did you mean prompt?"),
        ({"prompt": "<cat> " * 60}, "has 122 tokens"),
    ],
)
def test_mistakes_are_told_in_one_line(make, no_weights, keys, words):
    assert re.search(words, refusal(make, **keys))


def test_a_missing_key_is_named():
    with pytest.raises(errors.UserError, match="missing: model; set them with --key"):
        generate.generate_images(prompt="a cat")


def test_an_embedding_of_another_width_is_told_with_both(make, no_weights, tmp_path):
    file = write_embedding(tmp_path / "wide.safetensors", "<wide>", 1, width=768)
    message = refusal(make, embedding=file)
    assert "768" in message and "32" in message and "wide.safetensors" in message


def test_two_embeddings_with_one_word_are_told_apart_by_renaming(
    make, no_weights, tmp_path, embeddings
):
    other = write_embedding(tmp_path / "other.safetensors", "<cat>", 1)
    message = refusal(make, embedding=[*embeddings, other])
    assert "'<cat>'" in message and f"'NEW_NAME={other}'" in message
    # The advice helps: the next mistake is found.
    renamed = [*embeddings, f"<tom>={other}"]
    assert "<bird>" in refusal(make, embedding=renamed, prompt="<tom> and a <bird>")


def test_a_file_whose_name_has_an_equals_sign_is_a_file(make, no_weights, tmp_path):
    file = write_embedding(tmp_path / "lr=1.safetensors", "<cat>", 1)
    assert "known: <cat>)" in refusal(make, embedding=file, prompt="a <dog>")


def test_an_output_that_is_a_file_is_refused(make, no_weights, tmp_path):
    (tmp_path / "taken").touch()
    assert "output: " in refusal(make, output=tmp_path / "taken")


def test_an_unknown_scheduler_of_the_model_is_named(
    make, no_weights, small_model, tmp_path
):
    for part in small_model.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    content = json.dumps({"_class_name": "LMSDiscreteScheduler"})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
    message = refusal(make, model=tmp_path)
    assert "LMSDiscreteScheduler" in message and "--scheduler ddim|" in message
    with pytest.raises(AssertionError, match="weights are read"):
        make(model=tmp_path, scheduler="ddim")


def test_a_word_that_no_prompt_has_is_warned_of(make, no_weights, caplog):
    with pytest.raises(AssertionError, match="weights are read"):
        make(prompt="A <DOG> and <|endoftext|>", negative_prompt="")
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned == ["embedding: the word <cat> is in no prompt"]


@pytest.mark.parametrize(
    ("word", "prompt", "mistake"),
    [
        # The same word, composed otherwise.
        ("<cafe\u0301>", "a <caf\u00e9>", None),
        ("<caf\u00e9>", "a <CAFE\u0301>", None),
        ("\u212b-cat", "a \u00e5-cat", None),
        ("<cafe\u0301>", "a <cafe>", "<cafe>, which no embedding teaches"),
        # Of the vocabulary, by a file that another program or the user named.
        ("a", "a photo", r"the word 'a' is already .* --embedding '<a>=FILE'"),
        ("\u00b5", "a photo", r"already in .* '<\u00b5>=FILE'"),
        ("7", "a photo", r"already in .* '<7>=FILE'"),
    ],
)
def test_words_are_found_and_known_in_every_spelling(
    make, no_weights, tmp_path, caplog, word, prompt, mistake
):
    file = write_embedding(tmp_path / "word.safetensors", word, 2)
    keys = {"embedding": file, "prompt": prompt, "negative_prompt": ""}
    if mistake:
        assert re.search(mistake, refusal(make, **keys))
        return
    with pytest.raises(AssertionError, match="weights are read"):
        make(**keys)
    # Not even "is in no prompt".
    assert not caplog.records


@pytest.mark.parametrize("key", ["prompt", "negative_prompt"])
def test_text_that_is_cut_off_is_told(make, no_weights, caplog, key):
    texts = {"prompt": "a <cat>", "negative_prompt": "<dog>"}
    texts[key] += " " + "0" * 80
    with pytest.raises(AssertionError, match="weights are read"):
        make(**texts)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"prompt '{texts[key][:9]}")
    assert "the limit is 77: '0" in line and line.endswith("is cut off; shorten it")


# Command line


def test_flags_become_keys(monkeypatch):
    seen = {}
    more = ["--prompt", "y", "--steps=3", "--output", "out", "--embedding", "c"]
    monkeypatch.setattr(generate, "generate_images", lambda **keys: seen.update(keys))
    monkeypatch.setattr(
        sys,
        "argv",
        ["generate", "--model=m", "--embedding", "a", "b", "--prompt", "x", *more],
    )
    door.main()
    assert seen == {
        "model": "m",
        "embedding": ("a", "b", "c"),
        "prompt": ("x", "y"),
        "steps": 3,
        "output": Path("out"),
    }
