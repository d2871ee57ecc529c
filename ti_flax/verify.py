"""`python -m ti_flax.verify DIR_OR_FILE --model NAME`: does PyTorch get the same?"""

from ti_flax.config.door import door
from ti_flax.config.verify_keys import GROUPS, USAGE, VerifyKeys

TARGET = "ti_flax.generation.verify:print_checks"
command = door("verify", VerifyKeys, GROUPS, TARGET, USAGE, "source")
main = command.main

if __name__ == "__main__":
    command()
