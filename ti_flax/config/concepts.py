"""What a training run is asked for: one concept, or a list of them.

A concept's value comes from, the later winning: default, preset, dataset_config, YAML
file, command line, the concept's own keys, `sweep`.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ti_flax.config import (
    command_line,
    concept_list,
    dataset_config,
    folder_names,
    foreign_keys,
    run_config,
    sweep,
    validation,
)
from ti_flax.config.concept_list import Listed
from ti_flax.config.many_keys import (
    OWN,
    ManyKeys,
    Part,
    mistake_of_key,
    mistake_of_value,
)
from ti_flax.config.run_config import Config
from ti_flax.config.run_keys import GROUPS
from ti_flax.runtime.errors import UserError, listed, shown

_log = logging.getLogger(__name__)

# Title in --help -> its keys.
ALL_GROUPS: dict[str, type[BaseModel]] = {**GROUPS, "Many concepts": ManyKeys}

_PLACE = "in the concept's own keys, in the --config file or with --key value"
# What a concept gives, where what all share is checked.
_OF_A_CONCEPT = {"train_data_dir": os.devnull, "placeholder_token": "<word>"}


class Concept(NamedTuple):
    """A concept to train."""

    # That of its folder in the run's.
    name: str
    config: Config
    # What `sweep` set.
    settings: dict[str, Any]


class Many(NamedTuple):
    """Concepts to train, which share all keys but `many_keys.OWN`."""

    # The folder that has theirs.
    output_dir: Path
    # Of all parts.
    concepts: list[Concept]
    part: Part
    # How many are trained at once; None: as many as fit, at most 16.
    slots: int | None
    # Name and reason of those that `skip_bad_concepts` leaves out.
    bad: list[tuple[str, str]]
    # Whether those that cannot be read are left out, too.
    skips_bad: bool

    @property
    def own(self) -> list[Concept]:
        """The concepts of the part."""
        return self.part.own(self.concepts)


class _Base(NamedTuple):
    """The keys beside `concepts`."""

    keys: dict[str, Any]
    # `subsets` are those of dataset_config: of its folder, not of another.
    has_its_subsets: bool


def load(argv: Sequence[str]) -> Config | Many:
    """What `python -m ti_flax.train` is asked for: one concept, or several.

    `--help` and `--print_config` print and end the process with code 0.

    Raises:
        UserError: what is wrong, in one line; the mistakes of several concepts are
            logged, each in a line, and counted.
    """
    asked, keys = load_with_keys(argv)
    has_idle = any((keys.slots, keys.part, keys.skip_bad_concepts))
    if isinstance(asked, Config) and has_idle:
        idle = listed(keys.model_fields_set - {"concepts"})
        _log.warning("%s: no effect without concepts or sweep", idle)
    return asked


def load_with_keys(argv: Sequence[str]) -> tuple[Config | Many, ManyKeys]:
    """As `load`; beside it the keys of many concepts, which one has no use for."""
    given = run_config.read_keys(argv, command_line.TRAIN, ALL_GROUPS)
    keys = {key: value for key, value in given.keys.items() if key in _KEYS_OF_MANY}
    base = {key: value for key, value in given.keys.items() if key not in keys}
    axes = sweep.read(keys.pop("sweep", None))
    asked = validation.validate(ManyKeys, keys, run_config.PLACE)
    if asked.concepts is None and not axes:
        config = run_config.make_config(run_config.Given(base, given.print_config))
        return config, asked
    many = _make_many(base, asked, axes)
    if given.print_config:
        for concept in many.concepts:
            print(f"--- # {concept.name}\n{run_config.dump_yaml(concept.config)}")
        raise SystemExit(0)
    return many, asked


_KEYS_OF_MANY = frozenset(ManyKeys.model_fields)


def _make_many(given: Mapping[str, Any], asked: ManyKeys, axes: sweep.Axes) -> Many:
    base = _base(given)
    output_dir = _checked_output_dir(base.keys)
    entries = _entries(asked.concepts)
    place = "sweep" if asked.concepts is None else f"concepts {asked.concepts}"
    concept_list.check_number(place, len(entries) * sweep.count(axes))
    concepts, bad, unique = [], [], folder_names.Numbered()
    for name, keys, problem in entries:
        if problem is not None:
            bad.append((name, problem))
            continue
        for swept in sweep.settings(axes):
            full = unique(sweep.name(name or None, swept)) if axes else name
            try:
                config = _config(base, keys, swept, full)
            except UserError as error:
                bad.append((full, str(error)))
                continue
            settings = {key: getattr(config, key) for key in swept}
            concepts.append(Concept(full, config, settings))
    _tell_mistakes(bad, len(concepts), asked.skip_bad_concepts)
    _check_together(concepts)
    _tell_warmups(concepts)
    part = Part() if asked.part is None else Part.of(asked.part)
    return Many(output_dir, concepts, part, asked.slots, bad, asked.skip_bad_concepts)


def _base(given: Mapping[str, Any]) -> _Base:
    """The keys of all concepts; of checkpoints, the latest are resumed from."""
    keys = dataset_config.under(given)
    resumed = keys.get("resume_from_checkpoint")
    if resumed not in (None, "latest"):
        raise UserError(
            "resume_from_checkpoint: expected latest with several concepts, found "
            f"{shown(resumed)}; leave it out: each resumes from its own"
        )
    keys["resume_from_checkpoint"] = "latest"
    return _Base(keys, "subsets" in keys and "subsets" not in given)


def _checked_output_dir(base: Mapping[str, Any]) -> Path:
    """The folder of all; what is wrong with the keys beside `concepts` is told once.

    Raises:
        UserError: the keys that all share do not fit, or a value is none of its key.
    """
    shared = {key: value for key, value in base.items() if key not in OWN}
    checked = validation.validate(Config, shared | _OF_A_CONCEPT, run_config.PLACE)
    try:
        validation.validate(Config, _OF_A_CONCEPT | base, run_config.PLACE)
    except UserError as error:
        # Values that do not fit together may fit those of a concept.
        cause = error.__cause__
        if not isinstance(cause, ValidationError) or cause.errors()[0]["loc"]:
            raise
    return checked.output_dir


def _entries(path: Path | None) -> list[Listed]:
    """The concepts of the list, with all that is wrong with their keys.

    Without a list there is one, without a name.
    """
    if path is None:
        return [Listed("", {})]
    told: set[str] = set()  # of all, each once
    return [_checked_entry(entry, told) for entry in concept_list.read(path)]


def _checked_entry(entry: Listed, told: set[str]) -> Listed:
    if entry.problem is not None:
        return entry
    try:
        keys = foreign_keys.translated(entry.keys, told)
    except UserError as error:
        return Listed(entry.name, {}, str(error))
    for key, value in keys.items():
        problem = mistake_of_key(key)
        if problem is None and (mistake := mistake_of_value(value)):
            problem = f"{key}: {mistake}"
        if problem is not None:
            return Listed(entry.name, {}, problem)
    return Listed(entry.name, keys)


def _config(
    base: _Base, keys: Mapping[str, Any], swept: Mapping[str, Any], name: str
) -> Config:
    """A concept's configuration, in its own folder. Raises `UserError`."""
    own = {**keys, **swept}
    given = {**base.keys, **own}
    if base.has_its_subsets and "train_data_dir" in own and "subsets" not in own:
        del given["subsets"]
    # With the folder of all: it may hold no one's pictures.
    config = validation.validate(Config, given, _PLACE)
    places: dict[str, Any] = {"output_dir": config.output_dir / name}
    if config.checkpoint_dir is not None:
        places["checkpoint_dir"] = f"{config.checkpoint_dir.rstrip('/')}/{name}"
    if config.hub_model_id is not None:
        hub_name = name.replace(" ", "-")
        places["hub_model_id"] = config.hub_model_id.replace("{}", hub_name)
    return config.model_copy(update=places)


