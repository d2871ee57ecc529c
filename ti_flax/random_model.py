"""`python -m ti_flax.random_model SHAPE FOLDER`: a model folder with random weights."""

from ti_flax.config.door import door
from ti_flax.config.random_model_keys import GROUPS, RandomModelKeys

USAGE = "SHAPE FOLDER [--seed N]"
TARGET = "ti_flax.models.random_model:write_random_model"
command = door("random_model", RandomModelKeys, GROUPS, TARGET, USAGE, "shape folder")
main = command.main

if __name__ == "__main__":
    command()
