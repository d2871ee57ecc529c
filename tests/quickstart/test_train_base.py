"""Training the quickstart's base model: its parts, without the hours."""

import numpy as np
import pytest

from ti_flax.quickstart.critters import world


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from ti_flax.quickstart.base_model import train_tokenizer

    rng = np.random.default_rng(0)
    captions = [
        world.caption(world.training_scene(0, index), rng) for index in range(3000)
    ]
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer.train(captions, folder, merges=500, length=48)


def test_every_word_of_the_world_is_one_token(tokenizer):
    words = [
        *(*world.SPECIES_NOUNS, *world.STYLE_NOUNS, world.OBJECT_WORD),
        *(*world.BACKGROUNDS, *world.SHAPES, *world.BODIES, *world.ACCENTS),
        *(*world.PATTERNS[1:], *world.TOPS[1:], "background", "feet", "photo"),
    ]
    for word in words:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_any_text_has_ids_and_comes_back(tokenizer):
    text = "a cow & 3 żółte smoki, naïve <new>!"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_the_tokenizer_pads_and_frames_as_stable_diffusion_does(tokenizer):
    ids = tokenizer("a photo", padding="max_length").input_ids
    end = tokenizer.eos_token_id
    assert (end, tokenizer.bos_token_id) == (len(tokenizer) - 1, len(tokenizer) - 2)
    assert ids == [tokenizer.bos_token_id, *ids[1:3], *[end] * 45]


def test_a_noun_has_the_row_of_the_name_of_its_look(tokenizer):
    torch = pytest.importorskip("torch")
    from ti_flax.quickstart.base_model import noun_rows
    from ti_flax.quickstart.critters import drawing

    torch.manual_seed(0)
    named, table = noun_rows.Names(tokenizer, 8), torch.randn(len(tokenizer), 8)
    noun, look = list(world.SPECIES.items())[5]
    style_noun, style = list(world.STYLES.items())[2]
    # Nouns of other looks and styles: in a caption they stand for its own.
    ids = torch.tensor(
        tokenizer(["a mipsy in the style of cavo on a red critter"]).input_ids
    )
    scene = drawing.Scene(look, "white", style, None)
    parts = torch.tensor([noun_rows.parts(scene)])

    def embed(said):
        return named(table[ids], ids, table, parts, torch.tensor([said]))[0]

    full = embed([True] * noun_rows.NUM_PARTS)
    bare = embed([False] * noun_rows.NUM_PARTS)
    one_said = embed([False, True, *[False] * (noun_rows.NUM_PARTS - 2)])
    others = [i for i in range(ids.shape[1]) if i not in (2, 7)]
    torch.testing.assert_close(full[others], table[ids[0, others]])
    critter, art = (
        table[tokenizer.convert_tokens_to_ids(f"{word}</w>")]
        for word in (world.OBJECT_WORD, world.STYLE_WORD)
    )
    torch.testing.assert_close(bare[[2, 7]], torch.stack([critter, art]))
    vector = len(world.SHAPES) + world.BODIES.index(look.body)
    torch.testing.assert_close(one_said[2] - critter, named.vectors.weight[vector])

    named.write_nouns(table)
    torch.testing.assert_close(
        full[[2, 7]],
        table[
            [tokenizer.convert_tokens_to_ids(f"{n}</w>") for n in (noun, style_noun)]
        ],
    )


def test_learning_rate_warms_up_and_falls():
    pytest.importorskip("torch")
    from ti_flax.quickstart.base_model.clock import learning_rate

    rates = [learning_rate(1.0, step, step / 1000, warmup=100) for step in range(1001)]
    assert np.argmax(rates) == 99
    assert np.all(np.diff(rates[:100]) > 0) and np.all(np.diff(rates[99:]) < 0)
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[-1] == pytest.approx(0.02)


def test_average_is_the_mean_of_the_young_steps_then_an_exponential_one():
    torch = pytest.importorskip("torch")
    from ti_flax.quickstart.base_model.clock import Average

    module = torch.nn.Linear(1, 1, bias=False)
    average = Average(module, decay=0.9)
    expected = module.weight.item()
    for step in range(20):
        with torch.no_grad():
            module.weight.fill_(float(step))
        average.update(module, step)
        expected += max(0.1, 1 / (step + 10)) * (step - expected)
    assert average.values["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    torch = pytest.importorskip("torch")
    from ti_flax.quickstart.base_model.clock import Training

    def start(path):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(module.parameters())
        return Training(path, module, optimizer, decay=0.9, seconds=60)

    def advance(training, steps):
        for _ in range(steps):
            training.set_rate(0.1, progress=0.5)
            training.module(torch.full((1, 3), 1.0 + training.step)).sum().backward()
            training.update()

    whole, first = start(tmp_path / "whole.pt"), start(tmp_path / "run.pt")
    advance(whole, 5)
    advance(first, 2)
    first.save()
    second = start(tmp_path / "run.pt")
    assert second.step == 2
    assert second.clock.spent >= first.clock.spent - 1
    advance(second, 3)
    torch.testing.assert_close(
        second.module.weight, whole.module.weight, rtol=0, atol=0
    )
    torch.testing.assert_close(second.average.values, whole.average.values)


def test_normalising_latents_leaves_pictures_alone():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from ti_flax.quickstart.base_model import latents, train_vae

    torch.manual_seed(0)
    vae = train_vae.build().eval()
    images = torch.rand(6, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        before = vae.decode(posterior.mean).sample
        raw = latents.Moments(posterior.mean.numpy(), posterior.std.numpy())
        scaled = latents.normalise(vae, raw)
        again = vae.encode(images).latent_dist
        factor = vae.config.scaling_factor
        decoded = vae.decode(torch.from_numpy(scaled.mean) / factor).sample
    assert factor != pytest.approx(1.0)
    np.testing.assert_allclose(decoded, before, atol=1e-4)
    np.testing.assert_allclose(again.mean * factor, scaled.mean, atol=1e-4)
    np.testing.assert_allclose(again.std * factor, scaled.std, rtol=1e-3)
    np.testing.assert_allclose(scaled.mean.mean((0, 2, 3)), 0, atol=1e-4)
    variance = scaled.mean.var((0, 2, 3)) + (scaled.std**2).mean((0, 2, 3))
    np.testing.assert_allclose(variance, 1, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_exported_folder_is_small_and_loads_in_diffusers(tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from pathlib import Path

    from ti_flax.quickstart.base_model import train_base, train_unet, train_vae
    from ti_flax.quickstart.base_model.clock import Average

    torch.manual_seed(0)
    model = train_unet.TextToLatents(tokenizer)
    average = Average(model, 0.9)
    pipe = train_unet.pipeline(average, tokenizer, train_vae.build())
    folder = tmp_path / "model"
    train_base.export(pipe, Path(tokenizer.name_or_path), folder)

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {"vocab.json", "merges.txt"} <= {path.name for path in files}
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    shown = loaded(
        "a photo of a zorble", 64, 64, num_inference_steps=2, output_type="np"
    ).images
    assert shown.shape == (1, 64, 64, 3)
    assert np.isfinite(shown).all()
    kept = loaded.unet.state_dict()["conv_in.weight"]
    torch.testing.assert_close(
        kept, average.values["unet.conv_in.weight"].half().float()
    )
