"""The plots of the report, as points of SVG paths."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Points of a line; more steps are averaged in as many runs of equal length.
_MAX_POINTS = 300
# Weight of a step in the smoothed loss.
_SMOOTHING = 0.02
_QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter")

Line = dict[str, Any]
Numbers = list[float | None]


class Plot(NamedTuple):
    """Lines over `steps`: name -> numbers; `labels` are those of hovering, if any."""

    title: str
    about: str
    steps: list[int]
    lines: dict[str, Numbers]
    labels: dict[str, list[str]]


def plots(
    metrics: Sequence[Line], validations: Sequence[Line], num_vectors: int
) -> list[Plot]:
    """Those of a word of `num_vectors` vectors, which each text encoder has."""
    by_vector = functools.partial(_by_vector, num_vectors)
    validated = [one["step"] for one in validations]
    losses = [line["loss"] for line in metrics]

    def of_validations(title: str, about: str, lines: dict[str, Numbers]) -> Plot:
        return Plot(title, about, validated, lines, {})

    def of_steps(title: str, about: str, lines: dict[str, Numbers]) -> Plot:
        ends = _thinned([line["step"] for line in metrics], max)
        thinned = {name: _thinned(line, _mean) for name, line in lines.items()}
        return Plot(title, about, ends, thinned, {})

    def key(name: str) -> dict[str, Numbers]:
        values = [line[name] for line in metrics]
        if metrics and isinstance(values[0], list):
            return by_vector(values)
        return {name.replace("_", " "): values}

    return [
        _fixed_loss(metrics, validations),
        _by_quarter(validations),
        of_steps(
            "Loss of the steps",
            "Each step draws its own timesteps and noise: it jumps, whatever is "
            "learned.",
            {"loss": losses, "smoothed": _smoothed(losses)},
        ),
        of_validations(
            "Distance from the start",
            "L2 norm of what each vector has moved.",
            by_vector([one["distance"] for one in validations]),
        ),
        _nearest(validations, by_vector),
        of_steps(
            "Length of the vectors",
            "L2 norm. Far above that of other words, a word drowns its prompt.",
            key("row_norm"),
        ),
        of_steps(
            "Change in a step", "L2 norm of a step of each vector.", key("row_step")
        ),
        of_steps("Gradient norm", "Before clipping.", key("grad_norm")),
        of_steps("Learning rate", "", key("learning_rate")),
        of_steps("Examples per second", "", key("examples_per_second")),
    ]


def _fixed_loss(metrics: Sequence[Line], validations: Sequence[Line]) -> Plot:
    """By validations, and between them where steps have it."""
    between = [line for line in metrics if "fixed_loss" in line]
    ends = _thinned([line["step"] for line in between], max)
    means = _thinned([line["fixed_loss"] for line in between], _mean)
    by_step = dict(zip(ends, means, strict=True))
    by_step |= {line["step"]: line["fixed_loss"] for line in validations}
    steps = sorted(by_step)
    return Plot(
        "Loss on a fixed set",
        "The same pictures, prompts, timesteps and noise every time, and so comparable "
        "over the steps.",
        steps,
        {"loss": [by_step[step] for step in steps]},
        {},
    )


def _nearest(
    validations: Sequence[Line],
    by_vector: Callable[[Sequence[Sequence[Any]]], dict[str, list[Any]]],
) -> Plot:
    closest = [[near[0] for near in one["nearest"]] for one in validations]
    return Plot(
        "Nearest word",
        "Cosine to the nearest row of the vocabulary; 1 is that word itself.",
        [one["step"] for one in validations],
        by_vector([[cosine for _, cosine in near] for near in closest]),
        by_vector([[word for word, _ in near] for near in closest]),
    )


def _by_quarter(validations: Sequence[Line]) -> Plot:
    """The fixed loss by timestep; lines of earlier versions have it not."""
    quarters = [one.get("loss_by_quarter", [None] * 4) for one in validations]
    return Plot(
        "Loss on the fixed set by timestep",
        "The same examples by quarters of the timesteps; the 1st has the least noise.",
        [one["step"] for one in validations],
        {name: [four[i] for four in quarters] for i, name in enumerate(_QUARTERS)},
        {},
    )


def _by_vector(
    num_vectors: int, values: Sequence[Sequence[Any]]
) -> dict[str, list[Any]]:
    """One line a vector out of one list of vectors a step."""
    lines = list(zip(*values, strict=True))
    names = vector_names(len(lines), num_vectors)
    return {
        f"vector {name}": list(line) for name, line in zip(names, lines, strict=True)
    }


def vector_names(count: int, num_vectors: int) -> list[str]:
    """Names of `count` vectors, those of one text encoder after those of another."""
    if count <= num_vectors:
        return [str(index) for index in range(count)]
    return [
        f"{index % num_vectors} of text encoder {1 + index // num_vectors}"
        for index in range(count)
    ]


def _thinned(
    values: Sequence[Any], together: Callable[[Sequence[Any]], Any]
) -> list[Any]:
    """At most `_MAX_POINTS` numbers, each of neighbours put `together`."""
    count = min(len(values), _MAX_POINTS)
    ends = [len(values) * index // count for index in range(1, count + 1)]
    return [
        together(values[start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are finite numbers, to six digits."""
    numbers = [value for value in values if value is not None]
    return float(f"{np.mean(numbers):.6g}") if numbers else None


def _smoothed(values: Sequence[float | None]) -> Numbers:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015)."""
    total = weight = 0.0
    smoothed: Numbers = []
    for value in values:
        if value is not None:
            total += _SMOOTHING * (value - total)
            weight += _SMOOTHING * (1 - weight)
        smoothed.append(total / weight if weight else None)
    return smoothed
