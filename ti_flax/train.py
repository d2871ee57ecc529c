"""`python -m ti_flax.train --config FILE [--key value ...]`: teach a model words."""

from ti_flax.config.concepts import load
from ti_flax.config.door import Door

command = Door(lambda argv: ((load(argv),), {}), "ti_flax.training.job:train")
main = command.main

if __name__ == "__main__":
    command()
