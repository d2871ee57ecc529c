"""Help and a mistake come from every command without waiting for JAX."""

import doors
import pytest

MODEL = ["--model", "m"]
# (module, *arguments), exit code, words of what is printed
CALLS = [
    (["convert", "--help"], 0, "--to"),
    (["convert", "--no_such_key"], 2, "required: IN"),
    (["convert", "a.pt", "--two", "kohya"], 2, "'--two'; did you mean --to?"),
    (["generate", "--help"], 0, "--embedding TEXT [TEXT ...]"),
    (["generate", "--promt", "x"], 2, "flag '--promt'; did you mean --prompt?"),
    (["generate", "--no_such_key"], 2, "--help lists all keys"),
    (["generate", "a cat"], 2, "expected --key value, found 'a cat'"),
    (["generate", *MODEL, "--prompt", "x"], 2, "missing: output"),
    (["generate", "--output", "x", "--prompt", "x"], 2, "missing: model"),
    (["generate", *MODEL, "--prompt"], 2, "--prompt: expected at least one argument"),
    (["inspect", "--help"], 0, "--model"),
    (["inspect", "--no_such_key"], 2, "required: FILE"),
    (["inspect", "a.pt", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["push", "--help"], 0, "--hub_model_id"),
    (["push", "--no_such_key"], 2, "required: DIR"),
    (["push", "run", "--hub_modle_id", "m"], 2, "did you mean --hub_model_id?"),
    (["train", "--help"], 0, "--placeholder_token"),
    (["train", "--no_such_key"], 2, "--help lists all keys"),
    (["train", "--sead", "3"], 2, "'--sead'; did you mean --seed?"),
    (["train_compile", "--help"], 0, "--topology KIND:SHAPE"),
    (["train_compile", "--no_such_key"], 2, "topology: expected at least one"),
    (["train_compile", "--topology=v5e:2x4", "--sead=3"], 2, "did you mean --seed?"),
    (["verify", "--help"], 0, "--model"),
    (["verify", "--no_such_key"], 2, "required: DIR_OR_FILE"),
    (["verify", "run", "--modle", "m"], 2, "'--modle'; did you mean --model?"),
    (["quickstart", "--help"], 0, "--placeholder_token"),
    (["quickstart", "--sead", "3"], 2, "'--sead'; did you mean --seed?"),
    (["data", "--help"], 0, "--resolution"),
    (["benchmark"], 2, "expected one of quality"),
    (["benchmark", "qualiti"], 2, "found 'qualiti'"),
    (["benchmark", "quality", "--help"], 0, "benchmark quality"),
    (["benchmark", "quality", "--no_such_key"], 2, "--help lists all keys"),
    (["benchmark", "step", "--help"], 0, "benchmark step"),
    (["benchmark", "step", "--no_such_key"], 2, "--help lists all keys"),
    (["benchmark", "kernels", "--help"], 0, "benchmark kernels"),
    (["benchmark", "kernels", "--no_such_key"], 2, "--help lists all keys"),
]


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


def test_the_check_sees_an_import_of_jax():
    """Otherwise the tests above would prove nothing."""
    with pytest.raises(AssertionError, match="jax is refused"):
        doors.run([["models.unet"]])
