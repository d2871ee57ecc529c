"""The quickstart's configuration, wherever the package is installed."""

from collections.abc import Sequence
from pathlib import Path

from ti_flax.config import command_line, run_config, yaml_file

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
PICTURES = FOLDER / "pictures"
CONFIG = FOLDER / "quickstart.yaml"  # configs/quickstart.yaml is a link to it


def load_config(argv: Sequence[str]) -> run_config.Config:
    """configs/quickstart.yaml and the `--key value` that override it.

    The file's paths start at the repository; here they are those of the package, so
    that they hold in any folder.
    """
    paths = {
        "pretrained_model_name_or_path": str(MODEL),
        "train_data_dir": str(PICTURES),
    }
    defaults = yaml_file.read_yaml(CONFIG, [*run_config.Config.model_fields]) | paths
    return run_config.load_config(
        [
            f"--config={CONFIG}",
            *(f"--{key}={path}" for key, path in paths.items()),
            *argv,
        ],
        command_line.Program("quickstart", "[--key value ...]", defaults),
    )
