"""Which words a tokenizer knows: a learned word must be none of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers


def normal_form(tokenizer: "transformers.PreTrainedTokenizerFast", word: str) -> str:
    """The one of a word's spellings that prompts are searched for.

    NFC and lower case with CLIP's tokenizer; BERT's also drops accents.
    """
    return tokenizer.backend_tokenizer.normalizer.normalize_str(word)


def has_word_pieces(tokenizer: "transformers.PreTrainedTokenizerFast") -> bool:
    """Whether the tokenizer is BERT's, whose `##ing` continues a word."""
    from tokenizers.models import WordPiece  # it comes with transformers

    return isinstance(tokenizer.backend_tokenizer.model, WordPiece)


def is_known(tokenizer: "transformers.PreTrainedTokenizerFast", word: str) -> bool:
    """Whether a word is an entry of the vocabulary, or a prompt's word that is one.

    `heart` is: a prompt that has it is read as `heart</w>`.
    """
    find = tokenizer.backend_tokenizer.token_to_id
    if {find(word), find(normal_form(tokenizer, word))} != {None}:
        return True
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids != [tokenizer.unk_token_id]


def new_word(tokenizer: "transformers.PreTrainedTokenizerFast", known: str) -> str:
    """A placeholder to recommend in place of a known word."""
    word = f"<{normal_form(tokenizer, known)}>"
    # Only letters and digits are certain to stay apart from the brackets.
    fits = word[1:-1].isalnum() and not is_known(tokenizer, word)
    return word if fits else "<my-cat>"
