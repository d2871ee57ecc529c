"""report.html: a run on one page that needs no other file and no network."""

import base64
import functools
import io
import json
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax import __version__
from ti_flax.config import run_config
from ti_flax.reports import metrics_log
from ti_flax.reports.plots import Line, plots
from ti_flax.runtime import atomic

REPORT_NAME = "report.html"

# Validations that the strip shows; more are thinned out evenly.
_MAX_COLUMNS = 16
# Longest sides of pictures on the page, in pixels: twice those of its layout.
_THUMBNAIL, _LARGE = 224, 512
_JPEG_QUALITY = 85


class Status(NamedTuple):
    """Where a run stands; `reason` says why it ended early, if an error did it."""

    done: int
    total: int
    running: bool
    reason: str


def write(
    config: run_config.Config,
    pictures: UInt8[np.ndarray, "N H W 3"],
    status: Status,
    warnings: Sequence[str],
) -> None:
    """Writes the page of the run in `config.output_dir` out of what lies there.

    Args:
        config: of the run.
        pictures: those it learns from.
        status: where it stands.
        warnings: what went wrong without ending it.
    """
    folder = config.output_dir
    metrics = list(metrics_log.read_lines(folder / metrics_log.METRICS_NAME))
    validations = list(metrics_log.read_lines(folder / metrics_log.VALIDATION_NAME))
    html = _template().render(
        config=config,
        settings=_settings(config),
        status=status,
        warnings=warnings,
        pictures=[_data_uri(Image.fromarray(p), _THUMBNAIL) for p in pictures],
        pixelated=config.resolution < _THUMBNAIL,
        prompts=_prompts(folder, validations),
        validations=validations,
        speed=np.median([m["examples_per_second"] for m in metrics[-50:]])
        if metrics
        else None,
        plots=[p._asdict() for p in plots(metrics, validations)],
        file_name=_file_name(config.placeholder_token),
        example=_example(config),
        shell=shlex.quote,
        python=functools.partial(json.dumps, ensure_ascii=False),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic.atomic_path(folder / REPORT_NAME) as path:
        path.write_text(html, encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ti_flax.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


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


# Pictures


def _prompts(folder: Path, validations: Sequence[Line]) -> list[Line]:
    """For each prompt: the last previews, the control, and those over the steps.

    A run that was resumed may have other prompts than before, and files may be gone.
    """
    # By prompt, of each step.
    seen: dict[str, dict[int, Line]] = {}
    controls: dict[str, Line] = {}
    for validation in validations:
        for number, shown in enumerate(validation["previews"]):
            if all((folder / file).exists() for file in shown["files"]):
                seen.setdefault(shown["prompt"], {})[validation["step"]] = shown
            if validation["control"]:
                controls[shown["prompt"]] = validation["control"][number]
    return [
        {
            "prompt": prompt,
            "step": max(by_step),
            "last": _thumbnails(folder, by_step[max(by_step)], _LARGE),
            "control": _column(folder, controls.get(prompt)),
            "strip": [
                {"step": number, **_column(folder, by_step[number])}
                for number in _evenly(sorted(by_step), _MAX_COLUMNS)
            ],
        }
        for prompt, by_step in seen.items()
    ]


def _evenly(values: Sequence[int], most: int) -> list[int]:
    """The first, the last and others between them, `most` in all."""
    kept = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[index] for index in kept]


def _column(folder: Path, shown: Line | None) -> Line | None:
    if shown is None or not all((folder / file).exists() for file in shown["files"]):
        return None
    return {
        "prompt": shown["prompt"],
        "pictures": _thumbnails(folder, shown, _THUMBNAIL),
    }


def _thumbnails(folder: Path, shown: Line, side: int) -> list[str]:
    paths = [folder / file for file in shown["files"]]
    return [_file_uri(path, path.stat().st_mtime_ns, side) for path in paths]


@functools.lru_cache(maxsize=4096)
def _file_uri(path: Path, _changed: int, side: int) -> str:
    """Cached: every page has most of the pictures of the page before."""
    with Image.open(path) as image:
        return _data_uri(image, side)


def _data_uri(image: Image.Image, side: int) -> str:
    """A picture inside the page, at most `side` pixels on its longer side."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# Words


def _file_name(word: str) -> str:
    """A name for the embedding's file, which is the word in some programs."""
    return re.sub(r"[^\w-]+", "", word) or "word"


def _example(config: run_config.Config) -> str:
    if config.validation_prompt:
        return config.validation_prompt[0]
    before = {"object": "a photo of", "style": "a painting in the style of"}
    return f"{before[config.learnable_property]} {config.placeholder_token}"
