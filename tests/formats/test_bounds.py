"""docs/formats.md states every bound on a stranger's file as the code has it."""

import importlib
import pkgutil
import re
from pathlib import Path

from ti_flax import formats, pickles

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROW = re.compile(r"^\| .+ \| ([\d,]+)[^|]* \| `(\w+)\.(\w+)` \|$", re.MULTILINE)
MODULES = {
    module.name: importlib.import_module(f"{package.__name__}.{module.name}")
    for package in (formats, pickles)
    for module in pkgutil.iter_modules(package.__path__)
}


def test_the_page_has_every_bound_as_the_code_has_it():
    stated = {
        (module, name): int(number.replace(",", ""))
        for number, module, name in ROW.findall(PAGE.read_text())
    }
    held = {
        (module, name): value
        for module, content in MODULES.items()
        for name, value in vars(content).items()
        # What is printed of a value is no bound on a file.
        if re.match("_?MAX_", name) and name not in ("_MAX_TEXT", "_MAX_FACTS")
    }
    assert stated == held
