"""`python -m ti_flax.convert` and `python -m ti_flax.inspect`, as users call them."""

import json
import re
from pathlib import Path

import doors
import numpy as np
import peer_loaders
import pytest
from PIL import Image

from ti_flax.config import command_line
from ti_flax.formats import convert, describe, find, programs, registry
from ti_flax.formats.find import load_embedding
from ti_flax.publishing import concept_folder
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

TOKEN = "<duck-toy>"
PROVENANCE = {"base_model": "owner/name", "steps": "300", "version": "0.1.0"}


def learned(vectors: int = 2, width: int = 768) -> Embedding:
    rows = np.random.default_rng(0).standard_normal((vectors, width), np.float32)
    return Embedding(TOKEN, {"text_encoder": rows}, provenance=PROVENANCE)


def with_second(second: np.ndarray) -> Embedding:
    """The word with rows for SDXL's second text encoder."""
    rows = {**learned().rows, "text_encoder_2": second}
    return learned()._replace(rows=rows)


@pytest.fixture
def folder(tmp_path):
    """A folder as a run leaves it."""
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    concept_folder.export_concept(tmp_path / "run", learned(), "object", pictures)
    return tmp_path / "run"


def test_the_commands_need_neither_torch_nor_jax(folder, tmp_path):
    output, gone = str(tmp_path / "duck.pt"), str(tmp_path / "gone")
    converted, inspected, refused = doors.run(
        [
            ["convert", str(folder), "--to", "a1111", "--output", output],
            ["inspect", output],
            ["convert", gone, "--to", "a1111", "--output", "x.pt"],
        ]
    )
    assert not converted.asked + inspected.asked + refused.asked
    assert converted.code == 0, converted.stderr
    assert converted.stderr == f"wrote {output} (a1111, from diffusers)\n"
    assert inspected.code == 0, inspected.stderr
    norms = np.linalg.norm(learned().rows["text_encoder"], axis=1)
    assert inspected.stdout.splitlines() == [
        f"file: {output}",
        "format: a1111 (AUTOMATIC1111)",
        "token: <duck-toy>",
        "vectors: 2",
        "width: 768",
        "fits: Stable Diffusion 1.x",
        "loads in: AUTOMATIC1111, diffusers, OneTrainer, ComfyUI, kohya's sd-scripts, "
        "InvokeAI",
        f"norms: {norms[0]:.3f}, {norms[1]:.3f}",
        "name: <duck-toy>",
        "step: 300",
        "sd_checkpoint_name: owner/name",
        "ti_flax.token: <duck-toy>",
        *(f"ti_flax.{key}: {text}" for key, text in PROVENANCE.items()),
    ]
    assert refused.code == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: ") and "does not exist" in line


@pytest.mark.parametrize("name", [n for n in registry.FORMATS if n != "sdxl"])
def test_every_format_is_written_under_its_usual_name(folder, tmp_path, name):
    flat = name in ("flax", "diffusers-flat")
    if flat:
        concept_folder.export_concept(
            folder, learned(1), "object", np.zeros((1, 8, 8, 3), np.uint8)
        )
    [file, *_] = convert.convert_embedding(
        source=folder, to=name, output=tmp_path / "new"
    )
    assert file.parent == tmp_path / "new" and file.stem == "learned_embeds"
    assert file.suffix == next(iter(registry.FORMATS[name].suffixes))
    np.testing.assert_array_equal(
        load_embedding(file).rows["text_encoder"],
        learned(1 if flat else 2).rows["text_encoder"],
    )


def test_a_word_may_be_renamed_and_one_of_several_chosen(folder, tmp_path):
    convert.convert_embedding(
        source=folder, to="kohya", output=tmp_path / "a.safetensors", token="<mine>"
    )
    assert load_embedding(tmp_path / "a.safetensors").token == "<mine>"
    convert.convert_embedding(
        source=tmp_path / "a.safetensors", to="a1111", output=tmp_path / "b.pt"
    )
    assert load_embedding(tmp_path / "b.pt").token == "<mine>"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"to": "kohia"}, "to: expected"),
        ({"output": "cat.png"}, "by the suffix .safetensors or .pt, found '.png'"),
        ({"source": "nowhere.bin"}, "nowhere.bin does not exist"),
        ({"to": "sdxl"}, "SDXL has two"),
        ({"to": "flax", "output": "cat.npy"}, "2 vectors, a flat file holds one"),
        ({"token": "a b\n"}, "expected a word"),
        ({"output": ""}, "expected a path"),
        ({"other": "1"}, "unknown key 'other'"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, monkeypatch, keys, words):
    monkeypatch.chdir(tmp_path)
    given = {"source": str(folder), "to": "kohya", "output": "cat.safetensors", **keys}
    with pytest.raises(UserError) as caught:
        convert.convert_embedding(**given)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cat*"))


