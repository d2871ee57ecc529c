"""`python -m ti_flax.inspect FILE ... [--model NAME]`: what an embedding file holds."""

from ti_flax.config.door import door
from ti_flax.formats.describe import GROUPS, USAGE, InspectKeys

TARGET = "ti_flax.formats.describe:print_descriptions"
command = door("inspect", InspectKeys, GROUPS, TARGET, USAGE, "file")
main = command.main

if __name__ == "__main__":
    command()
