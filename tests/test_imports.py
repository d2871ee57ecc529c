"""The plan of the rooms (docs/architecture.md): what each may import, and no circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import ti_flax

PACKAGE = Path(__file__).parent.parent / "ti_flax"

# A room, and the rooms that it may import besides itself. `training` and those above
# may import all that stands before them.
ROOMS = {
    "runtime": "",
    "config": "runtime",
    "text": "runtime",
    "data": "runtime config text",
    "diffusion": "runtime",
    "hub": "runtime",
    "pickles": "runtime",
    "models": "runtime hub diffusion pickles",
    "formats": "runtime config text hub pickles models",
    "step": "runtime config models diffusion",
    "generation": "runtime config text models diffusion formats",
    "checkpoints": "runtime config step",
    "publishing": "runtime config text models formats hub",
    "reports": "runtime config step",
    "training": "*",
    "aot": "*",
    "quickstart": "*",
    "benchmarks": "*",
}
# What people type; each is a verb, and calls one room. `__main__` lists them.
DOORS = (
    "__main__ benchmark convert generate inspect push random_model schema train "
    "train_compile verify"
)


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(module):
    """The package's own modules that one imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "ti_flax":
                found = ".".join(parts[1:])
                yield found if found in MODULES else ".".join(parts[1:-1])


def test_every_module_stands_in_a_room_or_is_a_door():
    rooms = {module.split(".")[0] for module in MODULES} - {""}
    assert rooms == {*ROOMS, *DOORS.split()}
    assert all("." not in door for door in DOORS.split())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_lower_rooms_only(room):
    before = list(ROOMS)[: list(ROOMS).index(room)]
    allowed = ROOMS[room].split() if ROOMS[room] != "*" else before
    assert set(allowed) <= set(before)
    for module in MODULES:
        if module.split(".")[0] == room:
            # The package itself holds its version and its face, no logic.
            used = {name.split(".")[0] for name in imported(module)} - {room, ""}
            assert used <= set(allowed), f"{module} imports {used - set(allowed)}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: set(imported(module)) - {module, ""} for module in MODULES}
    assert sum(map(len, graph.values())) > 300
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_is_long():
    # The UNet is one network; PyTorch's step is written out to be compared with.
    long = {"models.unet", "benchmarks.step_torch"}
    for module, path in MODULES.items():
        lines = len(path.read_text().splitlines())
        assert lines <= 300 or module in long, f"{module} has {lines} lines"


def test_no_function_is_long():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{module}.{node.name} has {lines} lines"


def test_the_way_of_a_training_step_is_short_to_read():
    way = "train training.run training.loop step.train_step step.bank "
    way += "models.stable_diffusion"
    lines = [len(MODULES[module].read_text().splitlines()) for module in way.split()]
    assert sum(lines) <= 600, dict(zip(way.split(), lines, strict=True))


def test_words_of_a_private_dialect_are_gone():
    names = "looks sides watch stand_in fit frozen team utils"
    for module in MODULES:
        assert not set(re.split(r"[._]", module)) & set(names.split()), module


def test_the_face_of_the_package_is_there():
    for name in ti_flax.__all__:
        assert callable(getattr(ti_flax, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        ti_flax.no_such_name  # noqa: B018