def _tell_mistakes(bad: Sequence[tuple[str, str]], good: int, skip: bool) -> None:
    """Logs each; raises `UserError` if there are some and they are not left out."""
    for name, reason in bad:
        if skip:
            _log.warning("concept %s: %s; it is left out", name, reason)
        else:
            _log.error("concept %s: %s", name, reason)
    refuse(len(bad), good, skip)


def refuse(bad: int, good: int, skip: bool) -> None:
    """Raises `UserError` for bad concepts, unless they are skipped and others good."""
    if not bad or (skip and good):
        return
    found = f"found {bad} of {bad + good} with one, told above"
    advice = "mend them"
    if good:
        advice += ", or --skip_bad_concepts trains the others"
    raise UserError(f"expected concepts without a mistake, {found}; {advice}")


def _check_together(concepts: Sequence[Concept]) -> None:
    """Raises `UserError` for concepts that are right, but not beside each other."""
    _check_repositories(concepts)
    first = concepts[0].config
    rates = {each.config.learning_rate: None for each in concepts}
    for key in ("learning_rate_te1", "learning_rate_te2"):
        # The step has their ratio; that of 0 is always 0.
        if getattr(first, key) and len(rates) > 1:
            raise UserError(
                f"{key}: expected one learning_rate for all concepts beside it, found "
                f"{listed(rates)}; leave {key} out, or set it to 0"
            )


def _check_repositories(concepts: Iterable[Concept]) -> None:
    """Raises `UserError` where one concept's upload would replace another's."""
    repositories: dict[str, str] = {}
    for name, config, _ in concepts:
        if not config.push_to_hub or config.hub_model_id is None:
            continue
        other = repositories.setdefault(config.hub_model_id.lower(), name)
        if other != name:
            raise UserError(
                "hub_model_id: expected one of each concept, found "
                f"{config.hub_model_id!r} for {other} and {name}; write {{}} where the "
                "name of the concept goes"
            )


def _tell_warmups(concepts: Iterable[Concept]) -> None:
    vain = [each.name for each in concepts if run_config.warms_up_in_vain(each.config)]
    if vain:
        _log.warning("%s (%s)", run_config.IN_VAIN, listed(vain))
