"""Every format: written for its program's loader, read from what its program writes."""

import base64
import io
import itertools
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import peer_loaders
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ti_flax.formats import registry, safetensors_file
from ti_flax.formats.find import load_embedding
from ti_flax.pickles import torch_zip
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

TOKEN = "<duck-toy>"
FIRST, SECOND = "text_encoder", "text_encoder_2"
PROVENANCE = {"version": "0.1.0", "base_model": "owner/name", "steps": "300"}
ONE_ENCODER = [name for name in registry.FORMATS if name != "sdxl"]
FLAT = ["diffusers-flat", "flax"]
# (format, suffix) of every file for one encoder
FILES = [
    (name, suffix) for name in ONE_ENCODER for suffix in registry.FORMATS[name].suffixes
]
TWO_ENCODERS = [
    name for name, form in registry.FORMATS.items() if form.num_encoders == 2
]


def rows_of(vectors: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((vectors, width), np.float32)


def one_encoder(vectors: int = 2, width: int = 768) -> Embedding:
    return Embedding(TOKEN, {FIRST: rows_of(vectors, width)}, PROVENANCE)


def two_encoders(vectors: int = 2) -> Embedding:
    first, second = rows_of(vectors, 768), rows_of(vectors, 1280, seed=1)
    return Embedding(TOKEN, {FIRST: first, SECOND: second}, PROVENANCE)


def refusal(path: Path, token: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_embedding(path, token)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path} ")
    return str(caught.value).removeprefix(f"{path} ")


def assert_same_rows(found: Embedding, wanted: Embedding) -> None:
    assert list(found.rows) == list(wanted.rows)
    for rows, same in zip(found.rows.values(), wanted.rows.values(), strict=True):
        assert rows.tobytes() == same.tobytes()
        assert rows.dtype == np.float32 and rows.shape == same.shape
        assert rows.flags.c_contiguous and rows.flags.writeable


# What programs load


@pytest.fixture
def write(tmp_path):
    """Writes an embedding in a format and gives the file, under any name."""

    def write(name: str, embedding: Embedding, file: str = "") -> Path:
        return registry.write(tmp_path / file, name, embedding)[0]

    return write


@pytest.fixture
def diffusers_loads(tmp_path):
    """The word and its rows by vector as diffusers puts them into a text encoder."""
    pytest.importorskip("torch")
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")

    class Vocabulary:
        def get_vocab(self) -> dict[str, int]:
            return {"cat": 0}

    def load(file: Path) -> dict[str, np.ndarray]:
        mixin = loaders.TextualInversionLoaderMixin
        states = loaders.load_textual_inversion_state_dicts(
            [str(file.parent)], weight_name=file.name, local_files_only=True
        )
        tokens, rows = mixin._retrieve_tokens_and_embeddings(
            [None], states, Vocabulary()
        )
        tokens, rows = mixin._extend_tokens_and_embeddings(tokens, rows, Vocabulary())
        return {t: r.detach().numpy() for t, r in zip(tokens, rows, strict=True)}

    return load


@pytest.mark.parametrize(
    ("name", "file", "vectors"),
    [
        ("diffusers", "cat.safetensors", 3),
        ("diffusers", "cat.bin", 1),
        ("diffusers", "cat.bin", 3),
        ("diffusers-flat", "cat.bin", 1),
        ("diffusers-flat", "cat.safetensors", 1),
        ("a1111", "cat.pt", 1),
        ("a1111", "cat.pt", 3),
    ],
)
def test_diffusers_loads_it(write, diffusers_loads, name, file, vectors):
    wanted = one_encoder(vectors)
    found = diffusers_loads(write(name, wanted, file))
    assert list(found) == [TOKEN, *(f"{TOKEN}_{i}" for i in range(1, vectors))]
    np.testing.assert_array_equal(list(found.values()), wanted.rows[FIRST])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_diffusers_loads_the_two_files_of_sdxl(tmp_path, diffusers_loads, suffix):
    wanted = two_encoders()
    files = registry.write(tmp_path / f"learned_embeds.{suffix}", "diffusers", wanted)
    assert [file.stem for file in files] == ["learned_embeds", "learned_embeds_2"]
    for file, rows in zip(files, wanted.rows.values(), strict=True):
        np.testing.assert_array_equal(list(diffusers_loads(file).values()), rows)


def test_diffusers_takes_either_half_of_an_sdxl_file_as_a_dictionary(write):
    """As its documentation has it: load the file, pass one tensor for each encoder."""
    pytest.importorskip("torch")
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    from safetensors.torch import load_file

    wanted = two_encoders()
    halves = load_file(write("sdxl", wanted))
    for key, rows in (("clip_l", wanted.rows[FIRST]), ("clip_g", wanted.rows[SECOND])):
        [found] = loaders.load_textual_inversion_state_dicts([halves[key]])
        np.testing.assert_array_equal(found.numpy(), rows)


@pytest.mark.parametrize("width", [768, 1024])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a1111", "cat.pt"),
        ("a1111-png", "cat.png"),
        ("diffusers", "cat.safetensors"),
        ("diffusers", "cat.bin"),
        ("kohya", "cat.pt"),
        ("kohya", "cat.safetensors"),
        ("rinongal", "cat.pt"),
    ],
)
def test_automatic1111_loads_it(write, name, file, width):
    torch = pytest.importorskip("torch")
    wanted = one_encoder(width=width)
    # A1111 opens a .pt with an unpickler of its own that knows ParameterDict.
    with torch.serialization.safe_globals([torch.nn.ParameterDict]):
        found = peer_loaders.automatic1111(write(name, wanted, file), width)
    np.testing.assert_array_equal(found["clip_l"], wanted.rows[FIRST])


