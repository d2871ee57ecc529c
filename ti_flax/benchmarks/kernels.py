"""`python -m ti_flax.benchmark kernels`: what a step is made of, and its speed."""

import collections
import statistics
from typing import Any

from ti_flax.benchmarks import turns
from ti_flax.benchmarks.keys import KernelKeys

# Of the table; the file has all.
_ROWS = 12


def measure(keys: KernelKeys) -> dict[str, Any]:
    """Prints a table, writes the numbers as JSON and returns them.

    Raises:
        UserError: what to mend, in one line.
    """
    of_sides, taken = turns.measure(
        keys, "ti_flax.benchmarks.kernels_jax", "ti_flax.benchmarks.kernels_torch"
    )
    facts = of_sides[turns.OURS]
    for name, kernel in facts["kernels"].items():
        for side, answers in taken.items():
            median = statistics.median(answer[name] for answer in answers)
            kernel["seconds"][side] = median
    print(table(facts, of_sides.get(turns.PYTORCH)))
    return turns.write(keys, facts)


def table(ours: dict[str, Any], pytorchs: dict[str, Any] | None) -> str:
    """The costliest kernels, then all of each kind, as a Markdown table.

    Args:
        ours: the facts, with the `seconds` of each kernel by side.
        pytorchs: the facts of PyTorch's side, where it was measured.
    """
    columns = {turns.OURS: turns.OURS, "XLA": f"XLA alone, {ours['library']}"}
    if pytorchs:
        columns[turns.PYTORCH] = pytorchs["library"]
    kernels = ours["kernels"]

    def seconds(kernel: dict[str, Any], side: str) -> float:
        # What we leave to XLA is its own.
        measured = kernel["seconds"]
        return kernel["calls"] * measured.get(side, measured[turns.OURS])

    def row(name: str, group: list[dict[str, Any]]) -> list[str]:
        totals = [sum(seconds(each, side) for each in group) for side in columns]
        work = sum(each["calls"] * each["flops"] for each in group)
        share = work / totals[0] / ours["peak_flops"]
        calls = sum(each["calls"] for each in group)
        cells = [name, str(calls), f"{share:.0%}" if work else ""]
        return cells + [turns.milliseconds(total) for total in totals]

    head = ["ms a step, forward and gradient", "calls", "share of a product's"]
    rows = [[*head, *columns.values()]]
    costliest = sorted(kernels, key=lambda name: -seconds(kernels[name], turns.OURS))
    rows += [row(name, [kernels[name]]) for name in costliest[:_ROWS]]
    kinds = collections.defaultdict(list)
    for kernel in kernels.values():
        kinds[kernel["kind"]].append(kernel)
    rows += [row(f"all {kind}", group) for kind, group in kinds.items()]
    rows.append(row("all of these", list(kernels.values())))
    return turns.markdown(rows)
