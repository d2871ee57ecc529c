"""What the times of the queue and of single commands come to, and the table of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ti_flax.benchmarks import turns
from ti_flax.benchmarks.concepts.timed import ALONE_NAME, PYTORCH_NAME, QUEUE_NAME

_NOT_MEASURED = "not measured"


def of_queue(queue: Mapping[str, Any], steps: Sequence[int]) -> dict[str, Any]:
    """What the queue took; None where that was not measured.

    `in_slots` are the seconds from the first concept's slot to the end of the last;
    before are imports and a look at all pictures. The first steps wait for compilation.
    """
    count, seconds, spent = queue["concepts"], queue["seconds"], queue["spent"]
    found = {
        "words": count,
        "seconds": seconds,
        "words_per_hour": seconds and 3600 * count / seconds,
        **dict.fromkeys(("in_slots", "words_per_hour_in_slots")),
        **dict.fromkeys(("share_in_steps", "seconds_per_refill")),
        "steps": spread(steps),
    }
    if spent is not None:
        in_slots = spent["seconds"]
        found |= {
            "in_slots": in_slots,
            "words_per_hour_in_slots": 3600 * count / in_slots,
            "share_in_steps": spent["in_steps"] / in_slots,
            "seconds_per_refill": (in_slots - spent["in_steps"]) / count,
        }
    return found


def of_alone(
    seconds: Mapping[str, float | None], steps: Sequence[int]
) -> dict[str, Any]:
    """What single commands took, in the mean over those that were measured."""
    measured = [each for each in seconds.values() if each is not None]
    mean = sum(measured) / len(measured) if measured else None
    return {
        "words": len(seconds),
        "measured": len(measured),
        "seconds": dict(seconds),
        "mean_seconds": mean,
        "words_per_hour": mean and 3600 / mean,
        "steps": spread(steps),
    }


def of_pytorch(seconds: Sequence[float], steps: int) -> dict[str, Any]:
    """What runs of PyTorch took, in the mean, each of so many steps."""
    mean = sum(seconds) / len(seconds)
    return {
        "runs": len(seconds),
        "seconds": [*seconds],
        "mean_seconds": mean,
        "words_per_hour": 3600 / mean,
        "steps": spread([steps]),
    }


def ratio(queue: Mapping[str, Any], alone: Mapping[str, Any] | None) -> float | None:
    """Words an hour of the queue for one of single runs, both from start to exit."""
    theirs = alone and alone["words_per_hour"]
    if theirs is None or queue["words_per_hour"] is None:
        return None
    return queue["words_per_hour"] / theirs


def spread(steps: Sequence[int]) -> dict[str, Any]:
    """Mean and quartiles."""
    quartiles = np.quantile(steps, [0.25, 0.5, 0.75]).tolist()
    return {"mean": float(np.mean(steps)), "quartiles": quartiles}


def table(content: Mapping[str, Any]) -> str:
    """The report as a Markdown table: the queue, and one at a time beside it."""
    queue, alone = content[QUEUE_NAME], content[ALONE_NAME]
    pytorch = content[PYTORCH_NAME]
    slots = content["settings"]["slots"]
    head = ["", f"{queue['words']} words in {slots} slots"]
    if alone:
        head += [f"{alone['words']} words alone", "beside each other"]
    if pytorch:
        head += [f"{pytorch['runs']} runs of PyTorch", "beside them"]
    rows = [
        [
            "words an hour, start to exit",
            _number(queue["words_per_hour"]),
            _number(alone and alone["words_per_hour"]),
            _times(content["ratio"]),
            _number(pytorch and pytorch["words_per_hour"]),
            _times(content["ratio_to_pytorch"]),
        ],
        [
            "words an hour, in slots",
            _number(queue["words_per_hour_in_slots"]),
        ],
        [
            "seconds, start to exit",
            _number(queue["seconds"]),
            _each(alone),
            "",
            _each(pytorch),
        ],
        ["seconds, in slots", _number(queue["in_slots"])],
        ["share of that in steps", _number(queue["share_in_steps"], "{:.1%}")],
        ["seconds a refill", _number(queue["seconds_per_refill"])],
        [
            "steps, mean [quartiles]",
            _steps(queue["steps"]),
            _steps(alone["steps"]) if alone else "",
            "",
            _number(pytorch["steps"]["mean"]) if pytorch else "",
        ],
        *_accuracies(content["accuracy"] or {}),
    ]
    padded = [[*row, *[""] * len(head)][: len(head)] for row in rows]
    return turns.markdown([head, *padded])


def _accuracies(accuracy: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for kind, found in accuracy.items():
        counts = "; ".join(str(count) for count in found["words"].values() if count)
        for name in ("appearance", "background"):
            cells = [_percent(estimate) for estimate in found[name].values()]
            if len(cells) == 3:
                cells[2] += " points"
            rows.append([f"{kind}s ({counts}), {name}, % right", *cells])
    return rows


def _number(value: float | None, form: str = "") -> str:
    """To three digits at least, without an exponent."""
    if value is None:
        return _NOT_MEASURED
    if form:
        return form.format(value)
    places = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{places}f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{_number(ratio)} times"


def _each(single: Mapping[str, Any] | None) -> str:
    return f"{_number(single['mean_seconds'])} each" if single else ""


def _steps(steps: Mapping[str, Any]) -> str:
    quartiles = ", ".join(f"{each:.0f}" for each in steps["quartiles"])
    return f"{steps['mean']:.0f} [{quartiles}]"


def _percent(estimate: Mapping[str, float]) -> str:
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
