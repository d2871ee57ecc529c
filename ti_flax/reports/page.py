"""report.html: a run on one page that needs no other file and no network."""

import base64
import shlex
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax import __version__
from ti_flax.config import folder_names, run_config
from ti_flax.reports import metrics_log, thumbnails
from ti_flax.reports.plots import Line, plots, vector_names
from ti_flax.runtime import atomic, pages

REPORT_NAME = "report.html"
# Of one in the page: there may be sixteen, of each prompt.
_MAX_WORD_BYTES = 2**16
# Where `add_picture` puts its own; in no text of a user, which is escaped.
_PLACE = "<!-- pictures of other commands -->"


class Status(NamedTuple):
    """Where a run stands; `reason` says why it ended early, if it did."""

    done: int
    total: int
    running: bool
    reason: str


class Usage(NamedTuple):
    """How other programs draw the word of a run."""

    # Lines of Python.
    diffusers: str
    # What AUTOMATIC1111 and ComfyUI read; None where they do not know such words.
    file: str | None
    # The file of the word after so many steps, which may not be there.
    words: Callable[[int], Path]


def write(
    config: run_config.Config,
    usage: Usage,
    pictures: Collection[UInt8[np.ndarray, "_ _ 3"]],
    status: Status,
    warnings: Sequence[str],
) -> None:
    """Writes the page of the run in `config.output_dir` out of what lies there.

    Args:
        config: of the run.
        usage: for other programs.
        pictures: those it learns from.
        status: where it stands.
        warnings: what went wrong without ending it.
    """
    folder = config.output_dir
    metrics = list(metrics_log.read_lines(folder / metrics_log.METRICS_NAME))
    validations = list(metrics_log.read_lines(folder / metrics_log.VALIDATION_NAME))
    nearest = validations[-1]["nearest"] if validations else []
    prompts = thumbnails.of_prompts(folder, validations)
    html = pages.template("ti_flax.reports", "report.html.jinja").render(
        config=config,
        usage=usage,
        settings=_settings(config),
        status=status,
        warnings=warnings,
        pictures=thumbnails.of_pictures(pictures),
        pixelated=config.resolution < thumbnails.SIDE,
        prompts=prompts,
        words=_words(usage.words, prompts),
        least=_least(validations),
        validations=validations,
        work=_work(config, metrics),
        plots=[p._asdict() for p in plots(metrics, validations, config.num_vectors)],
        vectors=vector_names(len(nearest), config.num_vectors),
        place=_PLACE,
        file_name=folder_names.made(config.placeholder_token),
        example=example(config),
        shell=shlex.quote,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic.atomic_path(folder / REPORT_NAME) as path:
        path.write_text(html, encoding="utf-8")


def _words(
    file_of: Callable[[int], Path], prompts: Sequence[Line]
) -> dict[int, tuple[str, str]]:
    """Name and data URI of the word's file at each look that is shown and has one."""
    found = {}
    for step in {column["step"] for shown in prompts for column in shown["strip"]}:
        path = file_of(step)
        if path.is_file() and path.stat().st_size <= _MAX_WORD_BYTES:
            content = base64.b64encode(path.read_bytes()).decode()
            found[step] = path.name, f"data:application/octet-stream;base64,{content}"
    return found


def _least(validations: Sequence[Line]) -> int | None:
    """The step with the least fixed loss."""
    known = [line for line in validations if line["fixed_loss"] is not None]
    return min(known, key=lambda line: line["fixed_loss"])["step"] if known else None


def add_picture(folder: Path, title: str, picture: Image.Image) -> None:
    """Adds a picture to the page of a run that has ended."""
    path = folder / REPORT_NAME
    html = path.read_text(encoding="utf-8")
    added = pages.template("ti_flax.reports", "picture.html.jinja").render(
        title=title, picture=pages.data_uri(picture, max(picture.size))
    )
    with atomic.atomic_path(path) as temporary:
        new = html.replace(_PLACE, f"{added}\n{_PLACE}", 1)
        temporary.write_text(new, encoding="utf-8")


def _work(config: run_config.Config, metrics: Sequence[Line]) -> dict[str, Any] | None:
    """What the steps took, all that metrics.jsonl knows of, and of the last the speed.

    The first waits for the compiler, and is counted as the second. The devices are
    those of this process.
    """
    if not metrics:
        return None
    speeds = [line["examples_per_second"] for line in metrics]
    speeds[:1] = speeds[1:2] or speeds[:1]
    seconds = sum(config.examples_per_step / speed for speed in speeds if speed)
    kind = jax.devices()[0].device_kind
    return {
        "duration": _duration(seconds),
        "examples": f"{len(metrics) * config.examples_per_step:,}",
        "speed": np.median(speeds[-50:]),
        "devices": f"{jax.device_count()} x {kind}",
    }


def _duration(seconds: float) -> str:
    """As "45 s", "12 min" or "3 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _settings(config: run_config.Config) -> list[tuple[str, str, bool]]:
    """Name and value of each key, and whether it differs from its default."""
    fields = type(config).model_fields
    return [
        (
            name,
            _shown(value),
            fields[name].is_required() or getattr(config, name) != fields[name].default,
        )
        for name, value in config.model_dump(mode="json").items()
    ]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list():
            return " | ".join(map(str, value)) or "none"
    return str(value)


def example(config: run_config.Config) -> str:
    """A prompt with the word."""
    if config.validation_prompt:
        return config.validation_prompt[0]
    before = {"object": "a photo of", "style": "a painting in the style of"}
    return f"{before[config.learnable_property]} {config.placeholder_token}"
