"""What a run tells of itself: by whom, of which slot."""

import jax
import numpy as np
import pytest

from ti_flax.config import run_config
from ti_flax.reports import metrics_log, report
from ti_flax.step.state import Metrics

PICTURES = np.zeros((1, 8, 8, 3), np.uint8)


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
    return Metrics(loss, loss, loss, vectors, vectors, loss < 0)


def validation_of(step):
    shown = report.Shown("<toy>", ["a.png"], PICTURES)
    return report.Validation(step, 1.0, [0.0] * 2, [[("toy", 0.5)]] * 2, [shown], [])


@pytest.mark.parametrize("slot", [0, 2])
def test_a_report_is_of_its_slot(slot, config):
    with report.open_report(config, slot, range(2), False, PICTURES, []) as opened:
        opened.add(metrics_of(5, 6, 7), 2, 1.0)
    lines = list(metrics_log.read_lines(config.output_dir / metrics_log.METRICS_NAME))
    assert [line["loss"] for line in lines] == [5 + slot] * 2
    assert [line["row_norm"] for line in lines] == [[5 + slot] * 2] * 2


def use(config):
    with report.open_report(config, 0, range(2), True, PICTURES, ["odd"]) as opened:
        opened.add_validation(validation_of(0))
        opened.add(metrics_of(5), 2, 1.0)
        opened.add_validation(validation_of(2))
        raise MemoryError


def test_other_hosts_are_silent(config, monkeypatch, capfd):
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
