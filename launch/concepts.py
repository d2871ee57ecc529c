#!/usr/bin/env python3
"""Trains a list of concepts as one job of several, and says how all of it went.

    python launch/concepts.py LIST --output DIR [--job I --jobs N] [-- --key value ...]
    python launch/concepts.py --output DIR --summary

Job I of N (from 0) is `python -m ti_flax.train --concepts LIST --output_dir DIR
--part I/N` with what comes after `--`; a SLURM array tells I and N by itself. Started
again, a job leaves out what is done and resumes what was begun. All jobs write into
DIR, and DIR/index.html is the page over all concepts. The summary is that page in
lines: DIR/summary.tsv, which is printed as well.

Exit code: that of the training, or of the summary: 0 all are done, 2 a mistake, or
some failed (the others are trained all the same), 75 some are not done: run it again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

FAILED, AGAIN = 2, 75
COLUMNS = ("concept", "state", "steps", "fixed_loss", "seconds", "reason")


def main() -> int:
    arguments = parse()
    if arguments.summary:
        return summarise(arguments.output)
    command = [sys.executable, "-m", "ti_flax.train"]
    command += [*arguments.training, f"--concepts={arguments.list}"]
    command += [f"--output_dir={arguments.output}"]
    command += [f"--part={arguments.job}/{arguments.jobs}"]
    # In its place: signals reach the run, which then saves its state.
    os.execv(command[0], command)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
    job = int(os.environ.get("SLURM_ARRAY_TASK_ID", first)) - first
    jobs = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", 1))
    parser.add_argument("list", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--job", type=int, default=job)
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--summary", action="store_true", help="write it, and end")
    own, training = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, training = own[:at], own[at + 1 :]
    arguments = parser.parse_args(own, argparse.Namespace(training=training))
    if arguments.list is None and not arguments.summary:
        parser.error("expected LIST, or --summary")
    return arguments


def summarise(output: Path) -> int:
    """Writes and prints a line a concept; the exit code."""
    if not output.is_dir():
        print(f"error: --output: expected a folder, found {output}", file=sys.stderr)
        return FAILED
    lines: dict[str, dict[str, Any]] = {}
    # A concept that other numbers of jobs had counts where it got furthest, at last.
    for path in sorted(output.glob("concepts*.json"), key=os.path.getmtime):
        for name, line in json.loads(path.read_text())["concepts"].items():
            if lines.get(name, {}).get("state") != "done":
                lines[name] = line
    rows = [COLUMNS, *((name, *cells(line)) for name, line in sorted(lines.items()))]
    text = "".join("\t".join(row) + "\n" for row in rows)
    temporary = output / f".summary.tsv.{os.getpid()}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(output / "summary.tsv")
    print(text, end="")
    states = {line["state"] for line in lines.values()}
    if not lines or states & {"waiting", "training"}:
        return AGAIN
    return FAILED if "failed" in states else 0


def cells(line: dict[str, Any]) -> list[str]:
    loss = line["fixed_loss"]
    told = f"{loss:.4f}" if isinstance(loss, float) else ""
    seconds = f"{line['seconds']:.0f}"
    return [line["state"], str(line["steps"]), told, seconds, line["reason"]]


if __name__ == "__main__":
    sys.exit(main())
