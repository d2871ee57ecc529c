"""Previews and validations show a run as it is and change nothing in it."""

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image
from reported import PROMPT, read_events, scalars

from ti_flax.config import run_config
from ti_flax.diffusion import samplers
from ti_flax.formats import find
from ti_flax.generation import generate
from ti_flax.models import base_model
from ti_flax.publishing import concept_folder
from ti_flax.reports import metrics_log
from ti_flax.runtime import errors
from ti_flax.text.initial_rows import initial_rows, initializer_ids
from ti_flax.text.tokenizer import load_tokenizer
from ti_flax.training import run as training_run

CONTROL = "a on a table"
SEED = 7


@pytest.fixture
def settings(small_model, pictures, tmp_path):
    return {
        "pretrained_model_name_or_path": str(small_model),
        "train_data_dir": pictures,
        "output_dir": tmp_path / "out",
        "placeholder_token": "<toy>",
        "initializer_token": "toy",
        "num_vectors": 2,
        "resolution": 32,
        "train_batch_size": 8,
        "max_train_steps": 4,
        "learning_rate": 0.3,
        "seed": SEED,
    }


def learn(settings, **keys):
    return training_run.train_concepts(
        run_config.Config(**settings | keys), progress=False
    )[0]


@pytest.fixture(scope="module")
def run(small_model, pictures, tmp_path_factory):
    """The folder of a run with previews, and how often their sampling was traced."""
    traces = []
    sample = samplers.sample
    output_dir = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            samplers, "sample", lambda *args: traces.append(1) or sample(*args)
        )
        learned = training_run.train_concepts(
            run_config.Config(
                pretrained_model_name_or_path=str(small_model),
                train_data_dir=pictures,
                output_dir=output_dir,
                placeholder_token="<toy>",
                initializer_token="toy",
                num_vectors=2,
                resolution=32,
                train_batch_size=8,
                max_train_steps=4,
                learning_rate=0.3,
                seed=SEED,
                validation_prompt=PROMPT,
                num_validation_images=2,
                validation_steps=3,
                validation_control=True,
            ),
            progress=False,
        )[0]
    return types.SimpleNamespace(folder=output_dir, learned=learned, traces=len(traces))


def lines(path, *left_out):
    return [
        {key: value for key, value in line.items() if key not in left_out}
        for line in metrics_log.read_lines(path)
    ]


def read_samples(folder):
    images = [Image.open(path) for path in sorted(folder.iterdir())]
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_previews_do_not_change_what_is_learned(run, settings):
    learned = learn(settings, validation_steps=1, report_to="none")
    np.testing.assert_array_equal(
        learned.rows["text_encoder"], run.learned.rows["text_encoder"]
    )
    ours, theirs = (
        lines(folder / metrics_log.METRICS_NAME, "examples_per_second")
        for folder in (settings["output_dir"], run.folder)
    )
    assert ours == theirs and len(ours) == 4
    ours, theirs = (
        {
            line["step"]: line
            for line in lines(
                folder / metrics_log.VALIDATION_NAME, "previews", "control"
            )
        }
        for folder in (settings["output_dir"], run.folder)
    )
    assert sorted(ours) == [0, 1, 2, 3, 4] and sorted(theirs) == [0, 3, 4]
    assert theirs == {number: ours[number] for number in theirs}
    assert not (settings["output_dir"] / "logs").exists()
    assert not (settings["output_dir"] / "samples").exists()


def test_every_validation_has_its_files(run):
    found = lines(run.folder / metrics_log.VALIDATION_NAME)
    assert [line["step"] for line in found] == [0, 3, 4]
    for line in found:
        folder = f"samples/step_{line['step']:06d}"
        files = [f"{folder}/0_0.png", f"{folder}/0_1.png"]
        assert line["previews"] == [{"prompt": PROMPT, "files": files}]
    files = ["samples/control/0_0.png", "samples/control/0_1.png"]
    assert found[0]["control"] == [{"prompt": CONTROL, "files": files}]
    assert found[1]["control"] == found[2]["control"] == []


def test_a_second_preview_does_not_compile_again(run):
    # Once for three previews and the control.
    assert run.traces == 1


@pytest.mark.parametrize("name", ["step_000000", "step_000004", "control"])
def test_previews_are_what_generate_makes_of_the_word(
    name, run, small_model, tmp_path, settings
):
    rows = run.learned.rows["text_encoder"]
    if name == "step_000000":
        [rows] = first_rows(small_model, settings)
    concept_folder.export_concept(
        tmp_path,
        find.Embedding("<toy>", {"text_encoder": rows}),
        "object",
        np.zeros((1, 8, 8, 3), np.uint8),
    )
    images = generate.generate_images(
        progress=False,
        model=small_model,
        embedding=tmp_path / find.SAFETENSORS_NAME,
        prompt=CONTROL if name == "control" else PROMPT,
        num_images=2,
        seed=SEED,
        width=32,
        height=32,
    )
    ours = read_samples(run.folder / "samples" / name)
    theirs = np.stack([np.asarray(image) for image in images]).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    with Image.open(run.folder / "samples" / name / "0_1.png") as saved:
        assert json.loads(saved.info["ti_flax"]) == json.loads(
            images[1].info["ti_flax"]
        )


