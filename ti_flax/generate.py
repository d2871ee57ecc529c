"""`python -m ti_flax.generate --model ... --prompt ...`: pictures of learned words."""

import sys
from typing import Any

from PIL import Image

from ti_flax.config import command_line, generate_keys, run_config
from ti_flax.runtime import errors, process

_USAGE = "--model NAME --embedding FILE ... --prompt TEXT ... --output DIR"


def generate_images(progress: bool = True, **keys: Any) -> list[Image.Image]:
    """Makes pictures, `num_images` of each prompt in turn.

    As in `generate_images(model="sd-1-5", embedding="cat.bin", prompt="a <cat>")`;
    `generate_keys` has all `keys`, which the command line has as flags. Image j of a
    prompt depends on the prompt and on seed + j: not on the other pictures, the batch
    size or the number of devices. Each has its parameters in `info`; with `output`
    they are also written as PNG files, with a grid.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = run_config.validate(generate_keys.GenerateKeys, keys, "with --key value")
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.generation import generate

    return generate.generate(checked, progress)


def main() -> None:
    command_line.show_log()
    keys = command_line.parse_keys(
        sys.argv[1:], generate_keys.GROUPS, "generate", _USAGE
    )
    if keys.get("output") is None:
        raise errors.UserError("required but missing: output; set it with --output DIR")
    generate_images(**keys)


def command() -> None:
    """`ti_flax-generate`, the installed console command."""
    process.use_huge_pages()
    errors.run(main)


if __name__ == "__main__":
    command()
