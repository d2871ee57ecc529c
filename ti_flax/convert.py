"""`python -m ti_flax.convert IN ... --to FORMAT --output OUT`: for another program."""

from ti_flax.config.door import door
from ti_flax.formats.convert import GROUPS, USAGE, ConvertKeys

TARGET = "ti_flax.formats.convert:print_conversions"
command = door("convert", ConvertKeys, GROUPS, TARGET, USAGE, "source")
main = command.main

if __name__ == "__main__":
    command()