def test_a_file_is_not_converted_onto_itself(folder):
    file = folder / find.SAFETENSORS_NAME
    for output in (file, folder):
        with pytest.raises(UserError, match="is the file that is converted"):
            convert.convert_embedding(source=folder, to="kohya", output=output)
    assert registry.read(file).format == "diffusers"


def test_what_is_given_without_its_name_is_required():
    with pytest.raises(UserError, match="arguments are required: IN"):
        command_line.parse_keys(
            ["--to", "kohya"], convert.GROUPS, "convert", "IN", "source"
        )


def test_inspect_shows_both_encoders_of_sdxl(tmp_path):
    second = np.ones((2, 1280), np.float32)
    registry.write(tmp_path, "sdxl", with_second(second))
    lines = describe.describe_embedding(file=tmp_path).splitlines()
    assert "width: 768 and 1280" in lines and "fits: SDXL" in lines
    assert lines[7].endswith("; 35.777, 35.777")


@pytest.mark.parametrize(
    ("width", "family"),
    [
        (768, "Stable Diffusion 1.x"),
        (1024, "Stable Diffusion 2.x"),
        (
            1280,
            "latent diffusion with BERT (or SDXL's second text encoder, without its "
            "first)",
        ),
        (64, "a text encoder of width 64"),
    ],
)
def test_inspect_names_the_models_that_fit(tmp_path, width, family):
    registry.write(tmp_path, "diffusers", learned(width=width))
    assert f"fits: {family}" in describe.describe_embedding(file=tmp_path).splitlines()


def test_inspect_finds_the_nearest_words(tiny_model, tmp_path):
    from ti_flax.models import base_model
    from ti_flax.text.initial_rows import initializer_ids
    from ti_flax.text.tokenizer import load_tokenizer

    model = base_model.open_model(str(tiny_model))
    table = model.load("text_encoder")["embeddings"]["token_embedding"]["embedding"]
    tokenizer = load_tokenizer(tiny_model / "tokenizer")
    [toy, red] = initializer_ids(tokenizer, "toy red")[:2]
    # Cosine looks at directions: other lengths, the same words.
    rows = np.asarray(table)[[toy, red]] * np.float32([[3], [0.5]])
    registry.write(tmp_path, "diffusers", Embedding(TOKEN, {"text_encoder": rows}))
    shown = describe.describe_embedding(file=tmp_path, model=str(tiny_model))
    found = [line.split(": ")[1] for line in shown.splitlines() if "nearest to" in line]
    assert len(found) == 2
    for line, row in zip(found, rows, strict=True):
        cosines = row @ np.asarray(table).T
        cosines /= np.linalg.norm(row) * np.linalg.norm(table, axis=1)
        best = tokenizer.convert_ids_to_tokens([int(np.argmax(cosines))])[0]
        # An ellipsis stands where CLIP's mark of a word's end does not.
        spelt = best[: -len("</w>")] if best.endswith("</w>") else f"{best}…"
        assert line.startswith(f"{spelt} 1.00, ")
        assert line.count(",") == 4


def test_inspect_refuses_a_model_of_another_family(tiny_model, tmp_path):
    registry.write(tmp_path, "diffusers", learned())
    with pytest.raises(UserError, match=r"width 768 \(Stable Diffusion 1\.x\)"):
        describe.describe_embedding(file=tmp_path, model=str(tiny_model))
    second = np.ones((2, 1280), np.float32)
    registry.write(tmp_path, "diffusers", with_second(second))
    with pytest.raises(UserError, match="is for SDXL"):
        describe.describe_embedding(file=tmp_path, model=str(tiny_model))


def test_a_strangers_metadata_cannot_spoil_the_terminal(tmp_path):
    import safetensors.numpy

    file = tmp_path / "odd.safetensors"
    metadata = {"\x1b[31mred": "a\nfake: line", "long": "x" * 10_000}
    safetensors.numpy.save_file({"a": learned().rows["text_encoder"]}, file, metadata)
    shown = describe.describe_embedding(file=file)
    assert "\x1b" not in shown and "\nfake" not in shown
    assert max(map(len, shown.splitlines())) < 250


