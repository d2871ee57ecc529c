"""Keys of a run that say where its vectors start."""

from typing import Annotated

from pydantic import Field, model_validator

from ti_flax.config.fields import (
    MOST_STEPS,
    Count,
    Number,
    OptionalName,
    OptionalNameOrPath,
    Settings,
    Texts,
)
from ti_flax.config.natures import FREE, TRAVELS


class StartKeys(Settings):
    """Where the vectors start."""

    initializer_token: Annotated[OptionalName, TRAVELS] = Field(
        None,
        description="word or words that the vectors start from, spread over them; none "
        "starts them at random at the vocabulary's scale",
    )
    initializer_embedding: Annotated[OptionalNameOrPath, FREE] = Field(
        None,
        description="embedding that the vectors start from, in place of "
        "initializer_token: a file of any format, a folder or a Hub id",
    )
    initializer_jitter: Annotated[Number, TRAVELS] = Field(
        0.1,
        ge=0,
        le=100,
        description="noise on vectors that would start equal to an earlier one, in "
        "standard deviations of a vocabulary coordinate",
    )
    initializer_scale: Annotated[Number, TRAVELS] = Field(
        1.0,
        gt=0,
        le=100,
        description="factor on the vectors of initializer_token, or on random ones: a "
        "short vector turns sooner away from the word that it starts from",
    )
    num_starts: Annotated[Count, TRAVELS] = Field(
        1,
        le=64,
        description="starts that are tried for start_steps each, of which the one with "
        "the least fixed loss then learns: initializer_token, start_tokens, and the "
        "best of the words near to them; without any, random ones",
    )
    start_tokens: Annotated[Texts, TRAVELS] = Field(
        (), description="further words that are tried, each as initializer_token"
    )
    start_steps: Annotated[Count, TRAVELS] = Field(
        20, le=MOST_STEPS, description="steps of each start that is tried"
    )

    @model_validator(mode="after")
    def _one_initializer(self) -> "StartKeys":
        if self.initializer_token and self.initializer_embedding:
            raise ValueError(
                "expected initializer_token or initializer_embedding, found both "
                f"({self.initializer_token!r}, {str(self.initializer_embedding)!r}); "
                "remove one"
            )
        return self

    @model_validator(mode="after")
    def _starts(self) -> "StartKeys":
        if self.initializer_embedding and self.num_starts > 1:
            raise ValueError(
                "expected num_starts 1 with initializer_embedding, found "
                f"{self.num_starts}; vectors that are given are the only start"
            )
        if self.start_tokens and not self.initializer_token:
            raise ValueError(
                f"expected initializer_token beside start_tokens "
                f"{' '.join(self.start_tokens)}, found none; name the first there"
            )
        given = len(self.start_words)
        if given > self.num_starts:
            raise ValueError(
                f"expected num_starts >= {given}, as many as there are words "
                f"(initializer_token and start_tokens), found {self.num_starts}"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "StartKeys":
        if self.initializer_embedding and self.initializer_scale != 1:
            raise ValueError(
                "expected initializer_scale 1 with initializer_embedding, found "
                f"{self.initializer_scale}; vectors that are given start as they are"
            )
        return self

    @property
    def start_words(self) -> tuple[str, ...]:
        """The words that are given to start from."""
        first = () if self.initializer_token is None else (self.initializer_token,)
        return first + self.start_tokens
