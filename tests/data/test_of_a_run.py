"""`python -m ti_flax.data` with the keys of a run: its folders, captions and masks."""

import html
import re
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from ti_flax.data import command
from ti_flax.runtime.errors import UserError
from ti_flax.text.captions import Rules, prompts_of


def draw(path, seed, size=(64, 64)):
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def place(tmp_path):
    """Two folders to learn from, and one that nobody names."""
    folder = tmp_path / "my [v1] sets"
    names = ("far/0.png", "near by/0.png", "near by/1.png", "other/0.png")
    for seed, name in enumerate(names):
        draw(folder / name, seed)
        text = f"sks dog, in {name[:3]}, red"
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


def look(monkeypatch, tmp_path, *argv):
    """What the command prints of a run, its exit code, and its page's figures."""
    page = tmp_path / "sheet.html"
    argv = ["ti_flax.data", *map(str, argv), f"--contact_sheet={page}"]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        command.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    text = page.read_text()
    figures = re.findall(r"<figure>(.*?)</figure>", text, re.S)
    names = [html.unescape(re.search(r"<b>(.*?)</b>", each)[1]) for each in figures]
    return code, text, dict(zip(names, figures, strict=True))


def shares(figures):
    return {
        name: float(re.search(r"([\d.]+) %", figure)[1])
        for name, figure in figures.items()
    }


def captions(figure):
    lines = re.findall(r"<li>(.*?)</li>", figure)
    return [html.unescape(re.sub(r"</?span.*?>", "", line)) for line in lines]


def test_folders_of_a_dataset_toml_are_shown_as_they_count(
    place, tmp_path, monkeypatch, capsys
):
    tables = "".join(
        f"[[datasets.subsets]]\nimage_dir = '{place / name}'\nnum_repeats = {count}\n"
        for name, count in (("near by", 3), ("far", 2))
    )
    toml = tmp_path / "data set.toml"
    general = "[general]\ncaption_extension = '.txt'\nenable_bucket = true\n"
    toml.write_text(f"{general}[[datasets]]\nresolution = 64\n{tables}")
    code, text, found = look(monkeypatch, tmp_path, "--dataset_config", toml)
    told = capsys.readouterr().out
    assert code == 0 and "3 pictures to train on, 0 notes" in told
    assert "folders: far (2 times), near by (3 times)\n" in told
    assert "captions: of 3 pictures (txt)" in told
    assert shares(found) == pytest.approx(
        {"far/0.png": 25, "near by/0.png": 37.5, "near by/1.png": 37.5}
    )
    assert captions(found["far/0.png"]) == ["<word>, sks dog, in far, red"]
    assert "Folders: far (2 times), near by (3 times)." in text and "other/" not in text


def test_keys_of_the_file_and_of_the_command_line_are_those_of_a_run(
    place, tmp_path, monkeypatch, capsys
):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    (tmp_path / "masks" / "far").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "far" / "0.png")
    keys = {
        "train_data_dir": str(place),
        "placeholder_token": "<toy>",
        "subsets": ["far", "other"],
        "resolution": 32,
        "masked_loss": True,
        "conditioning_data_dir": str(tmp_path / "masks"),
        "trigger_word": "sks dog",
        "shuffle_caption": True,
        "seed": 5,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(keys))
    subsets = ["--subsets", "5:far", "near by"]
    code, text, found = look(monkeypatch, tmp_path, f"--config={path}", *subsets)
    told = capsys.readouterr().out
    assert code == 1 and "no mask for near by/0.png, near by/1.png" in told
    assert "masks: of 1 pictures" in told
    assert shares(found)["far/0.png"] == pytest.approx(100 * 5 / 7, abs=0.1)
    assert "folders: far (5 times), near by\n" in told
    assert "32 x 32 px of 64 x 64" in found["far/0.png"]
    rules = Rules("<toy>", 5, trigger_word="sks dog", shuffle_caption=True)
    for number, name in enumerate(found):
        caption = (place / name).with_suffix(".txt").read_text()
        forms = [*dict.fromkeys(prompts_of(caption, rules, number))]
        assert captions(found[name]) == forms and 2 < len(forms) <= 6
    assert '<span class="word">&lt;toy&gt;</span>' in text


def test_of_many_forms_the_first_are_shown(place, tmp_path, monkeypatch):
    (place / "far" / "0.txt").write_text("a, b, c, d, e, f")
    keys = [f"--train_data_dir={place}", "--subsets=far", "--shuffle_caption"]
    keys.append("--seed=0")
    empty = tmp_path / "run.yaml"
    empty.write_text("resolution: 64\n")
    _, _, found = look(monkeypatch, tmp_path, f"--config={empty}", *keys)
    prompts = prompts_of("a, b, c, d, e, f", Rules("<word>", shuffle_caption=True), 0)
    *_, last = re.findall(r"<li.*?>(.*?)</li>", found["far/0.png"].split("</ul>")[0])
    assert captions(found["far/0.png"])[:8] == prompts[:8]
    assert last == f"and {len({*prompts}) - 8} more forms"


@pytest.mark.parametrize(
    ("template", "source", "forms"),
    [
        ("a photo of {}", "none", []),
        ("a {}, [filewords]!", "txt", ["a <word>, sks dog, in far, red!"]),
    ],
)
def test_templates_of_the_run_take_captions_in_or_their_place(
    template, source, forms, place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "templates.txt").write_text(template)
    (place / "near by" / "0.txt").unlink()
    keys = {"train_data_dir": str(place), "subsets": ["far", "near by"]}
    keys["template_file"] = str(tmp_path / "templates.txt")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    argv = [f"--config={tmp_path / 'run.yaml'}", "--resolution=64"]
    _, _, found = look(monkeypatch, tmp_path, *argv)
    assert captions(found["far/0.png"]) == forms
    # A picture without a caption has its file's name in it, which is a number here.
    assert captions(found["near by/0.png"]) == []
    assert ("captions: none" in capsys.readouterr().out) == (source == "none")


def test_a_caption_without_the_word_is_a_note_at_its_picture(
    place, tmp_path, monkeypatch, capsys
):
    (place / "far" / "0.txt").write_text("a red ball")
    empty = tmp_path / "run.yaml"
    empty.write_text(f"resolution: 64\ntrain_data_dir: '{place / 'far'}'\n")
    keys = [f"--config={empty}", "--trigger_word=sks dog"]
    code, text, found = look(monkeypatch, tmp_path, *keys)
    told = "caption of 0.png: it does not hold the new word, and training would end"
    assert code == 1 and told in capsys.readouterr().out
    assert told in found["0.png"] and text.count(told) == 1


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--dataset_config", "nowhere.toml"], "dataset_config nowhere.toml: cannot"),
        (["--config=run.yaml"], "required but missing: train_data_dir"),
        (["--config=run.yaml", "--sead=3"], "did you mean --seed?"),
        (["pictures", "--config=run.yaml"], "expected --key value, found 'pictures'"),
        (["--config=run.yaml", "--train_data_dir=.", "--resolution=9"], "resolution: "),
    ],
)
def test_mistakes_are_those_of_a_run(argv, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("resolution: 64\n")
    monkeypatch.setattr(sys, "argv", ["ti_flax.data", *argv])
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        command.main()
    assert "\n" not in str(raised.value)
