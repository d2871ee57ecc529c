"""The captions of a folder of pictures as the prompts of a run, for a look at them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ti_flax.config.run_config import Config
from ti_flax.data.captions import Captions, Source, from_file_name, read_captions
from ti_flax.text.captions import Rules, prompts_of
from ti_flax.text.templates import FILEWORDS, prompt_templates


class Captioned(NamedTuple):
    """Where captions are, and how they become prompts; by default without a run.

    `frames` are the templates that a caption goes into.
    """

    source: Source = "auto"
    rules: Rules = Rules(placeholder_token="<word>")
    frames: tuple[str, ...] = (FILEWORDS,)

    @classmethod
    def of_run(cls, config: Config) -> "Captioned":
        """As the keys say. Raises `UserError` for a template_file that is none."""
        rules = Rules(**{key: getattr(config, key) for key in Rules._fields})
        if config.template_file is None:
            return cls(config.caption_source, rules)
        templates = prompt_templates(config.learnable_property, config.template_file)
        if not any(FILEWORDS in template for template in templates):
            return cls("none", rules)
        return cls(config.caption_source, rules, tuple(templates))

    def read(self, folder: Path, pictures: Sequence[str]) -> Captions:
        """Those of the pictures; raises `UserError` where a file is damaged."""
        separator = self.rules.caption_separator
        read = read_captions(folder, pictures, self.source, separator)
        if self.frames == (FILEWORDS,):
            return read
        pairs = zip(pictures, read.texts, strict=True)
        texts = tuple(text or from_file_name(name) for name, text in pairs)
        return read._replace(
            texts=texts, source="filename" if read.source == "none" else read.source
        )

    def prompts(self, text: str, number: int) -> list[str]:
        """Those of a picture with these captions; its number makes what is random."""
        return prompts_of(text, self.rules, number, self.frames) if text else []

    def has_word(self, text: str, number: int) -> bool:
        """Whether each of its prompts has the new word."""
        prompts = self.prompts(text, number)
        return all(self.rules.placeholder_token in prompt for prompt in prompts)
