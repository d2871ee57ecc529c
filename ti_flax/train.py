"""`python -m ti_flax.train --config FILE [--key value ...]`: teach a model a word."""

from ti_flax.config.door import Door
from ti_flax.config.run_config import load_config

command = Door(lambda argv: ((load_config(argv),), {}), "ti_flax.training.job:train")
main = command.main

if __name__ == "__main__":
    command()
