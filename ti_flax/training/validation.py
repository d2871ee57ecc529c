"""Looks at a run between its steps: what the loss of a step does not tell.

Nothing here changes what training uses; every random number has a key of its own.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from ti_flax.generation import previews
from ti_flax.models import base_model
from ti_flax.reports import metrics_log, report
from ti_flax.runtime import hosts, sharding
from ti_flax.step import train_step

if TYPE_CHECKING:
    import transformers

# The fixed set has at least this many examples: a forward pass of each, every look.
_FIXED_EXAMPLES = 16
_NUM_NEAREST = 5


class Run(NamedTuple):
    """What looks need of a run: `params` as of `previews.Previews.make`."""

    params: Mapping[str, base_model.Params]
    bank: train_step.Bank
    recipe: train_step.Recipe
    initial_rows: Float32[np.ndarray, "K D"]
    tokenizer: "transformers.CLIPTokenizer"
    previews: previews.Previews | None
    output_dir: Path


def compile_look(
    run: Run, run_report: report.Report
) -> Callable[[int, train_step.State], None]:
    """The event that looks at a state of the run and reports what it sees."""
    fixed_loss = hosts.together(compile_fixed_loss(run.recipe))

    def look(done: int, state: train_step.State) -> None:
        hosts.meet()  # the first process has more to write before a look
        rows = state.rows["text_encoder"][0]
        cosines, ids = nearest(_table(run.params["text_encoder"]), rows)
        moved = sharding.whole(rows) - run.initial_rows
        run_report.look(
            report.Look(
                step=done,
                fixed_loss=float(fixed_loss(state.rows, run.params, run.bank)[0]),
                distance=np.linalg.norm(moved, axis=-1).tolist(),
                nearest=_words(run.tokenizer, *map(sharding.whole, (ids, cosines))),
                previews=_show(run, rows, f"step_{done:06d}"),
                # Without the word, nothing changes from step to step.
                control=_show(run, rows, "control") if done == 0 else [],
            )
        )

    return look


def compile_fixed_loss(
    recipe: train_step.Recipe,
) -> Callable[
    [train_step.Rows, Mapping[str, base_model.Params], train_step.Bank],
    Float[jax.Array, "S"],
]:
    """The loss on a set of examples that is the same at every step of a run.

    Pictures, prompts, noise and posterior samples are drawn as those of a step that no
    run reaches, and so are not those of any train step; timesteps are spread evenly.
    """
    batch_size = recipe.train_batch_size
    parts = math.ceil(_FIXED_EXAMPLES / batch_size)
    train_timesteps = recipe.schedule.num_timesteps

    @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
    def fixed_loss(rows, frozen, bank):
        never = jnp.full_like(bank.max_train_steps, jnp.iinfo(jnp.int32).max)

        def part(index: Int[Array, ""]) -> Float[Array, "S"]:
            examples = index * batch_size + jnp.arange(batch_size)
            batch = train_step.draw_batch(
                bank, never, examples, recipe.scaling_factor, train_timesteps
            )
            spread = (2 * examples + 1) * train_timesteps // (2 * parts * batch_size)
            batch = batch._replace(
                timesteps=jnp.broadcast_to(spread[None], batch.timesteps.shape)
            )
            return train_step.losses(rows, frozen, batch, recipe)

        return jax.lax.map(part, jnp.arange(parts)).mean(axis=0)

    return fixed_loss


@jax.jit
def nearest(
    table: Float[Array, "V D"], rows: Float[Array, "K D"]
) -> tuple[Float[Array, "K N"], Int[Array, "K N"]]:
    """Cosines and ids of the vocabulary's rows nearest to each learned row."""

    def unit(vectors: Array) -> Array:
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)

    highest = jax.lax.Precision.HIGHEST
    cosines = jnp.matmul(unit(rows), unit(table).T, precision=highest)
    # A row of zeros is near to nothing.
    return tuple(jax.lax.top_k(jnp.nan_to_num(cosines, nan=-1.0), _NUM_NEAREST))


def _show(run: Run, rows: Float[Array, "K D"], name: str) -> list[report.Shown]:
    """Makes previews, or with the name `control` those, and writes them."""
    if run.previews is None:
        return []
    folder = Path(metrics_log.SAMPLES_NAME, name)
    shown = []
    made = run.previews.make(rows, run.params, control=name == "control")
    for number, (prompt, pictures) in enumerate(made):
        # Every process makes them, one writes.
        if jax.process_index() == 0:
            names = run.previews.save(prompt, pictures, run.output_dir / folder, number)
            paths = [(folder / file).as_posix() for file in names]
            shown.append(report.Shown(prompt, paths, pictures))
    return shown


def _table(text_encoder: base_model.Params) -> Float[Array, "V D"]:
    return text_encoder["embeddings"]["token_embedding"]["embedding"]


def _words(
    tokenizer: "transformers.CLIPTokenizer",
    ids: Int[np.ndarray, "K N"],
    cosines: Float[np.ndarray, "K N"],
) -> list[list[tuple[str, float]]]:
    return [
        [
            (_word(tokenizer, int(id_)), round(float(cosine), 4))
            for id_, cosine in zip(*near, strict=True)
        ]
        for near in zip(ids, cosines, strict=True)
    ]


def _word(tokenizer: "transformers.CLIPTokenizer", id_: int) -> str:
    """A word as people write it; with an ellipsis, what only begins longer words."""
    token = tokenizer.convert_ids_to_tokens(id_)
    if id_ in tokenizer.all_special_ids:
        return token
    word = tokenizer.decode([id_]).strip()
    if not word or "\N{REPLACEMENT CHARACTER}" in word:  # not a character by itself
        word = token.removesuffix("</w>")
    return word if token.endswith("</w>") else f"{word}…"
