#!/usr/bin/env python3
"""Trains a list of concepts, one after another, or spread over jobs.

    python launch/concepts.py LIST --output DIR [--job I --jobs N] [-- --key value ...]
    python launch/concepts.py LIST --output DIR --summary

LIST is a YAML file: the name of each concept, and its keys for `ti_flax.train`. The
arguments after `--` are for all of them; a concept's own keys win:

    cat_toy: {train_data_dir: pictures/cat_toy, placeholder_token: <cat-toy>}
    teapot:  {train_data_dir: pictures/teapot, placeholder_token: <teapot>, seed: 1}

Concept `cat_toy` comes to DIR/cat_toy, its log to DIR/cat_toy.log. Job I of N (from 0)
trains every N-th; a SLURM array tells I and N by itself. Started again, a job leaves
out what is done and resumes what was begun. The summary is DIR/summary.tsv.

Exit code: 0 all is well, 1 some failed (the others are trained all the same), 2 a
mistake in LIST or in the command, 75 stopped by a signal: run it again.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import yaml

USAGE, AGAIN = 2, 75
COLUMNS = ("concept", "state", "steps", "loss", "seconds", "last words")


def main() -> int:
    arguments = parse()
    concepts = read_list(arguments.list)
    arguments.output.mkdir(parents=True, exist_ok=True)
    codes = []
    if not arguments.summary:
        for name in list(concepts)[arguments.job :: arguments.jobs]:
            if read_result(arguments.output, name).get("code") == 0:
                print(f"{name}: done before", flush=True)
                continue
            codes.append(train(name, concepts[name], arguments))
            if codes[-1] == AGAIN:
                break
    rows = [COLUMNS, *(summarise(arguments.output, name) for name in concepts)]
    text = "".join("\t".join(row) + "\n" for row in rows)
    write(arguments.output / "summary.tsv", text)
    print(text, end="")
    return AGAIN if AGAIN in codes else int(any(codes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
    job = int(os.environ.get("SLURM_ARRAY_TASK_ID", first)) - first
    jobs = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", 1))
    parser.add_argument("list", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--job", type=int, default=job)
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--summary", action="store_true", help="write it, and end")
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    own, training = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, training = own[:at], own[at + 1 :]
    arguments = parser.parse_args(own, argparse.Namespace(training=training))
    if not 0 <= arguments.job < arguments.jobs:
        fail(f"expected 0 <= job < jobs, found {arguments.job} and {arguments.jobs}")
    return arguments


def read_list(path: Path) -> dict[str, dict[str, Any]]:
    try:
        concepts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"{path}: cannot be read ({' '.join(str(error).split())})")
    if not isinstance(concepts, dict) or not concepts:
        fail(f"{path}: expected lines of `name: {{key: value, ...}}`")
    for name, keys in concepts.items():
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            fail(f"{path}: {name!r} cannot name a folder; use letters, digits, . _ -")
        if not isinstance(keys, dict) or "output_dir" in keys:
            fail(f"{path}: {name}: expected keys without output_dir, found {keys!r}")
        for key, value in keys.items():
            several = value if isinstance(value, list) else [value]
            if not several or any(isinstance(one, dict | list) for one in several):
                fail(
                    f"{path}: {name}: {key}: expected a value or values, found {value}"
                )
    return {str(name): keys for name, keys in concepts.items()}


def train(name: str, keys: dict[str, Any], arguments: argparse.Namespace) -> int:
    """The exit code of the training; SIGTERM is passed on to it."""
    command = [sys.executable, "-m", "ti_flax.train"]
    command += without(keys, arguments.training)
    command += [
        f"--{key}={as_text(one)}"
        for key, value in keys.items()
        for one in (value if isinstance(value, list) else [value])
    ]
    command += [f"--output_dir={arguments.output / name}"]
    command += ["--resume_from_checkpoint=latest"]
    log = arguments.output / f"{name}.log"
    print(f"{name}: {subprocess.list2cmdline(command)} >> {log}", flush=True)
    if arguments.dry_run:
        return 0
    began = time.monotonic() - read_result(arguments.output, name).get("seconds", 0)
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        signal.signal(signal.SIGTERM, before)
    result = {"code": code, "seconds": round(time.monotonic() - began)}
    write(arguments.output / f"{name}.json", json.dumps(result))
    return code


def without(keys: Collection[str], training: list[str]) -> list[str]:
    """The words but for the flags of these keys: prompts of both would add up."""
    kept, dropping = [], False
    for word in training:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0] in keys
        if not dropping:
            kept.append(word)
    return kept


def summarise(output: Path, name: str) -> tuple[str, ...]:
    result = read_result(output, name)
    states = {None: "waiting", 0: "done", AGAIN: "stopped"}
    state = states.get(result.get("code"), "failed")
    lines = read_lines(output / name / "metrics.jsonl")
    last = json.loads(lines[-1]) if lines else {}
    words = read_lines(output / f"{name}.log")[-1:] if state == "failed" else []
    loss = f"{last['loss']:.4f}" if last else ""
    steps, seconds = last.get("step", 0), result.get("seconds", "")
    return name, state, str(steps), loss, str(seconds), *(words or [""])


def read_result(output: Path, name: str) -> dict[str, Any]:
    lines = read_lines(output / f"{name}.json")
    return json.loads(lines[0]) if lines else {}


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | type(None)) else str(value)


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE)


if __name__ == "__main__":
    sys.exit(main())
