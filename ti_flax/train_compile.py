"""`python -m ti_flax.train_compile --config FILE --topology KIND:SHAPE [...]`."""

from ti_flax.aot.command import read
from ti_flax.config.door import Door

command = Door(read, "ti_flax.aot.command:print_reports")
main = command.main

if __name__ == "__main__":
    command()
