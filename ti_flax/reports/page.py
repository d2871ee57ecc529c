"""report.html: a run on one page that needs no other file and no network."""

import base64
import functools
import io
import json
import re
import shlex
from collections.abc import Callable, Sequence
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
from ti_flax.runtime import atomic

REPORT_NAME = "report.html"

# Looks that the strip shows; more are thinned out evenly.
_MAX_LOOKS = 16
# Points of a line; more steps are averaged in as many runs of equal length.
_MAX_POINTS = 300
# Longest sides of pictures on the page, in pixels: twice those of its layout.
_THUMBNAIL, _LARGE = 224, 512
_JPEG_QUALITY = 85
# Weight of a step in the smoothed loss.
_SMOOTHING = 0.02

Line = dict[str, Any]
Numbers = list[float | None]


class Status(NamedTuple):
    """Where a run stands; `reason` says why it ended early, if an error did it."""

    done: int
    total: int
    running: bool
    reason: str


class Plot(NamedTuple):
    """Lines over `steps`: name -> numbers; `labels` are those of hovering, if any."""

    title: str
    about: str
    steps: list[int]
    lines: dict[str, Numbers]
    labels: dict[str, list[str]]


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
    looks = list(metrics_log.read_lines(folder / metrics_log.LOOKS_NAME))
    html = _template().render(
        config=config,
        settings=_settings(config),
        status=status,
        warnings=warnings,
        pictures=[_data_uri(Image.fromarray(p), _THUMBNAIL) for p in pictures],
        pixelated=config.resolution < _THUMBNAIL,
        prompts=_prompts(folder, looks),
        looks=looks,
        speed=np.median([m["examples_per_second"] for m in metrics[-50:]])
        if metrics
        else None,
        plots=[p._asdict() for p in _plots(metrics, looks)],
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


def _prompts(folder: Path, looks: Sequence[Line]) -> list[Line]:
    """For each prompt: the last previews, the control, and those over the steps.

    A run that was resumed may have other prompts than before, and files may be gone.
    """
    # By prompt, of each step.
    seen: dict[str, dict[int, Line]] = {}
    controls: dict[str, Line] = {}
    for look in looks:
        for number, shown in enumerate(look["previews"]):
            if all((folder / file).exists() for file in shown["files"]):
                seen.setdefault(shown["prompt"], {})[look["step"]] = shown
            if look["control"]:
                controls[shown["prompt"]] = look["control"][number]
    return [
        {
            "prompt": prompt,
            "step": max(by_step),
            "last": _thumbnails(folder, by_step[max(by_step)], _LARGE),
            "control": _column(folder, controls.get(prompt)),
            "strip": [
                {"step": number, **_column(folder, by_step[number])}
                for number in _evenly(sorted(by_step), _MAX_LOOKS)
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


# Plots


def _plots(metrics: Sequence[Line], looks: Sequence[Line]) -> list[Plot]:
    closest = [[near[0] for near in look["nearest"]] for look in looks]
    cosines = _by_vector([[cosine for _, cosine in near] for near in closest])
    words = _by_vector([[word for word, _ in near] for near in closest])
    look_steps = [look["step"] for look in looks]
    losses = [line["loss"] for line in metrics]

    def of_looks(title: str, about: str, lines: dict[str, Numbers]) -> Plot:
        return Plot(title, about, look_steps, lines, {})

    def of_steps(title: str, about: str, lines: dict[str, Numbers]) -> Plot:
        steps = [line["step"] for line in metrics]
        ends = _thinned(steps, max)
        return Plot(
            title, about, ends, {n: _thinned(y, _mean) for n, y in lines.items()}, {}
        )

    def key(name: str) -> dict[str, Numbers]:
        values = [line[name] for line in metrics]
        if metrics and isinstance(values[0], list):
            return _by_vector(values)
        return {name.replace("_", " "): values}

    return [
        of_looks(
            "Loss on a fixed set",
            "The same pictures, prompts, timesteps and noise at every look, and so "
            "comparable over the steps.",
            {"loss": [look["fixed_loss"] for look in looks]},
        ),
        of_steps(
            "Loss of the steps",
            "Each step draws its own timesteps and noise: it jumps, whatever is "
            "learned.",
            {"loss": losses, "smoothed": _smoothed(losses)},
        ),
        of_looks(
            "Distance from the start",
            "L2 norm of what each vector has moved.",
            _by_vector([look["distance"] for look in looks]),
        ),
        Plot(
            "Nearest word",
            "Cosine to the nearest row of the vocabulary; 1 is that word itself.",
            look_steps,
            cosines,
            words,
        ),
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


def _by_vector(values: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """One line a vector out of one list of vectors a step."""
    return {
        f"vector {index}": list(line)
        for index, line in enumerate(zip(*values, strict=True))
    }


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


# Words


def _file_name(word: str) -> str:
    """A name for the embedding's file, which is the word in some programs."""
    return re.sub(r"[^\w-]+", "", word) or "word"


def _example(config: run_config.Config) -> str:
    if config.validation_prompt:
        return config.validation_prompt[0]
    before = {"object": "a photo of", "style": "a painting in the style of"}
    return f"{before[config.learnable_property]} {config.placeholder_token}"
