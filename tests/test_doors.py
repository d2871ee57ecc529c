"""Help and a mistake come from every command without waiting for JAX."""

import shlex
import shutil
import subprocess
from typing import get_args

import doors
import pytest
from test_imports import DOORS, PACKAGE

from ti_flax.__main__ import COMMANDS, module_of
from ti_flax.config import random_model_keys
from ti_flax.models import known

MODEL = ["--model", "m"]
# (module, *arguments), exit code, words of what is printed
CALLS = [
    (["convert", "--help"], 0, "--to"),
    (["convert", "--no_such_key"], 2, "'--no_such_key'; --help lists"),
    (["convert"], 2, "required: IN"),
    (["convert", "a.pt", "--two", "kohya"], 2, "'--two'; did you mean --to?"),
    (["generate", "--help"], 0, "--embedding TEXT [TEXT ...]"),
    (["generate", "--promt", "x"], 2, "flag '--promt'; did you mean --prompt?"),
    (["generate", "--no_such_key"], 2, "--help lists all keys"),
    (["generate", "a cat"], 2, "expected --key value, found 'a cat'"),
    (["generate", *MODEL, "--prompt", "x"], 2, "missing: output"),
    (["generate", "--output", "x", "--prompt", "x"], 2, "missing: model"),
    (["generate", *MODEL, "--prompt"], 2, "--prompt: expected at least one argument"),
    (["inspect", "--help"], 0, "--model"),
    (["inspect", "--no_such_key"], 2, "'--no_such_key'; --help lists"),
    (["inspect"], 2, "required: FILE"),
    (["inspect", "a.pt", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["push", "--help"], 0, "--hub_model_id"),
    (["push", "--no_such_key"], 2, "'--no_such_key'; --help lists"),
    (["push"], 2, "required: DIR"),
    (["push", "run", "--hub_modle_id", "m"], 2, "did you mean --hub_model_id?"),
    (["train", "--help"], 0, "--placeholder_token"),
    (["train", "--no_such_key"], 2, "--help lists all keys"),
    (["train", "--sead", "3"], 2, "'--sead'; did you mean --seed?"),
    (["train", "--sweep", "sead=1,2"], 2, "did you mean seed?"),
    (["train", "--concepts", "nowhere.yaml"], 2, "required but missing: pre"),
    (["benchmark", "concepts", "--help"], 0, "--slots"),
    (["benchmark", "concepts", "--slot=3"], 2, "did you mean --slots?"),
    (["train_compile", "--help"], 0, "--topology KIND:SHAPE"),
    (["train_compile", "--no_such_key"], 2, "topology: expected at least one"),
    (["train_compile", "--topology=v5e:2x4", "--sead=3"], 2, "did you mean --seed?"),
    (["verify", "--help"], 0, "--model"),
    (["verify", "--no_such_key"], 2, "'--no_such_key'; --help lists"),
    (["verify"], 2, "required: DIR_OR_FILE"),
    (["verify", "run", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["quickstart", "--help"], 0, "usage: python -m ti_flax.quickstart [--key"),
    (["quickstart", "--help"], 0, "(default: <bumbee>)"),
    (["quickstart", "--sead", "3"], 2, "'--sead'; did you mean --seed?"),
    (["data", "--help"], 0, "--resolution"),
    (["data"], 2, "required: folder"),
    (["data", "--resolutoin", "64"], 2, "did you mean --resolution?"),
    (["data", "pictures", "--resolution=wide"], 2, "invalid int value: 'wide'"),
    (["data", "--config=a.yaml", "--help"], 0, "--subsets"),
    (["data", "--dataset_config=no.toml", "--sead=3"], 2, "did you mean --seed?"),
    (["data", "pictures", "more"], 2, "found 'more'"),
    (["data", "pictures", "--resolution=80000"], 2, "expected 1 to 4096, found 80000"),
    (["convert", "--otuput=x"], 2, "'--otuput=x'; did you mean --output?"),
    (["inspect", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["push", "--hub_modle_id=m"], 2, "did you mean --hub_model_id?"),
    (["verify", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["random_model", "--help"], 0, "FOLDER"),
    (["random_model", "sd15"], 2, "required: FOLDER"),
    (["random_model", "sd16", "m"], 2, "shape: expected 'sd15', 'sd21', 'sdxl',"),
    (["random_model", "sd15", "m", "--sead=3"], 2, "did you mean --seed?"),
    (["schema"], 0, '"learning_rate": {'),
    (["schema", "--help"], 0, "schema > FILE"),
    (["schema", "--otuput=x"], 2, "--help lists all keys"),
    (["__main__"], 0, "  train         teach a model a word"),
    (["__main__", "--help"], 0, "usage: ti-flax COMMAND"),
    (["__main__", "--version"], 0, "ti_flax 0."),
    (["__main__", "--completion", "zsh"], 0, "*:push) words='--help --hub_model_id"),
    (["__main__", "--completion", "fish"], 2, "expected bash or zsh, found 'fish'"),
    (["__main__", "train", "--help"], 0, "--placeholder_token"),
    (["__main__", "train", "--sead", "3"], 2, "did you mean --seed?"),
    (["__main__", "random-model", "sd16", "m"], 2, "shape: expected 'sd15'"),
    (["__main__", "random_model", "sd16", "m"], 2, "shape: expected 'sd15'"),
    (["__main__", "compile", "--help"], 0, "--topology KIND:SHAPE"),
    (["__main__", "data", "--resolutoin", "64"], 2, "did you mean --resolution?"),
    (["__main__", "trian"], 2, "found 'trian'; did you mean train?"),
    (["__main__", "xyz"], 2, "ti-flax --help lists them"),
    (["train", "--config", "cat_toi"], 2, "did you mean cat_toy?"),
    (["train", "--config", "cat_toy", "--print_config"], 0, "initializer_token: toy"),
    (["benchmark"], 2, "expected one of quality"),
    (["benchmark", "--help"], 0, "benchmark quality|concepts|step|kernels"),
    (["benchmark", "qualiti"], 2, "found 'qualiti'"),
    (["benchmark", "quality", "--help"], 0, "benchmark quality"),
    (["benchmark", "quality", "--no_such_key"], 2, "--help lists all keys"),
    (["benchmark", "step", "--help"], 0, "benchmark step"),
    (["benchmark", "step", "--no_such_key"], 2, "--help lists all keys"),
    (["benchmark", "kernels", "--help"], 0, "benchmark kernels"),
    (["benchmark", "kernels", "--no_such_key"], 2, "--help lists all keys"),
]
HELP = {"--help", "--version"}


@pytest.fixture(scope="module")
def every_run():
    """What each call left; one process runs them all."""
    return doors.run([call for call, _, _ in CALLS])


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        pytest.param(number, code, words, id=" ".join(call))
        for number, (call, code, words) in enumerate(CALLS)
    ],
)
def test_help_and_mistakes_come_without_jax(every_run, number, code, words):
    ran = every_run[number]
    assert ran.code == code, ran.stderr
    assert not ran.asked
    assert words in (ran.stderr if code else ran.stdout)
    # Help has nothing to say beside itself, a mistake is one line.
    assert len(ran.stderr.splitlines()) == bool(code)
    assert ran.stderr.startswith("error: " * bool(code))


def test_help_fits_a_terminal_of_80_columns(every_run):
    shown = [
        ran for ran, (call, *_) in zip(every_run, CALLS, strict=True) if HELP & {*call}
    ]
    assert len(shown) > 15
    lines = [line for ran in shown for line in ran.stdout.splitlines()]
    assert [line for line in lines if len(line) > 80] == []


def test_the_check_sees_an_import_of_jax():
    """Otherwise the tests above would prove nothing."""
    with pytest.raises(AssertionError, match=r"ImportError: (jax|flax) is refused"):
        doors.run([["models.unet"]])


def test_the_list_of_commands_has_each_of_them():
    packages = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    modules = [module_of(name).removeprefix("ti_flax.") for name in COMMANDS]
    assert {*modules, "__main__"} == {*DOORS.split(), *packages}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], {"train"}),
        (["push", "--hub"], {"--hub_model_id", "--hub_private_repo", "--hub_token"}),
        (["train", "--config", "--plac"], {"--placeholder_token"}),
        # Files are the shell's own.
        (["train", "--config", "x"], set()),
    ],
)
def test_a_shell_completes_commands_and_flags(words, expected, every_run):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    [script] = [
        ran.stdout.partition("bashcompinit\n")[2]
        for ran, (call, _, _) in zip(every_run, CALLS, strict=True)
        if call[1:] == ["--completion", "zsh"]
    ]
    typed = " ".join(map(shlex.quote, ["ti-flax", *words]))
    asked = f"COMP_WORDS=({typed}) COMP_CWORD={len(words)}; _ti_flax"
    shown = 'printf "%s\\n" "${COMPREPLY[@]}"'
    ran = subprocess.run(
        [bash, "-euc", f"{script}\n{asked}\n{shown}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {*ran.stdout.split()} == expected


def test_a_door_is_at_most_fifteen_lines():
    for name in {*DOORS.split()} - {"__main__"}:
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 15, name


def test_a_random_model_has_each_known_shape():
    shape = random_model_keys.RandomModelKeys.model_fields["shape"]
    assert get_args(shape.annotation) == tuple(known.SHAPES)
