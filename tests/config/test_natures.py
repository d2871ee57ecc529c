"""What each key of a run is: whether it may change on resume, whether it travels."""

import types
from pathlib import Path
from typing import get_args

import pytest

from ti_flax.config import objective_keys, run_keys, training_keys
from ti_flax.config.fields import NameOrPath
from ti_flax.config.natures import FREE, KEPT, NOTED, TRAVELS, Nature, keys_of
from ti_flax.config.run_config import Config

PATH_CHECK = NameOrPath.__metadata__[0]


def natures(field):
    return [mark for mark in field.metadata if isinstance(mark, Nature)]


def is_path(field):
    """A file, a folder or a Hub id: what lies there counts, not where it lies."""
    kinds = [field.annotation]
    if isinstance(field.annotation, types.UnionType):
        kinds = get_args(field.annotation)
    return Path in kinds or PATH_CHECK in field.metadata


def test_every_key_has_exactly_one_nature():
    for key, field in Config.model_fields.items():
        assert len(natures(field)) == 1, key


def test_every_key_that_a_resumed_run_must_keep_travels_unless_it_is_the_word():
    assert [*keys_of(Config, [KEPT])] == ["placeholder_token"]


def test_no_path_and_no_secret_travels_or_must_be_kept():
    for key, field in Config.model_fields.items():
        if is_path(field) or field.exclude:
            assert natures(field) == [FREE], key


@pytest.mark.parametrize(
    "group",
    [
        run_keys.ConceptKeys,
        run_keys.StartKeys,
        run_keys.DataKeys,
        training_keys.OptimizerKeys,
        objective_keys.ObjectiveKeys,
    ],
    ids=lambda group: group.__name__,
)
def test_what_the_rows_are_computed_from_travels(group):
    """Of these groups all but paths enters the gradient or the update."""
    travelling = keys_of(Config, [TRAVELS, NOTED])
    for key, field in group.model_fields.items():
        # The second is another program's name for a key that travels; the third are
        # paths, whose pictures have a fingerprint.
        if key not in ("placeholder_token", "min_snr_gamma", "subsets"):
            assert (key in travelling) != is_path(field), key


def test_what_changes_only_rounding_speed_or_reports_is_free():
    free = keys_of(Config, [FREE])
    for group in (run_keys.ReportKeys, run_keys.ResultKeys, run_keys.HostKeys):
        assert set(group.model_fields) <= set(free)
    computing = set(training_keys.ComputeKeys.model_fields) - set(free)
    # bfloat16 is another arithmetic, not another rounding of the same.
    assert computing == {"mixed_precision"}
