"""`python -m ti_flax.data`: what is read of a folder, or of a run's folders.

Exit code 0: every picture is used as it is. 1: it can be trained on, but look at what
is said. 2: there is nothing to train on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ti_flax.config import command_line, dataset_config, run_config, validation
from ti_flax.config.run_keys import GROUPS
from ti_flax.data import contact_sheet, doctor, masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.captioned import Captioned
from ti_flax.runtime import arguments, errors, log

FAULTS_EXIT_CODE = 1
_LARGEST_SIDE = 4096  # as `config.fields` has it for training
# Either of them asks for what a run would read.
_OF_A_RUN = ("--config", f"--{dataset_config.KEY}")
_USAGE = "[--config FILE] [--dataset_config FILE] [--contact_sheet FILE] [--key value]"
# What a run needs, and pictures do not.
_WITHOUT_MODEL = {
    "pretrained_model_name_or_path": "none",
    "placeholder_token": Captioned().rules.placeholder_token,
}


def main() -> None:
    argv = sys.argv[1:]
    of_a_run = any(each.partition("=")[0] in _OF_A_RUN for each in argv)
    folder, seen, source, page = _of_run(argv) if of_a_run else _of_folder(argv)
    for fault in seen.faults:
        print(fault)
    if told := seen.pictures.counted():
        print(f"folders: {told}")
    print(doctor.describe_captions(seen.captions, seen.captioned.rules))
    print(doctor.describe_masks(seen.masks, source))
    print(f"{len(seen.pictures.names)} pictures to train on, {len(seen.faults)} notes")
    if page is not None:
        contact_sheet.write(page, folder, seen)
        print(f"wrote {page}")
    if seen.faults:
        sys.exit(FAULTS_EXIT_CODE)


class _Asked(NamedTuple):
    """What was examined, and the page that is asked for, if any."""

    folder: Path
    seen: contact_sheet.Seen
    source: masks.Source
    page: Path | None


def _of_run(argv: Sequence[str]) -> _Asked:
    """The folders of a run, with the keys that say how they are read."""
    log.show_log()
    parser = arguments.Parser(add_help=False, allow_abbrev=False)
    _add_page(parser)
    given, rest = parser.parse_known_args(argv)
    program = command_line.Program("data", _USAGE, {})
    keys = dataset_config.under(run_config.read_keys(rest, program, GROUPS).keys)
    config = validation.validate(
        run_config.Config, {**_WITHOUT_MODEL, **keys}, run_config.PLACE
    )
    rules = {key: getattr(config, key) for key in Cropping._fields}
    source = masks.Source(config.alpha_mask, config.conditioning_data_dir)
    seen = doctor.examine(
        config.train_data_dir,
        Cropping(**rules),
        source,
        config.folders,
        Captioned.of_run(config),
    )
    return _Asked(config.train_data_dir, seen, source, given.contact_sheet)


def _of_folder(argv: Sequence[str]) -> _Asked:
    """A folder, with the few keys that a look at it needs."""
    parser = arguments.Parser(
        prog="python -m ti_flax.data",
        description=__doc__.split("\n\n")[1],
        epilog="Or with --config FILE or --dataset_config FILE, and the keys of python "
        "-m ti_flax.train: the pictures, subsets, captions and masks of that run.",
    )
    parser.add_argument("folder", type=Path, help="holds the concept's pictures")
    _add_page(parser)
    _add_mask_source(parser)
    _add_cropping(parser)
    given = parser.parse(argv)
    source = _mask_source(given)
    seen = doctor.examine(given.folder, _cropping(given), source)
    return _Asked(given.folder, seen, source, given.contact_sheet)


def _add_page(parser: arguments.Parser) -> None:
    parser.add_argument(
        "--contact_sheet",
        type=Path,
        metavar="FILE",
        help="write an HTML page of the pictures as cropped, masks, captions and notes",
    )


def _add_mask_source(parser: arguments.Parser) -> None:
    """The keys of a run that say where masks are."""
    parser.add_argument(
        "--alpha_mask",
        action="store_true",
        help="the alpha channel of a picture is its mask; default: NAME-masklabel.png",
    )
    parser.add_argument(
        "--conditioning_data_dir",
        type=_place,
        metavar="DIR",
        help="folder of the masks, each with the name of its picture",
    )


def _place(given: str) -> Path:
    """As `config.fields` has it for training."""
    if not given:  # would mean the current folder
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(os.path.expanduser(given))


def _mask_source(given: argparse.Namespace) -> masks.Source:
    source = masks.Source(given.alpha_mask, given.conditioning_data_dir)
    if len(source.keys) > 1:
        raise errors.UserError(
            "expected alpha_mask or conditioning_data_dir, found both; remove one"
        )
    return source


def _add_cropping(parser: arguments.Parser) -> None:
    """The keys of a run that say how pictures are cut, as far as a look needs them."""
    parser.add_argument("--resolution", type=int, default=512, help="default: 512")
    parser.add_argument(
        "--no_center_crop",
        action="store_true",
        help="squash pictures into squares, as diffusers does",
    )
    for key, told in (
        ("enable_bucket", "cut pictures to sizes near their own aspect ratio"),
        ("bucket_no_upscale", "with --enable_bucket, make no picture larger"),
        ("random_crop", "show the crops that random_crop draws from"),
    ):
        parser.add_argument(f"--{key}", action="store_true", help=told)
    for key, told in (
        ("min_bucket_reso", "least side of a bucket; default: half the resolution"),
        ("max_bucket_reso", "greatest side of a bucket; default: twice"),
        ("bucket_reso_steps", "pixels between the sides of buckets; default: 64"),
        ("max_buckets", "buckets to keep; default: 4"),
        ("crop_variants", "crops of random_crop; default: 4"),
    ):
        default = Cropping._field_defaults[key]
        parser.add_argument(f"--{key}", type=int, default=default, help=told)


def _cropping(given: argparse.Namespace) -> Cropping:
    for key, value in vars(given).items():
        if type(value) is int and not 1 <= value <= _LARGEST_SIDE:
            raise errors.UserError(
                f"{key}: expected 1 to {_LARGEST_SIDE}, found {value}"
            )
    rules = {key: getattr(given, key, None) for key in Cropping._fields}
    return Cropping(**rules | {"center_crop": not given.no_center_crop})
