"""PyTorch users load what export writes; load_embedding reads what diffusers writes."""

import json
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.numpy
from clip_vocabulary import write_clip_tokenizer
from PIL import Image

from ti_flax.formats.find import Embedding, load_embedding
from ti_flax.pickles import torch_zip
from ti_flax.publishing.concept_folder import export_concept
from ti_flax.runtime.errors import UserError

TOKEN = "<duck-toy>"
FILES = ["learned_embeds.bin", "learned_embeds.safetensors"]


def random_rows(vectors: int, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(vectors)
    return rng.standard_normal((vectors, width), np.float32)


def flat_pictures(count: int, size: int = 16) -> np.ndarray:
    """Pictures of one colour each, which JPEG keeps to a step or two."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (count, size, size, 3))


def export(folder: Path, vectors: int = 2, pictures: int = 2) -> np.ndarray:
    rows = random_rows(vectors)
    export_concept(
        folder,
        Embedding(TOKEN, {"text_encoder": rows}),
        "object",
        flat_pictures(pictures),
    )
    return rows


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def write_bin(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    torch_zip.save(path, tensors)
    return path


def refusal(path: Path) -> str:
    """The one line with which `load_embedding` refuses a file, without its path."""
    with pytest.raises(UserError) as caught:
        load_embedding(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


# What is written


def test_a_concept_folder_holds_what_the_concepts_library_has(tmp_path):
    folder = tmp_path / "made" / "on the way"
    export(folder)
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.*")}
    assert found == {
        *FILES,
        "token_identifier.txt",
        "type_of_concept.txt",
        "concept_images/0.jpeg",
        "concept_images/1.jpeg",
    }
    assert (folder / "token_identifier.txt").read_bytes() == TOKEN.encode()
    assert (folder / "type_of_concept.txt").read_bytes() == b"object"


def test_a_style_and_a_foreign_word_are_written_as_they_are(tmp_path):
    embedding = Embedding("<käse-ń>", {"text_encoder": random_rows(1)})
    export_concept(tmp_path, embedding, "style", flat_pictures(1))
    assert (tmp_path / "token_identifier.txt").read_bytes() == "<käse-ń>".encode()
    assert (tmp_path / "type_of_concept.txt").read_bytes() == b"style"
    for name in FILES:
        assert load_embedding(tmp_path / name).token == "<käse-ń>"


@pytest.mark.parametrize("vectors", [1, 3])
def test_safetensors_has_one_key_with_rows_in_two_dimensions(tmp_path, vectors):
    rows = export(tmp_path, vectors)
    data = (tmp_path / "learned_embeds.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {"format": "pt", "ti_flax.token": TOKEN},
        TOKEN: {
            "dtype": "F32",
            "shape": [vectors, 8],
            "data_offsets": [0, rows.nbytes],
        },
    }
    assert data[8 + length :] == rows.tobytes()


def test_rows_are_written_by_value_whatever_their_memory_order(tmp_path):
    rows = random_rows(3)
    embedding = Embedding(TOKEN, {"text_encoder": np.asfortranarray(rows)})
    export_concept(tmp_path, embedding, "object", flat_pictures(1))
    for name in FILES:
        np.testing.assert_array_equal(
            load_embedding(tmp_path / name).rows["text_encoder"], rows
        )


def test_pictures_are_jpegs_of_the_training_pictures(tmp_path):
    export(tmp_path, pictures=3)
    for number, picture in enumerate(flat_pictures(3)):
        with Image.open(tmp_path / "concept_images" / f"{number}.jpeg") as image:
            assert image.format == "JPEG"
            difference = np.asarray(image).astype(int) - picture
        assert difference.shape == picture.shape
        assert np.abs(difference).max() <= 3


def test_the_same_input_gives_the_same_files(tmp_path):
    for name in ("one", "other"):
        export(tmp_path / name)
    for file in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "other" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes()


def test_a_second_export_leaves_nothing_of_the_first(tmp_path):
    export(tmp_path, vectors=1, pictures=12)
    (tmp_path / "concept_images" / "my own.jpeg").write_bytes(b"kept")
    rows = export(tmp_path, vectors=3, pictures=2)
    pictures = {file.name for file in (tmp_path / "concept_images").iterdir()}
    assert pictures == {"0.jpeg", "1.jpeg", "my own.jpeg"}
    for name in FILES:
        np.testing.assert_array_equal(
            load_embedding(tmp_path / name).rows["text_encoder"], rows
        )


def test_a_failed_export_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    rows = export(tmp_path)

    def full_disk(path, tensors):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_zip, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path, vectors=5)
    np.testing.assert_array_equal(
        load_embedding(tmp_path / FILES[0]).rows["text_encoder"], rows
    )
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


# What PyTorch users load


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_rows_back(tmp_path, vectors, name):
    torch = pytest.importorskip("torch")
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    rows = export(tmp_path, vectors)
    [found] = loaders.load_textual_inversion_state_dicts(
        [str(tmp_path)], weight_name=name, local_files_only=True
    )
    assert list(found) == [TOKEN]
    assert found[TOKEN].dtype == torch.float32
    np.testing.assert_array_equal(found[TOKEN].numpy(), rows)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_text_encoder_of_diffusers_learns_the_word(tmp_path, vectors, name):
    pytest.importorskip("torch")
    loaders = pytest.importorskip("diffusers.loaders")
    import transformers

    write_clip_tokenizer(tmp_path / "tokenizer")
    rows = export(tmp_path, vectors)

    class Pipeline(loaders.TextualInversionLoaderMixin):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
        text_encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=rows.shape[1],
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
        components: ClassVar = {}
        hf_device_map = None

    pipeline = Pipeline()
    pipeline.load_textual_inversion(str(tmp_path), weight_name=name)
    prompt = pipeline.maybe_convert_prompt(f"a {TOKEN}", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt, add_special_tokens=False).input_ids[1:]
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    np.testing.assert_array_equal(table[ids].numpy(), rows)


# What is read


def test_a_folder_gives_its_safetensors_and_else_its_bin(tmp_path):
    write_bin(tmp_path / "learned_embeds.bin", {"old": random_rows(1)})
    assert load_embedding(tmp_path).token == "old"
    write_safetensors(tmp_path / "learned_embeds.safetensors", {"new": random_rows(1)})
    assert load_embedding(str(tmp_path)).token == "new"


@pytest.mark.parametrize("key", [TOKEN, "clip_l"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("write", [write_bin, write_safetensors])
def test_other_precisions_are_read_as_float32(tmp_path, write, dtype, key):
    rows = random_rows(2).astype(np.dtype(dtype))
    found = load_embedding(write(tmp_path / "precise", {key: rows})).rows[
        "text_encoder"
    ]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_torch_writes_is_read(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    rows = torch.from_numpy(random_rows(2)).to(getattr(torch, dtype))
    torch.save({TOKEN: rows}, tmp_path / "learned_embeds.bin")
    save_file({TOKEN: rows}, tmp_path / "learned_embeds.safetensors", {"format": "pt"})
    for name in FILES:
        found = load_embedding(tmp_path / name)
        assert found.token == TOKEN
        np.testing.assert_array_equal(found.rows["text_encoder"], rows.float().numpy())


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_bin, "wrong.safetensors"), (write_safetensors, "wrong.bin")],
)
def test_a_file_is_known_by_its_content(tmp_path, write, name):
    assert (
        load_embedding(write(tmp_path / name, {TOKEN: random_rows(2)})).token == TOKEN
    )


@pytest.mark.parametrize("length", [128, 0x4B50])
def test_a_safetensors_header_of_any_length_is_known(tmp_path, length):
    """Its length comes first, and these two begin like a pickle and like a zip."""
    rows = random_rows(1)
    entry = {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, rows.nbytes]}
    header = json.dumps({TOKEN: entry}).encode().ljust(length)
    path = tmp_path / "padded.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + rows.tobytes())
    np.testing.assert_array_equal(load_embedding(path).rows["text_encoder"], rows)


# What is refused


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "found 0 key(s)"),
        ({"a": random_rows(1), "b": random_rows(1)}, "found 2 key(s) 'a, b'"),
        ({TOKEN: np.zeros((1, 2, 3), np.float32)}, "with 3 dimensions"),
        ({TOKEN: np.zeros((), np.float32)}, "with 0 dimensions"),
        ({TOKEN: np.zeros((0, 8), np.float32)}, "empty tensor"),
        ({"": random_rows(1)}, "expected a word"),
        ({" ": random_rows(1)}, "expected a word"),
        ({"a\nb": random_rows(1)}, "'a\\nb': expected a word"),
        ({"\x1b[31m": random_rows(1)}, "expected a word"),
        ({TOKEN: np.float32([[0, np.nan], [1, 2]])}, "in 1 of 2 rows"),
        ({TOKEN: np.float64([[0, 1e300]])}, "in 1 of 1 rows"),
        ({TOKEN: np.uint64([[0x7FF0000000000001]]).view("f8")}, "in 1 of 1 rows"),
        ({TOKEN: np.float16([[0, np.inf], [np.inf, 2]])}, "in 2 of 2 rows"),
    ],
)
@pytest.mark.parametrize("write", [write_bin, write_safetensors])
def test_content_that_is_no_embedding_is_refused(tmp_path, write, tensors, words):
    assert words in refusal(write(tmp_path / "odd", tensors))


def test_whole_numbers_are_refused(tmp_path):
    numbers = {TOKEN: np.arange(4)}
    assert "int64" in refusal(write_bin(tmp_path / "whole.bin", numbers))
    assert "I64" in refusal(write_safetensors(tmp_path / "whole.st", numbers))


def test_missing_and_foreign_files_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.bin")
    assert "folder without an embedding" in refusal(tmp_path)
    for content in (b"", b"text", b"GIF89a"):
        (tmp_path / "foreign").write_bytes(content)
        assert "no embedding file" in refusal(tmp_path / "foreign")


def test_a_whole_model_is_refused_unread(tmp_path):
    with open(tmp_path / "model.ckpt", "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(4 * 2**30)
    assert "4294967296 bytes" in refusal(tmp_path / "model.ckpt")
