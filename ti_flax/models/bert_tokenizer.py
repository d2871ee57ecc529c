"""Files of BERT's tokenizer (Devlin et al. 2019) where a model has none.

All its models without capitals share one vocabulary, vocab.txt of 30,522 word-pieces.
"""

import atexit
import functools
import os
import shutil
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ti_flax.models import locate
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError

VOCABULARY = "vocab.txt"
_REPOSITORY = "google-bert/bert-base-uncased"
# Their places in the published vocabulary are others; that of the padding is the same.
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@functools.cache
def find(file: Path) -> Path:
    """A tokenizer's folder for a model in one file, of whose words it says nothing.

    By the vocab.txt beside the file, in a folder that lasts as long as this process; or
    of BERT's repository on the Hub.

    Raises `UserError` where there is neither.
    """
    beside = file.parent / VOCABULARY
    if not os.path.isfile(beside):
        try:
            return locate.find_tokenizer(_REPOSITORY, None)
        except UserError as error:
            raise UserError(
                f"{file}: has no tokenizer, and there is no {VOCABULARY} beside it, "
                f"nor {_REPOSITORY} from the Hub; put that repository's {VOCABULARY} "
                "beside the file"
            ) from error
    made = Path(tempfile.mkdtemp(prefix="ti_flax-tokenizer-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    shutil.copyfile(beside, made / VOCABULARY)
    _write_settings(made)
    return made


def write(folder: Path, words: Sequence[str] = ()) -> None:
    """Writes a vocabulary of letters, and of `words`, with its settings."""
    letters = [*string.digits, *string.ascii_lowercase]
    entries = [
        *_SPECIAL.values(),
        *string.punctuation,
        *letters,
        *(f"##{letter}" for letter in letters),
        *words,
    ]
    _write_settings(folder)
    with atomic.atomic_path(folder / VOCABULARY) as path:
        path.write_text("\n".join([*entries, ""]), encoding="utf-8")


def _write_settings(folder: Path) -> None:
    settings = {
        "do_lower_case": True,
        # As published, for BERT; latent diffusion takes 77.
        "model_max_length": 512,
        "tokenizer_class": "BertTokenizer",
        **_SPECIAL,
    }
    atomic.write_json(folder / "tokenizer_config.json", settings)