def test_a_picture_with_an_embedding_still_is_a_picture(folder, tmp_path):
    [file] = convert.convert_embedding(
        source=folder, to="a1111-png", output=tmp_path / "duck.png"
    )
    with Image.open(file) as image:
        assert image.format == "PNG" and image.size == (512, 512)
        # The name stands on it.
        assert len(image.convert("L").getcolors()) > 10


# Programs that call a word by its file


@pytest.mark.parametrize("program", programs.NAMED_BY_FILE)
@pytest.mark.parametrize("encoders", [1, 2])
def test_a_program_s_name_gives_its_format_and_the_word_s_name(
    tmp_path, program, encoders
):
    pytest.importorskip("torch", reason="peers load with PyTorch")
    second = np.ones((2, 1280), np.float32)
    word = learned() if encoders == 1 else with_second(second)
    registry.write(tmp_path / "run", "sdxl" if encoders == 2 else "diffusers", word)
    written = convert.convert_embedding(
        source=tmp_path / "run", to=program, output=tmp_path / "embeddings"
    )
    assert written == [tmp_path / "embeddings" / "duck-toy.safetensors"]
    if program == "comfyui":
        for name, rows in word.rows.items():
            encoder = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[name]
            found = peer_loaders.comfyui(written[0], encoder, rows.shape[1])
            np.testing.assert_array_equal(found, rows)
    else:  # Forge loads as AUTOMATIC1111 does
        found = peer_loaders.automatic1111(written[0], 768)
        for rows, ours in zip(found.values(), word.rows.values(), strict=True):
            np.testing.assert_array_equal(np.atleast_2d(rows), ours)


@pytest.mark.parametrize("width", [64, 1280])
def test_no_file_is_made_for_a_program_that_has_not_the_model(tmp_path, width):
    registry.write(tmp_path / "run", "diffusers", learned(width=width))
    with pytest.raises(UserError, match="comfyui has no such model"):
        convert.convert_embedding(
            source=tmp_path / "run", to="comfyui", output=tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_the_page_names_the_programs_that_are_told():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| [.\w, ]+ \| (.+?) \| ", page, re.MULTILINE)
    said = {name: text for name, text in rows if name in registry.FORMATS}
    assert said.keys() == programs.READERS.keys() == registry.FORMATS.keys()
    for name, told in programs.READERS.items():
        for program in told:
            short = program.removesuffix("'s sd-scripts")
            assert short in said[name], (name, program)


@pytest.mark.parametrize("name", [n for n in registry.FORMATS if n != "sdxl"])
def test_programs_that_are_told_load_the_file(tmp_path, name):
    """By their own rules, stated anew."""
    pytest.importorskip("torch", reason="peers load with PyTorch")
    word = learned(1)
    [file, *_] = registry.write(tmp_path / "run", name, word)
    rows = word.rows["text_encoder"]
    told = programs.readers(name, word)
    loaders = {
        "AUTOMATIC1111": lambda: peer_loaders.automatic1111(file, 768)["clip_l"],
        "ComfyUI": lambda: peer_loaders.comfyui(file, "clip_l", 768),
        "kohya's sd-scripts": lambda: peer_loaders.kohya(file),
    }
    for program in loaders.keys() & {*told}:
        np.testing.assert_array_equal(np.atleast_2d(loaders[program]()), rows)


# Several files


@pytest.fixture
def files(tmp_path):
    """Two good files, one that is none, and one in a format of another program."""
    folder = tmp_path / "words"
    cat = learned()._replace(token="<cat>")
    registry.write(folder / "a.safetensors", "diffusers", learned())
    registry.write(folder / "b.pt", "a1111", cat)
    (folder / "c.bin").write_bytes(b"<html>")
    (folder / "notes.md").write_text("mine")
    return folder


def test_of_several_files_the_good_ones_are_done(files, tmp_path):
    out = tmp_path / "out"
    gone = str(tmp_path / "gone.pt")
    convert_all, inspect_all, as_json = doors.run(
        [
            ["convert", str(files), gone, "--to=kohya", f"--output={out}", "--json"],
            ["inspect", str(files), gone],
            ["inspect", "--json", str(files), gone],
        ]
    )
    for ran in (convert_all, inspect_all, as_json):
        assert ran.code == 2 and not ran.asked
        bad = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
        assert len(bad) == 2 and "c.bin is no embedding" in "".join(bad)
        assert "gone.pt does not exist" in "".join(bad)
    assert {path.name for path in out.iterdir()} == {
        "cat.safetensors",
        "duck-toy.safetensors",
    }
    np.testing.assert_array_equal(
        load_embedding(out / "cat.safetensors").rows["text_encoder"],
        learned().rows["text_encoder"],
    )
    done = {each["token"]: each for each in json.loads(convert_all.stdout)}
    assert done["<cat>"] == {
        "source": str(files / "b.pt"),
        "format": "a1111",
        "to": "kohya",
        "token": "<cat>",
        "files": [str(out / "cat.safetensors")],
    }
    first, second = inspect_all.stdout.strip().split("\n\n")
    assert "token: <duck-toy>" in first and "token: <cat>" in second
    told = json.loads(as_json.stdout)
    assert [each["kind"] for each in told] == ["embedding", "embedding", *["error"] * 2]


def test_the_shape_of_json_is_the_one_that_is_documented(folder):
    [told] = json.loads(describe.describe_embedding(file=[folder], json_=True))
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for key in told:
        assert f"`{key}`" in page, key
    norms = np.linalg.norm(learned().rows["text_encoder"], axis=1)
    encoder = told["encoders"]["text_encoder"]
    assert encoder["width"] == 768
    np.testing.assert_allclose(encoder["norms"], norms, atol=1e-6)
    assert (told["kind"], told["token"], told["vectors"]) == ("embedding", TOKEN, 2)
    assert told["metadata"]["ti_flax.steps"] == "300"


def test_words_of_one_name_are_numbered(tmp_path):
    for name in ("a", "b"):
        registry.write(tmp_path / "runs" / name, "diffusers", learned())
    written = convert.convert_embedding(
        source=tmp_path / "runs", to="comfyui", output=tmp_path / "out"
    )
    assert [path.name for path in written] == [
        "duck-toy.safetensors",
        "duck-toy-2.safetensors",
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"output": "one.safetensors"}, "output: expected a folder for several files"),
        ({"to": "replicate"}, "to: expected one word for replicate"),
    ],
)
def test_several_files_do_not_go_into_one(files, tmp_path, monkeypatch, keys, line):
    monkeypatch.chdir(tmp_path)
    (files / "c.bin").unlink()
    given = {"source": [files], "to": "kohya", "output": "out", **keys}
    with pytest.raises(UserError, match=line):
        convert.convert_embedding(**given)