@pytest.mark.parametrize("name", ["sdxl", "kohya", "invokeai", "onetrainer"])
def test_automatic1111_comfyui_invokeai_and_kohya_load_sdxl(write, name):
    pytest.importorskip("torch")
    wanted = two_encoders()
    file = write(name, wanted, "cat.safetensors")
    for load in (
        lambda path: peer_loaders.automatic1111(path, 2048),
        peer_loaders.invokeai,
        peer_loaders.kohya_sdxl,
    ):
        found = load(file)
        np.testing.assert_array_equal(found["clip_l"], wanted.rows[FIRST])
        np.testing.assert_array_equal(found["clip_g"], wanted.rows[SECOND])
    for encoder, rows in (
        ("clip_l", wanted.rows[FIRST]),
        ("clip_g", wanted.rows[SECOND]),
    ):
        found = peer_loaders.comfyui(file, encoder, rows.shape[1])
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("diffusers", "cat.safetensors"),
        ("diffusers", "cat.bin"),
        ("diffusers-flat", "cat.bin"),
        ("kohya", "cat.pt"),
        ("kohya", "cat.safetensors"),
        ("invokeai", "cat.safetensors"),
        ("onetrainer", "cat.safetensors"),
        ("onetrainer-bundle", "cat.safetensors"),
        ("a1111", "cat.pt"),
    ],
)
def test_comfyui_loads_it(write, name, file):
    pytest.importorskip("torch")
    wanted = one_encoder(vectors=1 if name in FLAT else 2)
    found = peer_loaders.comfyui(write(name, wanted, file), "clip_l", 768)
    np.testing.assert_array_equal(found, wanted.rows[FIRST])


@pytest.mark.parametrize("width", [768, 1024])
@pytest.mark.parametrize(
    ("name", "file", "vectors"),
    [
        ("invokeai", "cat.safetensors", 3),
        ("kohya", "cat.safetensors", 3),
        ("a1111", "cat.pt", 3),
        ("diffusers-flat", "cat.bin", 1),
    ],
)
def test_invokeai_knows_the_base_model_and_loads_it(write, name, file, vectors, width):
    pytest.importorskip("torch")
    wanted = one_encoder(vectors, width)
    found = peer_loaders.invokeai(write(name, wanted, file))
    np.testing.assert_array_equal(found["clip_l"], wanted.rows[FIRST])


@pytest.mark.parametrize(
    ("name", "file"),
    [("invokeai", "cat.safetensors"), ("kohya", "cat.pt"), ("a1111", "cat.pt")],
)
def test_invokeais_own_loader_loads_it(write, name, file):
    """tests/run.sh installs InvokeAI on Python 3.11, without the PyTorch it pins."""
    theirs = pytest.importorskip("invokeai.backend.textual_inversion")
    wanted = one_encoder()
    found = theirs.TextualInversionModelRaw.from_checkpoint(write(name, wanted, file))
    np.testing.assert_array_equal(found.embedding.detach().numpy(), wanted.rows[FIRST])


