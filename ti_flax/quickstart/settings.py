"""The quickstart's configuration, wherever the package is installed."""

from collections.abc import Sequence
from pathlib import Path

from ti_flax.config import run_config

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
PICTURES = FOLDER / "pictures"
CONFIG = FOLDER / "quickstart.yaml"  # configs/quickstart.yaml is a link to it


def load_config(argv: Sequence[str]) -> run_config.Config:
    """configs/quickstart.yaml and the `--key value` that override it.

    The file's paths start at the repository; here they are those of the package, so
    that they hold in any folder.
    """
    return run_config.load_config(
        [
            *("--config", str(CONFIG)),
            *("--pretrained_model_name_or_path", str(MODEL)),
            *("--train_data_dir", str(PICTURES)),
            *argv,
        ]
    )