def first_rows(small_model, settings):
    keys = run_config.Config(**settings)
    tokenizer = load_tokenizer(small_model / "tokenizer")
    params = base_model.open_model(str(small_model)).load("text_encoder")
    table = np.asarray(params["embeddings"]["token_embedding"]["embedding"])
    ids = initializer_ids(tokenizer, "toy")
    return [initial_rows(table, ids, 2, keys.initializer_jitter, SEED)]


def test_pictures_change_with_the_rows_and_not_with_the_noise(run):
    first, last, control = (
        read_samples(run.folder / "samples" / name)
        for name in ("step_000000", "step_000004", "control")
    )
    between_seeds = np.abs(first[0] - first[1]).mean()
    assert 0 < np.abs(first - last).mean() < between_seeds
    assert 0 < np.abs(first - control).mean() < between_seeds


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"validation_prompt": "a cat"}, "'a cat' lacks the word <toy>"),
        ({"validation_prompt": ["a <toy>", "<toys"]}, "'<toys' lacks the word"),
        ({"validation_prompt": "so " * 80 + "<toy>"}, "'<toy>' would be cut off"),
        ({"report_to": "wandb"}, "wandb is not installed"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_weights_are_read(
    keys, words, settings, monkeypatch
):
    def load(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(base_model.BaseModel, "load", load)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.UserError) as caught:
        learn(settings, **keys)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not settings["output_dir"].exists()


def test_the_numbers_of_a_validation_are_those_of_the_rows(run, small_model, settings):
    [initial] = first_rows(small_model, settings)
    first, *_, last = lines(run.folder / metrics_log.VALIDATION_NAME)
    assert first["distance"] == [0, 0]
    moved = np.linalg.norm(run.learned.rows["text_encoder"] - initial, axis=1)
    np.testing.assert_allclose(last["distance"], moved, rtol=1e-5)
    metrics = lines(run.folder / metrics_log.METRICS_NAME)
    norms = np.linalg.norm(run.learned.rows["text_encoder"], axis=1)
    np.testing.assert_allclose(metrics[-1]["row_norm"], norms, rtol=1e-5)
    # The first step starts at the initial rows and goes 0.3 in each of 32 directions.
    np.testing.assert_allclose(metrics[0]["row_step"], 0.3 * 32**0.5, rtol=1e-2)
    # In the tiny vocabulary "toy" is spelt; the first vector starts as its "t".
    assert first["nearest"][0][0] == ["t…", 1.0]


def test_tensorboard_shows_the_numbers_by_step(run):
    events = read_events(run.folder / "logs")
    for line in lines(run.folder / metrics_log.METRICS_NAME):
        for name in ("loss", "learning_rate", "grad_norm", "examples_per_second"):
            shown = scalars(events, f"train/{name}")[line["step"]]
            assert shown == pytest.approx(line[name])
        for name in ("row_norm", "row_step"):
            for k in range(2):
                shown = scalars(events, f"train/{name}/{k}")[line["step"]]
                assert shown == pytest.approx(line[name][k])
    for line in lines(run.folder / metrics_log.VALIDATION_NAME):
        shown = scalars(events, "validation/fixed_loss")[line["step"]]
        assert shown == pytest.approx(line["fixed_loss"])
        for k in range(2):
            shown = scalars(events, f"validation/distance/{k}")[line["step"]]
            assert shown == pytest.approx(line["distance"][k])
            shown = scalars(events, f"validation/nearest_cosine/{k}")[line["step"]]
            assert shown == pytest.approx(line["nearest"][k][0][1])
    words = events.Tensors("nearest words/text_summary")
    assert [event.step for event in words] == [0, 3, 4]
    assert "`t…` 1.000" in words[0].tensor_proto.string_val[0].decode()


def test_tensorboard_shows_the_pictures_by_step(run, tmp_path):
    events = read_events(run.folder / "logs")
    shown = events.Images("previews/0_a_toy_on_a_table")
    assert [event.step for event in shown] == [0, 3, 4]
    for event in shown:
        (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
        with Image.open(tmp_path / "shown.png") as image:
            sheet = np.asarray(image)
        ours = read_samples(run.folder / "samples" / f"step_{event.step:06d}")
        np.testing.assert_array_equal(sheet, np.concatenate(list(ours), axis=1))
    assert len(events.Images("control/0_a_on_a_table")) == 1
