"""`python -m ti_flax.benchmark kernels`: what a step is made of, and its speed."""

import collections
import statistics
from typing import Any

from ti_flax import sides
from ti_flax.step_keys import KernelKeys

# Of the table; the file has all.
_ROWS = 12


def measure(keys: KernelKeys) -> dict[str, Any]:
    """Prints a table, writes the numbers as JSON and returns them.

    Raises:
        UserError: what to mend, in one line.
    """
    with sides.started(keys, "ti_flax.jax_kernels", "ti_flax.torch_kernels") as pair:
        turns = pair.take_turns(keys.repeats)
    facts = pair.facts[sides.OURS]
    for name, kernel in facts["kernels"].items():
        for side, answers in turns.items():
            median = statistics.median(answer[name] for answer in answers)
            kernel["seconds"][side] = median
    print(table(facts, pair.facts.get(sides.PYTORCH)))
    return sides.write(keys, facts)


def table(ours: dict[str, Any], pytorchs: dict[str, Any] | None) -> str:
    """The costliest kernels, then the sums of each kind, as a Markdown table.

    Args:
        ours: the facts, with the `seconds` of each kernel by side.
        pytorchs: the facts of PyTorch's side, where it was measured.
    """
    names = {sides.OURS: sides.OURS, "XLA": f"XLA alone, {ours['library']}"}
    if pytorchs:
        names[sides.PYTORCH] = pytorchs["library"]
    kernels = ours["kernels"]

    def cost(name: str) -> float:
        return kernels[name]["calls"] * kernels[name]["seconds"][sides.OURS]

    rows = [["forward and gradient", "calls", "ms a step", "share of a product's"]]
    rows[0] += [f"{name}: ms a call" for name in names.values()]
    costliest = sorted(kernels, key=cost, reverse=True)
    for name in costliest[:_ROWS]:
        kernel, seconds = kernels[name], kernels[name]["seconds"]
        share = kernel["flops"] / seconds[sides.OURS] / ours["peak_flops"]
        rows.append([name, str(kernel["calls"]), f"{1e3 * cost(name):.3g}"])
        rows[-1].append(f"{share:.0%}" if kernel["flops"] else "")
        # What we leave to XLA is its own.
        rows[-1] += [f"{1e3 * seconds[s]:.3g}" if s in seconds else "" for s in names]
    kinds = collections.defaultdict(list)
    for kernel in kernels.values():
        kinds[kernel["kind"]].append(kernel)
    for kind, group in [*kinds.items(), ("these", list(kernels.values()))]:
        calls = sum(each["calls"] for each in group)
        total = {
            side: sum(
                each["calls"] * each["seconds"].get(side, each["seconds"][sides.OURS])
                for each in group
            )
            for side in names
        }
        work = sum(each["calls"] * each["flops"] for each in group)
        share = work / total[sides.OURS] / ours["peak_flops"]
        rows.append([f"all {kind}, ms a step", str(calls)])
        rows[-1] += [f"{1e3 * total[sides.OURS]:.3g}", f"{share:.0%}" if work else ""]
        rows[-1] += [f"{1e3 * total[side]:.3g}" for side in names]
    return sides.markdown(rows)