def test_invokeais_own_loader_loads_sdxl(write):
    theirs = pytest.importorskip("invokeai.backend.textual_inversion")
    wanted = two_encoders()
    found = theirs.TextualInversionModelRaw.from_checkpoint(write("invokeai", wanted))
    np.testing.assert_array_equal(found.embedding.numpy(), wanted.rows[SECOND])
    np.testing.assert_array_equal(found.embedding_2.numpy(), wanted.rows[FIRST])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kohya", "cat.safetensors"),
        ("kohya", "cat.pt"),
        ("diffusers", "cat.safetensors"),
        ("a1111", "cat.pt"),
    ],
)
def test_kohya_loads_it(write, name, file):
    pytest.importorskip("torch")
    wanted = one_encoder()
    found = peer_loaders.kohya(write(name, wanted, file))
    np.testing.assert_array_equal(found, wanted.rows[FIRST])


@pytest.mark.parametrize(
    ("name", "file"), [("onetrainer", "cat.safetensors"), ("a1111", "cat.pt")]
)
def test_onetrainer_loads_it(write, name, file):
    pytest.importorskip("torch")
    wanted = one_encoder()
    found = peer_loaders.onetrainer(write(name, wanted, file))
    np.testing.assert_array_equal(found, wanted.rows[FIRST])


def test_onetrainer_finds_it_bundled_by_its_placeholder(write):
    wanted = two_encoders()
    found = safetensors.numpy.load_file(write("onetrainer-bundle", wanted))
    assert set(found) == {f"bundle_emb.{TOKEN}.clip_l", f"bundle_emb.{TOKEN}.clip_g"}
    np.testing.assert_array_equal(
        found[f"bundle_emb.{TOKEN}.clip_g"], wanted.rows[SECOND]
    )


def test_the_original_code_loads_it(write):
    pytest.importorskip("torch")
    wanted = one_encoder()
    found = peer_loaders.rinongal(write("rinongal", wanted))
    assert list(found) == [TOKEN]
    np.testing.assert_array_equal(found[TOKEN], wanted.rows[FIRST])


@pytest.mark.parametrize("make", [one_encoder, two_encoders])
def test_replicate_loads_it(write, make):
    wanted = make()
    rows, shorthand = peer_loaders.replicate(write("replicate", wanted))
    assert shorthand == {TOKEN: "<s0><s1>"}
    np.testing.assert_array_equal(rows["clip_l"], wanted.rows[FIRST])
    assert ("clip_g" in rows) == (SECOND in wanted.rows)


def test_the_flax_scripts_file_is_a_flat_row_by_its_token(write):
    wanted = one_encoder(vectors=1)
    found = peer_loaders.flax_script(write("flax", wanted))
    assert list(found) == [TOKEN] and found[TOKEN].shape == (768,)
    np.testing.assert_array_equal(found[TOKEN], wanted.rows[FIRST][0])


# What programs write


def test_what_automatic1111_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    rows = rows_of(2, 768)
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.tensor(rows, requires_grad=True)},
        "name": "my-duck",
        "step": 499,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": "v1-5-pruned",
    }
    torch.save(data, tmp_path / "other.pt")
    found = registry.read(tmp_path / "other.pt")
    assert (found.format, found.embedding.token) == ("a1111", "my-duck")
    assert found.metadata["step"] == 499
    assert found.metadata["sd_checkpoint_name"] == "v1-5-pruned"
    np.testing.assert_array_equal(found.embedding.rows[FIRST], rows)


def test_what_automatic1111_writes_into_a_picture_is_read(tmp_path):
    from PIL import PngImagePlugin

    rows = rows_of(2, 768)
    tensor = {"TORCHTENSOR": rows.tolist()}
    data = {"string_to_param": {"*": tensor}, "name": "my-duck", "step": 1}
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a duck")
    info.add_text(
        "sd-ti-embedding",
        base64.b64encode(json.dumps(data).encode()).decode(),
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "duck.png", pnginfo=info)
    found = registry.read(tmp_path / "duck.png")
    assert (found.format, found.embedding.token) == ("a1111-png", "my-duck")
    np.testing.assert_array_equal(found.embedding.rows[FIRST], rows)


