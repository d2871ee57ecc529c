"""`python -m ti_flax.benchmark step`: our train step, alone or beside PyTorch's."""

import statistics
from typing import Any

from ti_flax.benchmarks import turns
from ti_flax.benchmarks.keys import StepKeys

_GIB = 2**30


def measure(keys: StepKeys) -> dict[str, Any]:
    """Prints a table, writes the numbers as JSON and returns them.

    Raises:
        UserError: what to mend, in one line.
    """
    facts, seconds = turns.measure(
        keys, "ti_flax.benchmarks.step_jax", "ti_flax.benchmarks.step_torch"
    )
    measured = {
        name: own | _speed(facts[turns.OURS], seconds[name])
        for name, own in facts.items()
    }
    print(table(measured))
    return turns.write(keys, {"sides": measured})


def _speed(ours: dict[str, Any], seconds: list[float]) -> dict[str, Any]:
    """Both sides do the same work, which is counted in ours."""
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "median_seconds": median,
        "examples_a_second": ours["examples"] / median,
        "flops_a_second": ours["flops"] / median,
        "share_of_peak": ours["flops"] / median / ours["peak_flops"],
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The numbers as a Markdown table, a column a side."""
    rows = {
        "": lambda s: s["library"],
        "device": lambda s: s.get("device", ""),
        "dtype, attention": lambda s: f"{s['dtype']}, {s.get('attention', 'sdpa')}",
        "examples/s": lambda s: f"{s['examples_a_second']:.4g}",
        "ms a step, median [least, most]": lambda s: (
            f"{turns.milliseconds(s['median_seconds'])} "
            f"[{turns.milliseconds(min(s['seconds']))}, "
            f"{turns.milliseconds(max(s['seconds']))}]"
        ),
        "TFLOP/s, share of a matrix product's": lambda s: (
            f"{s['flops_a_second'] / 1e12:.3g}, {s['share_of_peak']:.0%}"
        ),
        "peak memory, GiB": lambda s: f"{s['peak_bytes'] / _GIB:.2f}",
        "compilation (PyTorch: first step), s": lambda s: f"{s['compile_seconds']:.1f}",
        "process start to first step, s": lambda s: f"{s['first_step_seconds']:.1f}",
        "overhead of a dispatch, ms": lambda s: (
            f"{1e3 * s['overhead_seconds']:.2f}" if "overhead_seconds" in s else ""
        ),
    }
    return turns.markdown(
        [[name, *map(cell, measured.values())] for name, cell in rows.items()]
    )
