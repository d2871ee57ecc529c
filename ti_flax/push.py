"""`python -m ti_flax.push DIR`: uploads what a run left to the Hub."""

from ti_flax.config.door import door
from ti_flax.publishing.push import GROUPS, USAGE, PushKeys

TARGET = "ti_flax.publishing.push:push_to_hub"
command = door("push", PushKeys, GROUPS, TARGET, USAGE, "folder")
main = command.main

if __name__ == "__main__":
    command()
