"""The type checkers of the tests: types at every call, shapes where arrays are."""

from pathlib import Path

import beartype
import beartype.claw
import jaxtyping

_PACKAGE = Path(__file__).parent.parent / "ti_flax"
# As Python's typing has it (PEP 484), an int will do where a float is asked for.
_CONF = beartype.BeartypeConf(
    is_pep484_tower=True,
    claw_is_pep526=False,
    # As Python's own and jaxtyping's are: code that takes what a damaged file holds
    # for an error of type does so here, too.
    violation_type=TypeError,
    # A function itself, not what jax.jit makes of it.
    claw_decor_place_func=beartype.BeartypeDecorPlace.FIRST,
)
check = beartype.beartype(conf=_CONF)


def install() -> None:
    """Has both look at what is imported from now on.

    jaxtyping's cost every call more than beartype's own: a module has them where it
    says jaxtyping.
    """
    modules = [
        ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
        for path in _PACKAGE.rglob("*.py")
        if "jaxtyping" in path.read_text(encoding="utf-8")
    ]
    beartype.claw.beartype_package(_PACKAGE.name, conf=_CONF)
    jaxtyping.install_import_hook(modules, "typechecking.check")
