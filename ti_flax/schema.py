"""`python -m ti_flax.schema > FILE`: the schema of configuration files, for editors."""

from ti_flax.config.door import door
from ti_flax.config.fields import Settings

command = door("schema", Settings, {}, "ti_flax.config.schema:text", usage="> FILE")
main = command.main

if __name__ == "__main__":
    command()
