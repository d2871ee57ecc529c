"""`python -m ti_flax.train` for many concepts, which also writes what they took.

`python -m ti_flax.benchmarks.concepts.train_queue FILE [--key value ...]` writes FILE
when all are done.
"""

from pathlib import Path

from ti_flax.config.concepts import Many, load
from ti_flax.config.door import Door


def train(file: str, many: Many) -> None:
    """Trains them, and writes the attributes of `Spent` as JSON."""
    # Late: the process may start itself again, with large pages.
    from ti_flax.runtime import atomic
    from ti_flax.training.many import train_many

    atomic.write_json(Path(file), vars(train_many(many)))


command = Door(
    lambda argv: ((argv[0], load(argv[1:])), {}),
    "ti_flax.benchmarks.concepts.train_queue:train",
)

if __name__ == "__main__":
    command()
