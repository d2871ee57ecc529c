"""What a run tells of itself: by whom, of which slot."""

import sys

import jax
import numpy as np
import pytest
from reported import PICTURES, USAGE, add_steps, read_events, scalars, validation_of

from ti_flax.config import run_config
from ti_flax.reports import metrics_log, report
from ti_flax.step.state import Metrics


@pytest.fixture
def config(tmp_path):
    (tmp_path / "out").mkdir()
    return run_config.Config(
        pretrained_model_name_or_path="some/model",
        train_data_dir=tmp_path / "pictures",
        output_dir=tmp_path / "out",
        placeholder_token="<toy>",
        report_to="tensorboard",
    )


def metrics_of(*losses):
    """Two steps of as many slots as losses."""
    loss = np.array([losses, losses], np.float32)
    vectors = np.repeat(loss[..., None], 2, axis=-1)
    return Metrics(
        loss, loss, loss, vectors, vectors, loss < 0, loss >= 0, loss * np.nan
    )


def lines(path):
    return list(metrics_log.read_lines(path))


@pytest.mark.parametrize("slot", [0, 2])
def test_a_report_is_of_its_slot(slot, config):
    with report.open_report(
        config, slot, range(2), False, PICTURES, [], USAGE
    ) as opened:
        opened.add(metrics_of(5, 6, 7), 2, 1.0)
    found = lines(config.output_dir / metrics_log.METRICS_NAME)
    assert [line["loss"] for line in found] == [5 + slot] * 2
    assert [line["row_norm"] for line in found] == [[5 + slot] * 2] * 2


def use(config):
    with report.open_report(
        config, 0, range(2), True, PICTURES, ["odd"], USAGE
    ) as opened:
        opened.add_validation(validation_of(0))
        opened.add(metrics_of(5), 2, 1.0)
        opened.add_validation(validation_of(2))
        raise MemoryError


def test_other_hosts_are_silent(config, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # for a bar
    with pytest.raises(MemoryError):
        use(config)
    # What the first host writes is what the others do not.
    written = {path.name for path in config.output_dir.rglob("*")}
    assert {"metrics.jsonl", "validation.jsonl", "report.html", "logs"} < written
    assert "training" in capfd.readouterr().err
    other = config.model_copy(update={"output_dir": config.output_dir / "other"})
    other.output_dir.mkdir()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(MemoryError):
        use(other)
    assert list(other.output_dir.rglob("*")) == []
    assert capfd.readouterr() == ("", "")


def test_samples_of_another_run_do_not_stay(config):
    folder = config.output_dir
    old = folder / "samples" / "step_009000"
    old.mkdir(parents=True)
    (folder / "samples" / "mine").mkdir()
    with report.open_report(config, 0, range(9000, 9001), False, PICTURES, [], USAGE):
        assert old.exists()
    with report.open_report(config, 0, range(0, 1), False, PICTURES, [], USAGE):
        assert not old.exists()
    assert (folder / "samples" / "mine").exists()


def test_a_report_goes_on_from_a_step_without_what_came_after_it(config):
    folder = config.output_dir
    with report.open_report(
        config, 0, range(0, 6), False, PICTURES, [], USAGE
    ) as run_report:
        run_report.add_validation(validation_of(0))
        for number in range(1, 6):
            add_steps(run_report, number, 1)
            run_report.add_validation(validation_of(number))
    with (folder / metrics_log.METRICS_NAME).open("a") as file:
        file.write('{"step": 6, "lo')  # the machine was switched off
    with report.open_report(
        config, 0, range(3, 6), False, PICTURES, [], USAGE
    ) as run_report:
        kept = lines(folder / metrics_log.METRICS_NAME)
        assert [line["step"] for line in kept] == [1, 2, 3]
        add_steps(run_report, 40, 2)
        run_report.add_validation(validation_of(5))
    metrics = lines(folder / metrics_log.METRICS_NAME)
    assert [(line["step"], line["loss"]) for line in metrics] == [
        (1, 1), (2, 2), (3, 3), (4, 40), (5, 41),
    ]  # fmt: skip
    found = lines(folder / metrics_log.VALIDATION_NAME)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 5]
    events = read_events(folder / "logs")
    assert scalars(events, "train/loss") == {1: 1, 2: 2, 3: 3, 4: 40, 5: 41}
    shown = [event.step for event in events.Images("previews/0_a_toy_on_a_table")]
    assert shown == [0, 1, 2, 3, 5]

    # A new run shows nothing of this one.
    with report.open_report(
        config, 0, range(0, 6), False, PICTURES, [], USAGE
    ) as run_report:
        add_steps(run_report, 1, 1)
    assert len(lines(folder / metrics_log.METRICS_NAME)) == 1
    assert lines(folder / metrics_log.VALIDATION_NAME) == []
    assert scalars(read_events(folder / "logs"), "train/loss") == {1: 1}


def test_numbers_that_are_not_finite_are_null(config):
    with report.open_report(
        config, 0, range(0, 1), False, PICTURES, [], USAGE
    ) as run_report:
        nan = np.full((8, 1), np.nan, np.float32)
        infinite = np.full((8, 1, 2), np.inf, np.float32)
        run_report.add(
            Metrics(nan, nan, nan, infinite, infinite, np.isnan(nan), nan != nan, nan),
            1,
            1.0,
        )
    [line] = lines(config.output_dir / metrics_log.METRICS_NAME)
    assert line["loss"] is None and line["row_norm"] == [None, None]
