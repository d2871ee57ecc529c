"""Every way to get it wrong ends in the line that docs/troubleshooting.md has."""

import json
import logging
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import filelock
import jax.numpy as jnp
import numpy as np
import other_lines
import pytest
import runs
from PIL import Image
from safetensors.numpy import save_file

from ti_flax import train
from ti_flax.checkpoints import identity, store
from ti_flax.checkpoints.output_dir import RunFolder
from ti_flax.config.run_config import Config
from ti_flax.formats import find
from ti_flax.models import base_model
from ti_flax.pickles import torch_zip
from ti_flax.publishing import concept_folder
from ti_flax.quickstart import settings as quickstart_settings
from ti_flax.runtime import errors
from ti_flax.step.optimizer import adamw
from ti_flax.step.state import init_state
from ti_flax.training import ready

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| (.+?) \| `(.+)` \|$", re.MULTILINE)


def given(**keys):
    return lambda arguments, folder: arguments.update(keys)


def without(key):
    return lambda arguments, folder: arguments.pop(key)


# Pictures


def folder_without_pictures(arguments, folder):
    place = folder / "empty"
    place.mkdir()
    arguments["train_data_dir"] = place


def broken_picture(arguments, folder):
    folder_without_pictures(arguments, folder)
    (folder / "empty" / "cat.png").write_text("no picture")


# Captions


def captions(files, **keys):
    """Pictures of the command line with files beside them."""

    def change(arguments, folder):
        place = folder / "captioned"
        shutil.copytree(arguments["train_data_dir"], place)
        for name, content in files.items():
            (place / name).write_bytes(content)
        arguments.update(train_data_dir=place, **keys)

    return change


# Masks


def masks(color=255, side=None, **keys):
    """Pictures of the command line with a mask beside each."""

    def change(arguments, folder):
        place = folder / "masked"
        shutil.copytree(arguments["train_data_dir"], place)
        for picture in [*place.glob("*.png")]:
            with Image.open(picture) as opened:
                size = opened.size if side is None else (side, side)
            mask = place / f"{picture.stem}-masklabel.png"
            Image.new("L", size, color).save(mask)
        arguments.update(train_data_dir=place, **keys)

    return change


# Templates


def template_without_placeholder(arguments, folder):
    (folder / "templates.txt").write_text("a photo of a cat\n")
    arguments["template_file"] = folder / "templates.txt"


def long_template(arguments, folder):
    (folder / "templates.txt").write_text("a very long story " * 10 + "of {}\n")
    arguments["template_file"] = folder / "templates.txt"


# Models


def change_model(arguments, folder, component, **settings):
    """A copy of the model, its configuration of a component changed; its folder."""
    model = Path(arguments["pretrained_model_name_or_path"])
    copy = folder / "changed"
    for path in model.rglob("*"):
        if path.is_file():
            place = copy / path.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    file = copy / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    arguments["pretrained_model_name_or_path"] = copy
    return copy


def no_model_files(arguments, folder):
    (folder / "changed").mkdir()
    arguments["pretrained_model_name_or_path"] = folder / "changed"


def a_lora(arguments, folder):
    file = folder / "style.safetensors"
    one = np.ones((2, 2), np.float32)
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": one}, file)
    arguments["pretrained_model_name_or_path"] = file


def gguf(arguments, folder):
    file = folder / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    arguments["pretrained_model_name_or_path"] = file


def no_weights(arguments, folder):
    copy = change_model(arguments, folder, "unet")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def another_family(arguments, folder):
    change_model(arguments, folder, "unet", class_embed_type="projection")


def depth_model(arguments, folder):
    change_model(arguments, folder, "unet", in_channels=5)


def distilled_model(arguments, folder):
    change_model(arguments, folder, "unet", time_cond_proj_dim=256)


def upscaler(arguments, folder):
    change_model(arguments, folder, "unet", in_channels=7, num_class_embeds=1000)


def weights_of_edm(arguments, folder):
    copy = change_model(arguments, folder, "unet")
    settings = {"_class_name": "EDMEulerScheduler"}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    arguments["snr_gamma"] = 5


def refiner(arguments, folder):
    told = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72}
    told |= {"addition_embed_type": "text_time", "cross_attention_dim": 32}
    change_model(arguments, folder, "unet", **told)


def empty_config(arguments, folder):
    copy = change_model(arguments, folder, "unet")
    (copy / "unet" / "config.json").write_text("{}")


def list_config(arguments, folder):
    copy = change_model(arguments, folder, "vae")
    (copy / "vae" / "config.json").write_text("[]")


def short_heads(arguments, folder):
    change_model(arguments, folder, "unet", attention_head_dim=[4])


