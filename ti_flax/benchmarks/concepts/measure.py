"""`python -m ti_flax.benchmark concepts`: a queue of concepts, and one at a time.

All of them in the slots of one compiled step, and the first of them by a command each,
with the settings of configs/quickstart.yaml.
"""

import logging
import os
import time
from typing import Any

import jax

from ti_flax.benchmarks.concepts import drawn, judged, report, timed
from ti_flax.benchmarks.concepts.keys import ConceptsKeys
from ti_flax.reports import metrics_log
from ti_flax.runtime import atomic, jax_settings
from ti_flax.runtime.errors import UserError
from ti_flax.training import ledger

_log = logging.getLogger(__name__)

REPORT_NAME = "report.json"


def measure(keys: ConceptsKeys, progress: bool = True) -> dict[str, Any]:
    """Draws, trains and judges; prints a table, writes all as JSON and returns that.

    What is done in `output_dir` with the same keys is not done again.

    Raises:
        UserError: what to mend, in one line.
        Stopped: a signal came; the same command goes on.
    """
    if keys.alone > keys.concepts:
        raise UserError(
            f"alone: expected at most concepts, which is {keys.concepts}, found "
            f"{keys.alone}; they are the first of these"
        )
    if keys.pytorch != "no" and not keys.alone:
        raise UserError(
            "pytorch: expected alone to say how many runs, found 0; set it to 1 or more"
        )
    config = drawn.configuration(keys)
    times = timed.Times(keys)
    drawn.write_lists(keys)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", config.compilation_cache_dir)
    _log.info("compiled programs are kept in %s", cache)
    drawn.draw(keys)
    times.write()
    timed.train_in_queue(keys, times)
    timed.train_alone(keys, times)
    if keys.pytorch != "no":
        timed.run_pytorch(keys, times)
    # Not before: the commands want the device for themselves.
    jax_settings.require_devices()
    scored = judged.judge(keys, config, progress) if keys.judge else []
    queue = report.of_queue(times.queue, _queue_steps(keys))
    alone = {name: times.alone[name] for name in [*drawn.concepts(keys.alone)]}
    alone = report.of_alone(alone, _alone_steps(keys)) if alone else None
    pytorch = times.pytorch.get(keys.pytorch, [])[: keys.alone]
    pytorch = report.of_pytorch(pytorch, config.max_train_steps) if pytorch else None
    content = {
        "settings": keys.model_dump(mode="json"),
        "trained_with": drawn.shared_keys(keys),
        "date": time.strftime("%Y-%m-%d"),
        "library": f"jax {jax.__version__}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "compilation_cache": cache,
        timed.QUEUE_NAME: queue,
        timed.ALONE_NAME: alone,
        timed.PYTORCH_NAME: pytorch,
        "ratio": report.ratio(queue, alone),
        "ratio_to_pytorch": report.ratio(queue, pytorch),
        "accuracy": judged.accuracy(scored, keys.seed) if scored else None,
        "scores": [score._asdict() for score in scored],
    }
    atomic.write_json(keys.output_dir / REPORT_NAME, content, indent=1)
    print(report.table(content))
    _log.info("wrote %s", keys.output_dir / REPORT_NAME)
    return content


def _queue_steps(keys: ConceptsKeys) -> list[int]:
    """After how many steps each concept of the queue ended."""
    path = keys.output_dir / timed.QUEUE_NAME / ledger.NAME.format("")
    _, entries = ledger.read(path)
    return [entries[name]["steps"] for name in drawn.concepts(keys.concepts)]


def _alone_steps(keys: ConceptsKeys) -> list[int]:
    """The same of those that were learned alone: the step of the last validation."""
    steps = []
    for name in drawn.concepts(keys.alone):
        folder = keys.output_dir / timed.ALONE_NAME / name
        *_, last = metrics_log.read_lines(folder / metrics_log.VALIDATION_NAME)
        steps.append(last["step"])
    return steps
