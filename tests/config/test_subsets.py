"""Which sub-folders of pictures are read, and how often each counts."""

import pytest
import yaml

from ti_flax.config.run_config import Config, dump_yaml, load_config
from ti_flax.runtime.errors import UserError

MODEL = ["--pretrained_model_name_or_path=sd", "--placeholder_token=<toy>"]

# subsets -> as they are kept.
SUBSETS = {
    "a": "a",
    "./a/": "a",
    "a//b c": "a/b c",
    ".": ".",
    "3:.": "3:.",
    "1:a": "a",
    "007:a": "7:a",
    "+2:a": "2:a",
    "1:3:4": "1:3:4",
    "10_cat": "10_cat",
    "[v1] *": "[v1] *",
    f"{10**9}:a": f"{10**9}:a",
}


@pytest.mark.parametrize("text", SUBSETS)
def test_a_folder_of_subsets_is_read_and_written_again(text):
    given = [*MODEL, "--train_data_dir=x", "--subsets", text]
    config = load_config(given)
    assert config.subsets == (SUBSETS[text],)
    assert Config(**yaml.safe_load(dump_yaml(config))) == config


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (["/a"], "expected the path of a folder inside train_data_dir, found '/a'"),
        (["../a"], "found '../a'"),
        (["2:a/../.."], "found '2:a/../..'"),
        ([""], "found ''"),
        (["3:"], "found '3:'"),
        (["a\0"], "found 'a\\x00'"),
        (["0:a"], "expected N:PATH with N from 1 to 1000000000, found '0:a'; change N"),
        (["-1:a"], "found '-1:a'; change N"),
        ([f"{10**9 + 1}:a"], "found '1000000001:a'; change N"),
        (["9" * 5000 + ":a"], "N from 1 to 1000000000"),
        (["a", "2:a/"], "expected each folder once, found 'a' twice"),
        ([str(n) for n in range(1001)], "expected at most 1000 folders, found 1001"),
        ([3], "expected a text"),
        (3, "expected"),
    ],
)
def test_a_mistake_in_subsets_is_one_line(subsets, expected, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"train_data_dir": "x", "subsets": subsets}))
    with pytest.raises(UserError) as caught:
        load_config([*MODEL, f"--config={file}"])
    message = str(caught.value)
    assert message.startswith("subsets: ") and expected in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("subset", ["out/pictures", "4:out"])
def test_an_output_dir_does_not_hold_a_folder_of_subsets(subset, tmp_path):
    given = [*MODEL, f"--train_data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"]
    assert load_config([*given, "--subsets", "in", "outside"])
    with pytest.raises(
        UserError, match=r"does not hold a folder of subsets, found .*out"
    ):
        load_config([*given, "--subsets", "in", subset])
    # What a link leads to, too.
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="does not hold a folder of subsets"):
        load_config([*given, "--subsets", "link"])
