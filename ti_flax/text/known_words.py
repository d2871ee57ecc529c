"""Which words a tokenizer knows: a learned word must be none of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers


def normal_form(tokenizer: "transformers.CLIPTokenizer", word: str) -> str:
    """The one of a word's spellings that prompts are searched for: NFC, lower case."""
    return tokenizer.backend_tokenizer.normalizer.normalize_str(word)


def is_known(tokenizer: "transformers.CLIPTokenizer", word: str) -> bool:
    """Whether a word is an entry of the vocabulary, or a prompt's word that is one.

    `heart` is: a prompt that has it is read as `heart</w>`.
    """
    find = tokenizer.backend_tokenizer.token_to_id
    if {find(word), find(normal_form(tokenizer, word))} != {None}:
        return True
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids != [tokenizer.unk_token_id]


def new_word(tokenizer: "transformers.CLIPTokenizer", known: str) -> str:
    """A placeholder to recommend in place of a known word."""
    word = f"<{normal_form(tokenizer, known)}>"
    # Only letters and digits are certain to stay apart from the brackets.
    fits = word[1:-1].isalnum() and not is_known(tokenizer, word)
    return word if fits else "<my-cat>"
