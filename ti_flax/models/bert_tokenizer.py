"""Files of BERT's tokenizer (Devlin et al. 2019), for models of random weights."""

import string
from pathlib import Path

from ti_flax.runtime import atomic

# Their places in the published vocabulary are others; that of the padding is the same.
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def write(folder: Path) -> None:
    """Writes vocab.txt, without a word longer than a letter, and its settings."""
    letters = [*string.digits, *string.ascii_lowercase]
    words = [
        *_SPECIAL.values(),
        *string.punctuation,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    settings = {
        "do_lower_case": True,
        # As published, for BERT; latent diffusion takes 77.
        "model_max_length": 512,
        "tokenizer_class": "BertTokenizer",
        **_SPECIAL,
    }
    atomic.write_json(folder / "tokenizer_config.json", settings)
    with atomic.atomic_path(folder / "vocab.txt") as path:
        path.write_text("\n".join([*words, ""]), encoding="utf-8")
