"""`python -m ti_flax.generate --model ... --prompt ...`: pictures of learned words."""

from ti_flax.config.door import door
from ti_flax.config.generate_keys import GROUPS, CommandKeys

USAGE = "--model NAME --embedding FILE ... --prompt TEXT ... --output DIR"
TARGET = "ti_flax.generation.generate:generate_images"
command = door("generate", CommandKeys, GROUPS, TARGET, USAGE, computes=True)
main = command.main

if __name__ == "__main__":
    command()