def test_what_the_original_code_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    rows = rows_of(2, 768)
    data = {
        "string_to_token": {"duck": torch.tensor(1234)},
        "string_to_param": torch.nn.ParameterDict({"duck": torch.tensor(rows)}),
    }
    torch.save(data, tmp_path / "embeddings_gs-6099.pt")
    found = registry.read(tmp_path / "embeddings_gs-6099.pt")
    assert (found.format, found.embedding.token) == ("rinongal", "duck")
    np.testing.assert_array_equal(found.embedding.rows[FIRST], rows)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("module", ["numpy", "old numpy"])
def test_what_the_flax_script_writes_is_read(tmp_path, protocol, module):
    row = rows_of(1, 768)[0]
    buffer = io.BytesIO()
    np.save(buffer, {TOKEN: row}, allow_pickle=True)
    header = buffer.getvalue()[: 10 + struct.unpack("<H", buffer.getvalue()[8:10])[0]]
    program = pickle.dumps(np.array({TOKEN: row}, object), protocol)
    if module == "old numpy":
        # As numpy 1 named it; a name's length is beside it in protocol 4.
        program = program.replace(b"cnumpy._core.", b"cnumpy.core.")
        old, new = b"numpy._core.multiarray", b"numpy.core.multiarray"
        program = program.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
    (tmp_path / "learned_embeds.npy").write_bytes(header + program)
    found = registry.read(tmp_path / "learned_embeds.npy")
    assert (found.format, found.embedding.token) == ("flax", TOKEN)
    np.testing.assert_array_equal(found.embedding.rows[FIRST], [row])


@pytest.mark.parametrize(
    ("tensors", "metadata", "name"),
    [
        ({"emb_params": (2, 768)}, None, "invokeai"),
        (
            {"emb_params": (2, 768)},
            {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": "d"},
            "kohya",
        ),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, None, "sdxl"),
        ({"clip_l": (2, 768)}, None, "sdxl"),
        ({"emp_params": (2, 768)}, None, "onetrainer"),
        (
            {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)},
            None,
            "replicate",
        ),
    ],
)
def test_rows_without_a_token_are_named_after_the_file(
    tmp_path, tensors, metadata, name
):
    arrays = {key: rows_of(*shape) for key, shape in tensors.items()}
    file = tmp_path / "my duck.safetensors"
    safetensors.numpy.save_file(arrays, file, metadata)
    found = registry.read(file)
    assert (found.format, found.embedding.token) == (name, "my duck")
    first, *second = arrays.values()
    np.testing.assert_array_equal(found.embedding.rows[FIRST], first)
    assert (SECOND in found.embedding.rows) == bool(second)


def test_replicates_token_is_in_the_file_beside_it(tmp_path):
    file = tmp_path / "embeddings.pti"
    safetensors.numpy.save_file({"text_encoders_0": rows_of(2, 768)}, file)
    assert load_embedding(file).token == "embeddings"
    for content, token in [
        ('{"TOK": "<s0><s1>"}', "TOK"),
        ("[]", "embeddings"),
        ("{", "embeddings"),
        ("[" * 100_000, "embeddings"),
        ('{"TOK": "' + "<s0>" * 2**15 + '"}', "embeddings"),
        ("1" * 10_000, "embeddings"),
    ]:
        (tmp_path / "special_params.json").write_text(content)
        assert load_embedding(file).token == token


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder"])
def test_what_is_no_file_beside_replicates_rows_is_not_opened(tmp_path, kind):
    """A pipe without a writer waits for ever, /dev/zero has no end."""
    file, tokens = tmp_path / "embeddings.pti", tmp_path / "special_params.json"
    safetensors.numpy.save_file({"text_encoders_0": rows_of(2, 768)}, file)
    if kind == "pipe":
        os.mkfifo(tokens)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        tokens.symlink_to(tmp_path / "pipe")
    elif kind == "device":
        tokens.symlink_to("/dev/zero")
    else:
        tokens.mkdir()
    assert load_embedding(file).token == "embeddings"


