"""What a type checker sees of the package in a user's own script."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Each line is right, and says what the checker is to see.
SCRIPT = """\
from pathlib import Path
from typing import Any, Literal, assert_type

import numpy as np
from PIL import Image

import ti_flax
from ti_flax import Config, Run, Step, Validation, generate_images, train_concepts

config = Config(
    pretrained_model_name_or_path="m",
    train_data_dir=Path("p"),
    placeholder_token="<my-cat>",
    learning_rate=1e-3,
)
assert_type(config.learning_rate, float)
assert_type(config.train_data_dir, Path)
assert_type(config.initializer_token, str | None)
assert_type(config.validation_prompt, tuple[str, ...])
assert_type(config.learnable_property, Literal["object", "style"])
losses: list[float] = []


def on_step(step: Step) -> None:
    assert_type(step.row_norm, list[float])
    losses.append(step.loss)


def on_look(look: Validation) -> None:
    assert_type(look.fixed_loss, float)
    assert_type(look.nearest, list[list[tuple[str, float]]])


(run,) = train_concepts(config, on_step=on_step, on_look=on_look)
assert_type(run, Run)
assert_type(run.token, str)
assert_type(run.folder, Path)
assert_type(run.metrics, dict[str, np.ndarray[tuple[Any, ...], np.dtype[Any]]])
assert_type(run.rows["text_encoder"].shape, tuple[Any, ...])
assert_type(generate_images(model="m", prompt="x"), list[Image.Image])
assert_type(ti_flax.load_embedding("f").token, str)
assert_type(ti_flax.describe_embedding(file="f"), str)
"""
# A line that is wrong, and what the checker is to say of it.
MISTAKES = [
    ('config.learning_rate + ""', "unsupported-operator"),
    ("config.sead", "missing-attribute"),
    ('Config(**{}, attention="flash")', "invalid-argument-type"),
    ('Config("m")', "too-many-positional-arguments"),
    ("train_concepts(config, on_stop=on_step)", "unknown-argument"),
    ("train_concepts(config, on_step=on_look)", "invalid-argument-type"),
    ("run.metrics.loss", "missing-attribute"),
    ("run.word = None", "invalid-assignment"),
    ("ti_flax.train_concept", "missing-attribute"),
    ("assert_type(run.token, bytes)", "type-assertion-failure"),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Checks a script as the checker does that nobody has configured."""
    ty = shutil.which("ty", path=str(Path(sys.executable).parent)) or shutil.which("ty")
    if ty is None:
        pytest.skip("ty is not installed")
    folder = tmp_path_factory.mktemp("user")

    def run(text):
        (folder / "script.py").write_text(text)
        command = [ty, "check", "--output-format=concise", f"--python={sys.prefix}"]
        ran = subprocess.run(
            [*command, f"--extra-search-path={ROOT}", "script.py"],
            capture_output=True,
            text=True,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        found = re.findall(r"script\.py:(\d+):\d+: \w+\[([\w-]+)\]", ran.stdout)
        assert bool(found) == bool(ran.returncode), ran.stdout + ran.stderr
        return [(int(line), rule) for line, rule in found], ran.stdout

    return run


def test_a_checker_sees_the_real_types(check):
    found, told = check(SCRIPT)
    assert not found, told


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_checker_has_nothing_to_say_of_the_examples(check, path):
    found, told = check(path.read_text())
    assert not found, told


def test_a_checker_finds_mistakes(check):
    lines = [*SCRIPT.splitlines(), *(mistake for mistake, _ in MISTAKES)]
    found, told = check("\n".join(lines))
    first = len(SCRIPT.splitlines()) + 1
    expected = [(first + i, rule) for i, (_, rule) in enumerate(MISTAKES)]
    assert {*expected} <= {*found}, told
    assert {line for line, _ in found} == {line for line, _ in expected}
