"""`python -m ti_flax.data DIR`: see `command`."""

from ti_flax.data import command
from ti_flax.runtime import errors

if __name__ == "__main__":
    errors.run(command.main)