def test_a_bundle_of_any_length_is_read_by_its_header(tmp_path):
    """A LoRA has 100 MB and more, of which the embeddings are a few kilobytes."""
    tensors = {
        "lora_unet_down.weight": np.zeros(5 * 2**20, np.float32),
        "bundle_emb.<a.b>.clip_l": rows_of(1, 768),
        "bundle_emb.<c>.clip_l": rows_of(2, 768, seed=2),
        "bundle_emb.<c>.clip_l_out": rows_of(2, 768),
        "lora_unet_up.weight": np.zeros(8, np.float32),
    }
    file = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(tensors, file)
    assert file.stat().st_size > safetensors_file.MAX_FILE_BYTES
    assert "'<a.b>, <c>'" in refusal(file)
    found = load_embedding(file, "<c>")
    np.testing.assert_array_equal(found.rows[FIRST], tensors["bundle_emb.<c>.clip_l"])
    assert load_embedding(file, "<a.b>").rows[FIRST].shape == (1, 768)
    assert "where one is needed" in refusal(file, "<d>")


def test_several_words_in_one_file_need_a_choice(tmp_path):
    parameters = {"<a>": rows_of(1, 8), "<b>": rows_of(2, 8)}
    data = {"string_to_token": {"<a>": 1, "<b>": 2}, "string_to_param": parameters}
    torch_zip.save(tmp_path / "two.pt", data)
    message = refusal(tmp_path / "two.pt")
    assert "holds 2 words ('<a>, <b>') where one is needed" in message
    assert "--token" in message
    assert load_embedding(tmp_path / "two.pt", "<b>").num_vectors == 2


# Round trips


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_what_is_written_is_read_back(tmp_path, name, suffix, vectors):
    wanted = one_encoder(1 if name in FLAT else vectors)
    registry.write(tmp_path / f"a{suffix}", name, wanted)
    found = registry.read(tmp_path / f"a{suffix}")
    assert found.format == name
    # kohya's .pt has no place for a word.
    nameless = (name, suffix) == ("kohya", ".pt")
    assert found.embedding.token == ("a" if nameless else TOKEN)
    assert_same_rows(found.embedding, wanted)


@pytest.mark.parametrize("source", ONE_ENCODER)
def test_rows_survive_every_way_from_one_format_to_another(tmp_path, source):
    for target in ONE_ENCODER:
        flat = source in FLAT or target in FLAT
        wanted = one_encoder(vectors=1 if flat else 3)
        [first, *_] = registry.write(tmp_path / source / "a", source, wanted)
        between = registry.read(first)
        assert between.format == source
        [second, *_] = registry.write(tmp_path / source / target, target, between[2])
        found = registry.read(second)
        assert found.format == target
        assert found.embedding.token == TOKEN
        assert_same_rows(found.embedding, wanted)


@pytest.mark.parametrize(
    ("source", "target"), [*itertools.product(TWO_ENCODERS, TWO_ENCODERS)]
)
def test_both_rows_of_sdxl_survive_every_way(tmp_path, source, target):
    wanted = two_encoders()
    [first, *_] = registry.write(tmp_path / "first", source, wanted)
    [second, *_] = registry.write(
        tmp_path / "second", target, registry.read(first).embedding
    )
    found = registry.read(second).embedding
    assert found.token == TOKEN and found.provenance == PROVENANCE
    assert_same_rows(found, wanted)


@pytest.mark.parametrize("name", [n for n in ONE_ENCODER if n not in FLAT])
def test_provenance_travels_with_the_rows(tmp_path, name):
    [file, *_] = registry.write(tmp_path, name, one_encoder())
    assert load_embedding(file).provenance == PROVENANCE


