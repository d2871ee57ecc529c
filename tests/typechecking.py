"""The type checker of the tests: annotations and jaxtyping shapes, at every call."""

import beartype

# As Python's typing has it (PEP 484), an int will do where a float is asked for.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
