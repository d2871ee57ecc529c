"""`python -m ti_flax.quickstart [--key value ...]`: a word, before and after."""

from ti_flax.config.door import Door
from ti_flax.quickstart.settings import load_config

TARGET = "ti_flax.quickstart.before_after:learn_and_show"
command = Door(lambda argv: ((load_config(argv),), {}), TARGET)
main = command.main

if __name__ == "__main__":
    command()