@pytest.mark.parametrize("name", ONE_ENCODER)
def test_the_same_embedding_gives_the_same_bytes(tmp_path, name):
    wanted = one_encoder(vectors=1)
    for folder in ("one", "other"):
        registry.write(tmp_path / folder, name, wanted)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("embedding", "architecture", "prediction"),
    [
        (one_encoder(), "stable-diffusion-v1", "epsilon"),
        (one_encoder(width=1024), "stable-diffusion-v2-512", "epsilon"),
        (
            one_encoder(width=1024)._replace(
                provenance={"prediction_type": "v_prediction", "resolution": "768"}
            ),
            "stable-diffusion-v2-768-v",
            "v",
        ),
        (two_encoders(), "stable-diffusion-xl-v1-base", "epsilon"),
    ],
)
def test_kohyas_metadata_follow_modelspec(
    tmp_path, embedding, architecture, prediction
):
    [file] = registry.write(tmp_path, "kohya", embedding)
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    spec = {
        key.removeprefix("modelspec."): text
        for key, text in metadata.items()
        if key.startswith("modelspec.")
    }
    # The specification's required keys, and those that say what the rows are for.
    assert spec["sai_model_spec"] == "1.0.1"
    assert spec["architecture"] == f"{architecture}/textual-inversion"
    assert spec["implementation"] and spec["title"] == TOKEN
    assert spec["trigger_phrase"] == TOKEN
    assert spec["prediction_type"] == prediction
    assert ("resolution" in spec) == ("resolution" in embedding.provenance)


# What is refused


@pytest.mark.parametrize(
    "name", [n for n, form in registry.FORMATS.items() if form.num_encoders == 1]
)
def test_sdxl_is_not_squeezed_into_one_encoder(tmp_path, name):
    with pytest.raises(UserError, match=r"2 text encoders \(SDXL\).*convert to"):
        registry.write(tmp_path, name, two_encoders(1))


@pytest.mark.parametrize("name", FLAT)
def test_several_vectors_are_not_squeezed_into_one(tmp_path, name):
    with pytest.raises(UserError, match="has 2 vectors, a flat file holds one"):
        registry.write(tmp_path, name, one_encoder())


def test_one_encoder_is_no_sdxl(tmp_path):
    with pytest.raises(UserError, match=r"Stable Diffusion 1\.x\): SDXL has two"):
        registry.write(tmp_path, "sdxl", one_encoder())


def test_half_an_sdxl_pair_or_a_wrong_half_is_refused(tmp_path):
    registry.write(tmp_path, "diffusers", two_encoders())
    second = tmp_path / "learned_embeds_2.safetensors"
    found = registry.read(second).embedding
    assert "(or SDXL's second text encoder" in found.family
    safetensors.numpy.save_file({"<other>": rows_of(2, 1280)}, second)
    assert "not the other half" in refusal(tmp_path / "learned_embeds.safetensors")
    safetensors.numpy.save_file({TOKEN: rows_of(3, 1280)}, second)
    message = refusal(tmp_path / "learned_embeds.safetensors")
    assert "2 and 3 vectors for its text encoders" in message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_l": (2, 768), "t5": (2, 4096)}, "'t5' beside CLIP's rows"),
        ({"emb_params": (2, 768), "else": (1, 1)}, "'else' beside CLIP's rows"),
        ({"clip_g": (2, 1280)}, "known format"),
        ({"t5xxl": (2, 4096)}, "known format"),
        ({"bundle_emb.<a>.t5": (2, 4096)}, "'t5' beside CLIP's rows"),
        ({"bundle_emb.<a>.clip_g": (2, 1280)}, "rows for text_encoder_2 alone"),
        ({"emb_params": (226, 8)}, "226 vectors of width 8"),
        ({"emb_params": (2, 8193)}, "2 vectors of width 8193"),
    ],
)
def test_other_families_and_files_are_refused(tmp_path, tensors, words):
    arrays = {key: rows_of(*shape) for key, shape in tensors.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "odd.safetensors")
    assert words in refusal(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "value",
    [
        {"string_to_param": {"*": 3}, "name": "a"},
        {"string_to_param": {}, "name": "a"},
        {"string_to_param": {"*": None}},
        {"string_to_param": {"*": "rows"}, "name": None},
        {"string_to_param": {"*": rows_of(1, 8) * np.nan}, "name": "a"},
        {"string_to_param": {"*": rows_of(0, 8)}, "name": "a"},
        {"string_to_param": {"*": rows_of(1, 8)}, "name": "a\nb"},
        {"string_to_param": 3, "name": "a"},
    ],
)
def test_a_dictionary_without_sound_rows_is_refused(tmp_path, value):
    torch_zip.save(tmp_path / "odd.pt", value)
    refusal(tmp_path / "odd.pt")


