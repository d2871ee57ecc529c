"""`python -m ti_flax.verify`: what PyTorch makes of an export, told as it is."""

import sys

import numpy as np
import pytest
import single_files
from safetensors.numpy import load_file

from ti_flax import verify as door
from ti_flax.formats import registry
from ti_flax.generation import verify
from ti_flax.models import base_model
from ti_flax.quickstart import settings
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding
from ti_flax.text.initial_rows import initial_rows, initializer_ids
from ti_flax.text.tokenizer import load_tokenizer

TOKEN = "<bumbee>"
ENCODER = "text_encoder"
STEPS = 4


@pytest.fixture(scope="module")
def rows():
    """Two vectors that draw something."""
    model = base_model.open_model(str(settings.MODEL))
    embeddings = model.load("text_encoder")["embeddings"]
    ids = initializer_ids(
        load_tokenizer(settings.MODEL / "tokenizer"), "striped critter"
    )
    table = np.asarray(embeddings["token_embedding"]["embedding"])
    return initial_rows(table, ids, 2, jitter=1.0, seed=0)


@pytest.fixture
def torch():
    pytest.importorskip("diffusers")
    return pytest.importorskip("torch")


def test_a_sound_export_agrees_in_everything(
    torch, rows, tmp_path, capsys, monkeypatch
):
    registry.write(tmp_path, "diffusers", Embedding(TOKEN, {"text_encoder": rows}))
    arguments = [
        *("verify", str(tmp_path), "--model", str(settings.MODEL)),
        *("--prompt", f"a photo of a {TOKEN}", "--steps", str(STEPS), "--seed", "5"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    door.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["agrees"] * 5
    for line, words in zip(
        lines,
        (f"as {TOKEN}, {TOKEN}_1", "rows: 2", "token ids", "text encoder", "picture"),
        strict=True,
    ):
        assert words in line


def test_a_text_encoder_that_differs_is_told_and_ends_in_code_1(
    torch, rows, tmp_path, capsys, monkeypatch
):
    import transformers

    registry.write(
        tmp_path / "cat.pt", "a1111", Embedding(TOKEN, {"text_encoder": rows})
    )
    arguments = ["verify", str(tmp_path / "cat.pt"), "--model", str(settings.MODEL)]
    monkeypatch.setattr(sys, "argv", arguments)
    forward = transformers.CLIPTextModel.forward

    def shifted(*inputs, **options):
        output = forward(*inputs, **options)
        output.last_hidden_state = output.last_hidden_state + 0.01
        return output

    monkeypatch.setattr(transformers.CLIPTextModel, "forward", shifted)
    with pytest.raises(SystemExit) as caught:
        door.main()
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["agrees"] * 3 + ["differs"]
    assert "largest difference 1.0e-02" in lines[-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kohya", "as emb_params, emb_params_1, the word is <bumbee>"),
        ("rinongal", "does not load learned_embeds.pt (format rinongal)"),
    ],
)
def test_what_diffusers_does_not_read_is_told(torch, rows, tmp_path, name, words):
    registry.write(tmp_path, name, Embedding(TOKEN, {"text_encoder": rows}))
    [check] = verify.verify_embedding(source=tmp_path, model=settings.MODEL)
    assert not check.agrees
    assert words in check.text and "convert it to diffusers" in check.text


def test_without_pytorch_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'ti_flax\[torch\]'"):
        verify.verify_embedding(source=tmp_path, model=settings.MODEL)


def test_a_model_in_one_file_is_compared_as_a_folder_of_its_own(
    torch, tmp_path, monkeypatch
):
    """With what the keys say: diffusers' own reading of such files asks the Hub."""
    own = single_files.small_configs("sd1")
    single_files.write_folder(tmp_path / "model", own)
    tensors = single_files.tensors_of(tmp_path / "model", own)
    file = single_files.save(tmp_path / "model.safetensors", tensors)
    word = np.random.default_rng(0).normal(0, 0.02, (2, 64)).astype(np.float32)
    registry.write(tmp_path / "word", "diffusers", Embedding(TOKEN, {ENCODER: word}))
    opened = []

    def open_pipeline(*arguments):
        opened.append(open_real(*arguments))
        return opened[-1]

    open_real = verify._open_pipeline
    monkeypatch.setattr(verify, "_open_pipeline", open_pipeline)
    checks = verify.verify_embedding(
        source=tmp_path / "word", model=file, prediction_type="v_prediction"
    )
    assert [check.agrees for check in checks] == [True] * 4, checks
    (pipeline,) = opened
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    unet = load_file(tmp_path / "model" / "unet" / single_files.FILES["unet"])
    for key, theirs in pipeline.unet.state_dict().items():
        np.testing.assert_array_equal(theirs.numpy(), unet[key])