def test_both_halves_of_a_pair_are_one_word(tmp_path):
    second = np.ones((2, 1280), np.float32)
    registry.write(tmp_path, "diffusers", with_second(second))
    (tmp_path / "other.pt").write_bytes(b"not read: a run's folder is one word")
    assert [path.name for path in find.find_files(tmp_path)] == [find.SAFETENSORS_NAME]
    found = json.loads(describe.describe_embedding(file=tmp_path, json_=True))
    assert found[0]["programs"] == ["diffusers"]


def test_a_length_is_judged_by_the_model_s_words(tiny_model, tmp_path):
    from ti_flax.models import base_model

    params = base_model.open_model(str(tiny_model)).load("text_encoder")
    table = np.asarray(params["embeddings"]["token_embedding"]["embedding"])
    lengths = np.sort(np.linalg.norm(table, axis=1))
    rows = table[:2] / np.linalg.norm(table[:2], axis=1, keepdims=True)
    rows = rows * np.float32([[np.median(lengths)], [2 * lengths[-1]]])
    registry.write(tmp_path, "diffusers", Embedding(TOKEN, {"text_encoder": rows}))
    keys = {"file": tmp_path, "model": str(tiny_model)}
    lines = describe.describe_embedding(**keys).splitlines()
    short, long = (line for line in lines if line.startswith("length of vector"))
    assert short == "length of vector 1: 1.00 of the median, as long as a word's"
    assert long.endswith(
        "longer than 99 % of the words: it may drown the others of a prompt"
    )
    [told] = json.loads(describe.describe_embedding(**keys, json_=True))
    words = told["encoders"]["text_encoder"]["vocabulary"]
    assert words["median"] == pytest.approx(np.median(lengths), abs=1e-4)


def test_a_path_may_start_at_home_and_is_not_empty(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert "<duck-toy>" in describe.describe_embedding(file="~/a.safetensors")
    with pytest.raises(UserError, match="expected a path, found an empty text"):
        describe.describe_embedding(file=["~/a.safetensors", ""])
