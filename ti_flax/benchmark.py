"""`python -m ti_flax.benchmark quality|concepts|step|kernels [--key value ...]`."""

from ti_flax.benchmarks.command import read
from ti_flax.config.door import Door

command = Door(read, "ti_flax.benchmarks.command:measure")
main = command.main

if __name__ == "__main__":
    command()