def wrong_weights(arguments, folder):
    change_model(arguments, folder, "vae", layers_per_block=2)


# Embedding files


def initialize_from(arguments, file):
    del arguments["initializer_token"]
    arguments["initializer_embedding"] = file


def narrow_embedding(arguments, folder):
    concept_folder.export_concept(
        folder / "word",
        find.Embedding("<toy>", {"text_encoder": np.ones((1, 7), np.float32)}),
        "object",
        np.zeros((1, 8, 8, 3), np.uint8),
    )
    initialize_from(arguments, folder / "word")


def write_safetensors(folder, numbers, length=None):
    entry = {"dtype": "F32", "shape": [1, 32], "data_offsets": [0, 128]}
    header = json.dumps({"<toy>": entry}).encode()
    claimed = struct.pack("<Q", len(header) if length is None else length)
    file = folder / "word.safetensors"
    file.write_bytes(claimed + header + numbers)
    return file


def nan_rows(arguments, folder):
    numbers = np.full(32, np.nan, np.float32).tobytes()
    initialize_from(arguments, write_safetensors(folder, numbers))


def cut_safetensors(arguments, folder):
    initialize_from(arguments, write_safetensors(folder, bytes(100)))


def terabytes(arguments, folder):
    initialize_from(arguments, write_safetensors(folder, bytes(128), 2**42))


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def pickled_command(arguments, folder):
    with zipfile.ZipFile(folder / "word.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"<toy>": Command()}, 2))
    initialize_from(arguments, folder / "word.bin")


def zip_bomb(arguments, folder):
    with zipfile.ZipFile(folder / "word.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    initialize_from(arguments, folder / "word.bin")


def cut_bin(arguments, folder):
    torch_zip.save(folder / "word.bin", {"<toy>": np.ones((1, 32), np.float32)})
    whole = (folder / "word.bin").read_bytes()
    (folder / "word.bin").write_bytes(whole[: len(whole) // 2])
    initialize_from(arguments, folder / "word.bin")


def web_page(arguments, folder):
    (folder / "word.bin").write_text("<!DOCTYPE html>")
    initialize_from(arguments, folder / "word.bin")


# The output folder and resuming


def output_under_file(arguments, folder):
    (folder / "file").write_text("precious")
    arguments["output_dir"] = folder / "file" / "out"


def used_output_dir(arguments, folder):
    (folder / "out").mkdir()
    (folder / "out" / "learned_embeds.bin").write_text("precious")


def pictures_in_output(arguments, folder):
    arguments["output_dir"] = Path(arguments["train_data_dir"]).parent


def locked(arguments, folder):
    (folder / "out").mkdir()
    LOCKS.append(filelock.FileLock(folder / "out" / ".lock"))
    LOCKS[-1].acquire()


LOCKS: list[filelock.BaseFileLock] = []


def used_checkpoint_dir(arguments, folder):
    (folder / "kept").mkdir()
    LOCKS.append(filelock.FileLock(folder / "kept" / ".lock"))
    LOCKS[-1].acquire()
    arguments["checkpoint_dir"] = folder / "kept"


def checkpoints_of_another_run(arguments, folder):
    other = {"output_dir": folder / "other", "checkpoint_dir": folder / "kept"}
    checkpointed()(arguments | other, folder)
    arguments["checkpoint_dir"] = folder / "kept"


def own_file(arguments, folder):
    (folder / "out").mkdir()
    (folder / "out" / "README.md").write_text("precious")
    arguments["overwrite_output_dir"] = True


def output_in_the_model(arguments, folder):
    arguments["output_dir"] = change_model(arguments, folder, "unet")
    arguments["overwrite_output_dir"] = True


def checkpointed(**changes):
    """A run of which the checkpoint of step 3 is there, and what is other since."""

    def make(arguments, folder):
        config = Config(**arguments)
        model = base_model.open_model(config.pretrained_model_name_or_path)
        fingerprints = {
            "pretrained_model_name_or_path": model.fingerprint(),
            "train_data_dir": "0" * 64,
        }
        optimizer = adamw(0.9, 0.9, 1, 0.0, None)
        rows = {"text_encoder": jnp.zeros((1, 1, 32))}
        with RunFolder(config) as own:
            own.create()
        with store.Checkpoints(
            store.folder_of(config),
            None,
            identity.describe(config, fingerprints),
        ) as checkpoints:
            checkpoints.save(3, init_state(rows, optimizer))
        arguments.update({"resume_from_checkpoint": "latest", **changes})

    return make


def other_model(arguments, folder):
    checkpointed()(arguments, folder)
    copy = change_model(arguments, folder, "unet")
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text() + "\n")


def damaged_checkpoint(arguments, folder):
    checkpointed()(arguments, folder)
    (folder / "out" / "checkpoints" / "3" / "run" / "metadata").write_text("{")


# As docs/troubleshooting.md names it -> makes it of a command line that works.
def listing(text, **keys):
    """A list of concepts."""

    def make(arguments, folder):
        (folder / "list.yaml").write_text(text)
        arguments.update(concepts=folder / "list.yaml", **keys)

    return make


CASES = {
    "a misspelt key": given(learning_rat=1),
    "a recipe's file that is not there": given(config="nowhere/cat_toy.yaml"),
    "a word for a number": given(max_train_steps="many"),
    "a key is missing": without("placeholder_token"),
    "another trainer's flag that has no key": given(clip_skip=2),
    "another optimizer": given(optimizer_type="Prodigy"),
    "directions without a length": given(optimizer="directional"),
    "a decay longer than the run": given(
        lr_scheduler="warmup_stable_decay", lr_decay_steps=900
    ),
    "two initializers": given(initializer_embedding="word.bin"),
    "two weights of the loss": given(snr_gamma=5, debiased_estimation_loss="true"),
    "two limits that leave nothing": given(min_timestep=900, max_timestep=100),
    "a window that the run does not reach": given(stop="dvar", dvar_window=310),
    "more timesteps than the model has": given(max_timestep=2000),
    "a loss for a model that predicts v": given(
        scale_v_pred_loss_like_noise_pred="true"
    ),
    "no such folder of pictures": given(train_data_dir="nowhere"),
    "an empty folder": folder_without_pictures,
    "only broken pictures": broken_picture,
    "steps of buckets above the resolution": given(enable_bucket="true"),
    "sides of buckets in the wrong order": given(
        min_bucket_reso="512", max_bucket_reso="256"
    ),
    "a word that the model knows": given(placeholder_token="a"),
    "a word that the model reads whole": given(
        pretrained_model_name_or_path=quickstart_settings.MODEL,
        placeholder_token="Heart",
    ),
    "an initializer of white space": given(initializer_token=" "),
    "captions of two kinds": captions({"0.txt": b"a", "0.caption": b"a"}),
    "a caption that is not UTF-8": captions({"0.txt": b"a caf\xe9"}),
    "a damaged line of metadata": captions(
        {"metadata.jsonl": b'{"file_name": "0.png"}'}
    ),
    "a caption that is not there": captions({}, caption_source="txt"),
    "a caption without its trigger word": captions(
        {"0.txt": b"a cat"}, trigger_word="sks"
    ),
    "a caption that would lose the word": captions(
        {"0.txt": b"a very long story " * 10 + b"of [name]"}
    ),
    "masks that are not there": given(masked_loss="true"),
    "a mask of another size": masks(side=7, masked_loss="true"),
    "a mask that is all black": masks(color=0, masked_loss="true"),
    "a mask that nobody asked for": given(alpha_mask="true"),
    "a template without `{}`": template_without_placeholder,
    "a prompt longer than the model reads": long_template,
    "no such model": given(pretrained_model_name_or_path="nowhere"),
    "a model's folder without its files": no_model_files,
    "a LoRA in place of a model": a_lora,
    "a quantised model": gguf,
    "a model without safetensors": no_weights,
    "an empty configuration of a model": empty_config,
    "a configuration that is no object": list_config,
    "a configuration that contradicts itself": short_heads,
    "a model of a family that is not supported": another_family,
    "a model that reads depth": depth_model,
    "a model that was distilled": distilled_model,
    "an upscaler": upscaler,
    "SDXL's refiner": refiner,
    "a weight of the loss that a model of EDM has not": weights_of_edm,
    "a resolution that latents do not fit": given(resolution=36),
    "an embedding of another model": narrow_embedding,
    "an embedding that diverged": nan_rows,
    "a safetensors file cut short": cut_safetensors,
    "a header that claims terabytes": terabytes,
    "a pickle that would run a command": pickled_command,
    "a zip that would unpack to much": zip_bomb,
    "a .bin cut short": cut_bin,
    "a web page saved as a file": web_page,
    "output under a file": output_under_file,
    "output in a bucket": given(output_dir="gs://bucket/run"),
    "a folder that is used": used_output_dir,
    "pictures inside the output folder": pictures_in_output,
    "the base model's folder": output_in_the_model,
    "a file of your own in it": own_file,
    "a second run at the same time": locked,
    "a second run with the same folder of checkpoints": used_checkpoint_dir,
    "checkpoints of another run": checkpoints_of_another_run,
    "no such checkpoint": given(resume_from_checkpoint="nowhere/500"),
    "a run resumed with other settings": checkpointed(learning_rate=0.5),
    "a run resumed with another model": other_model,
    "a run resumed with other pictures": checkpointed(),
    "a run begun where a later one was": checkpointed(resume_from_checkpoint="none"),
    "a damaged checkpoint": damaged_checkpoint,
    "a list that is none": listing("cat"),
    "a key of all in one concept": listing("cat: {seed: 1}\ndog: {resolution: 32}"),
    "a sweep of what all share": given(sweep="resolution=16,32"),
    "pictures that one concept lacks": listing("cat: {}\ndog: {train_data_dir: x}"),
    "a part that is none": listing("cat: {}\ndog: {}", part="2/2"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return runs.draw_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def arguments(tiny_model, pictures, tmp_path):
    """A command line that works."""
    return runs.keys(tiny_model, pictures, tmp_path / "out")


@pytest.fixture(scope="module")
def page():
    return dict(ROW.findall(PAGE.read_text()))


def run(monkeypatch, capfd, arguments):
    """Exit code and stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["train", *runs.to_argv(arguments)])
    # The handler of an earlier test writes to that test's stderr, closed by now.
    log = logging.getLogger("ti_flax")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(SystemExit) as ended:
        errors.run(train.main)
    return ended.value.code, capfd.readouterr().err


def as_on_the_page(line, places):
    """The line without what differs from one machine to another."""
    for path, name in places.items():
        line = line.replace(str(path), name)
    return re.sub(r"\b[0-9a-f]{16}\b", "0123456789abcdef", line).replace("|", "\\|")


@pytest.mark.parametrize("case", CASES)
def test_it_ends_in_the_line_of_the_page_and_code_2(
    case, arguments, page, tiny_model, pictures, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    CASES[case](arguments, tmp_path)
    capfd.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    try:
        code, stderr = run(monkeypatch, capfd, arguments)
    finally:
        while LOCKS:
            LOCKS.pop().release()
    *_, last = stderr.strip().splitlines()
    places = {tmp_path: "DIR", tiny_model: "MODEL", pictures: "PICTURES"}
    places |= {pictures.parent: "DATA"}
    line = as_on_the_page(last.removeprefix("error: "), places)
    assert code == errors.USAGE_EXIT_CODE
    assert "Traceback" not in stderr
    # Nothing is written, nothing is lost, nothing is executed.
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert page.get(case) == line


# A run continues after these.
NOTICES = {
    "a batch that does not split over the devices": given(train_batch_size=12),
    "more pieces than vectors": given(
        pretrained_model_name_or_path=quickstart_settings.MODEL,
        initializer_token="striped critter",
    ),
    "a word that diffusers reads otherwise": given(
        placeholder_token="<Cafe\u0301>", num_vectors=2
    ),
    "text that has no room": given(
        validation_prompt="<toy> in " + "a very long story " * 10
    ),
}


@pytest.mark.parametrize("case", NOTICES)
def test_what_a_run_does_otherwise_than_meant_is_a_line_of_the_page(
    case, arguments, tmp_path, monkeypatch, capfd
):
    def load(*_):
        raise errors.UserError("all has been checked")

    monkeypatch.setattr(ready, "load", load)
    NOTICES[case](arguments, tmp_path)
    _, stderr = run(monkeypatch, capfd, arguments)
    assert "all has been checked" in stderr
    noticed = re.findall(r"^\| `(.+)` \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert set(noticed) & set(stderr.splitlines())


@pytest.mark.parametrize("case", other_lines.REFUSED)
def test_a_refusal_from_elsewhere_is_the_line_of_the_page(
    case, page, tmp_path, monkeypatch
):
    line = other_lines.REFUSED[case](tmp_path, monkeypatch)
    assert page.get(case) == as_on_the_page(line, {tmp_path: "DIR"})


@pytest.mark.parametrize("case", other_lines.NOTICED)
def test_a_warning_from_elsewhere_is_a_line_of_the_page(case, tmp_path, monkeypatch):
    line = other_lines.NOTICED[case](tmp_path, monkeypatch)
    noticed = re.findall(r"^\| `(.+)` \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert as_on_the_page(line, {tmp_path: "DIR"}) in noticed


def test_the_page_has_no_case_that_is_not_tested(page):
    assert set(page) == {*CASES, *other_lines.REFUSED}


def test_weights_of_another_model_are_listed(arguments, tmp_path, monkeypatch, capfd):
    """Too long for the page; it is found out when weights are read."""
    wrong_weights(arguments, tmp_path)
    code, stderr = run(monkeypatch, capfd, arguments)
    assert code == 2 and "vae: the weights do not fit config.json" in stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(
    arguments, tmp_path, monkeypatch, capfd
):
    # The system refuses root nothing.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, stderr = run(monkeypatch, capfd, arguments)
    assert code == 2 and f"{tmp_path} cannot be written to; choose another" in stderr
