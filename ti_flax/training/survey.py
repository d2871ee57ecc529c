"""Many concepts before their training: what is wrong, and which go together."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ti_flax.config.concepts import Concept
from ti_flax.runtime import log
from ti_flax.runtime.errors import UserError
from ti_flax.step.abstract import BucketShape, RunShapes
from ti_flax.training.inputs import Inputs, read_inputs
from ti_flax.training.shapes import run_shapes
from ti_flax.training.writer import Writer

_log = logging.getLogger(__name__)


class Group(NamedTuple):
    """Concepts that share a compiled step, in their order.

    `shapes` are what each slot is padded to.
    """

    concepts: list[Concept]
    shapes: RunShapes


class Survey(NamedTuple):
    """Groups of concepts, what all share, and the reasons of those that cannot be."""

    groups: list[Group]
    shared: Inputs | None
    bad: list[tuple[Concept, str]]


def survey(concepts: Sequence[Concept]) -> Survey:
    """Reads everything but weights, and keeps none of it but sizes.

    A group has the same sizes of pictures, as many views of each, and the same window
    of fixed losses.
    """
    groups: dict[tuple, Group] = {}
    shared, bad = None, []
    for concept in concepts:
        try:
            with log.Subject(concept.name), Writer(concept.config):
                inputs = read_inputs(concept.config, shared)
        except UserError as error:
            bad.append((concept, str(error)))
            continue
        shared = shared or inputs
        shapes = run_shapes(concept.config, inputs)
        key = (
            tuple((each.height, each.width) for each in shapes.buckets),
            shapes.views,
            tuple((name, length) for name, (_, length) in shapes.prompts.items()),
            concept.config.window,
        )
        group = groups.get(key)
        if group is None:
            groups[key] = Group([concept], shapes)
        else:
            group.concepts.append(concept)
            groups[key] = group._replace(shapes=_larger(group.shapes, shapes))
    if len(groups) > 1:
        sizes = ", ".join(str(len(group.concepts)) for group in groups.values())
        _log.info(
            "%d groups of concepts, of %s, one after another: each with a compiled "
            "step for its sizes of pictures and its stopping rule",
            len(groups),
            sizes,
        )
    return Survey([*groups.values()], shared, bad)


def _larger(one: RunShapes, other: RunShapes) -> RunShapes:
    """What both fit into."""
    return one._replace(
        buckets=tuple(
            BucketShape(
                a.height,
                a.width,
                max(a.pictures, b.pictures),
                max(a.listed, b.listed),
            )
            for a, b in zip(one.buckets, other.buckets, strict=True)
        ),
        vectors=max(one.vectors, other.vectors),
        prompts={
            name: (max(count, other.prompts[name][0]), length)
            for name, (count, length) in one.prompts.items()
        },
        masked=one.masked or other.masked,
        rates=max(one.rates, other.rates),
    )