class Payload:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_nothing_in_a_npy_is_executed(tmp_path, protocol):
    import os

    marker = tmp_path / "executed"
    buffer = io.BytesIO()
    np.save(buffer, {"a": 1}, allow_pickle=True)
    header = buffer.getvalue()[: 10 + struct.unpack("<H", buffer.getvalue()[8:10])[0]]
    program = pickle.dumps(Payload(os.system, (f"touch {marker}",)), protocol)
    (tmp_path / "evil.npy").write_bytes(header + program)
    assert "nothing was executed" in refusal(tmp_path / "evil.npy")
    assert not marker.exists()
    np.load(tmp_path / "evil.npy", allow_pickle=True)
    assert marker.exists(), "the program does nothing: this test would prove nothing"


def test_a_bare_array_and_an_odd_npy_are_refused(tmp_path):
    file = tmp_path / "odd.npy"
    np.save(file, rows_of(2, 768))
    assert "bare array" in refusal(file)
    for value in ([1, 2], {"a": 3}, {"a": np.arange(3)}, {"a": rows_of(1, 8)[0] * 1j}):
        np.save(file, np.array(value, object), allow_pickle=True)
        refusal(file)


def test_a_picture_without_an_embedding_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "without an embedding" in refusal(tmp_path / "plain.png")


@pytest.mark.parametrize(
    "text", ["", "!", "AAAA", "W10=", "e30=", "MTI=", "W1tbW1tb", "eyJhIjogMX0="]
)
def test_a_picture_with_a_broken_chunk_is_refused(tmp_path, text):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=info)
    refusal(tmp_path / "odd.png")


def header_of(**entry: object) -> bytes:
    """A safetensors file too long for an embedding, with one bundled tensor."""
    tensor = {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, 32], **entry}
    text = json.dumps({"bundle_emb.<a>.clip_l": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32)


@pytest.mark.parametrize(
    "data",
    [
        header_of(data_offsets=[0, 2**60]),
        header_of(data_offsets=[-64, -32]),
        header_of(data_offsets=[32, 0]),
        header_of(data_offsets=[0]),
        header_of(data_offsets=["a", "b"]),
        header_of(shape=[2**62, 2**62]),
        header_of(shape=None),
        header_of(dtype="F31"),
        struct.pack("<Q", 2**60) + b"{",
        struct.pack("<Q", 9) + b'{"bundle_',
        struct.pack("<Q", 30) + b'{"bundle_emb.a.b": 3}'.ljust(30),
        struct.pack("<Q", 30) + b'{"__metadata__": 3}'.ljust(30),
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    ],
)
def test_long_files_that_lie_about_a_bundle_are_refused(tmp_path, data):
    with open(tmp_path / "lora.safetensors", "wb") as file:
        file.write(data)
        file.truncate(safetensors_file.MAX_FILE_BYTES + 1)
    refusal(tmp_path / "lora.safetensors")


@pytest.fixture(scope="module")
def every_file(tmp_path_factory):
    """A file for each of FILES, as bytes; and a path to write what becomes of them."""
    folder = tmp_path_factory.mktemp("every")
    files = {}
    for name, suffix in FILES:
        path = folder / f"{name}{suffix}"
        registry.write(path, name, one_encoder(1, 8))
        files[name, suffix] = path.read_bytes()
    return files, folder / "damaged"


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_short_anywhere_is_refused(every_file, file):
    files, path = every_file
    whole = files[file]
    # Every length, but of the longest not every one.
    for length in range(0, len(whole), 1 + len(whole) // 1024):
        path.write_bytes(whole[:length])
        try:
            load_embedding(path)
        except UserError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
        else:
            # The chunk of a picture may come before what is cut away.
            assert file[0] == "a1111-png"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    file=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=6)), min_size=1),
)
def test_any_bytes_give_finite_rows_or_one_line(every_file, file, edits):
    files, path = every_file
    data = bytearray(files[file])
    for position, replacement in edits:
        start = position % len(data)
        data[start : start + len(replacement)] = replacement
    path.write_bytes(data)
    try:
        found = load_embedding(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.token.strip()
        for rows in found.rows.values():
            assert rows.ndim == 2 and rows.dtype == np.float32
            assert np.isfinite(rows).all()
