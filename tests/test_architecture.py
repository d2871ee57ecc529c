"""docs/architecture.md says what is: its plan, its links and its legend of shapes."""

import ast
import re
from pathlib import Path

import pytest
import test_imports

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "architecture.md").read_text()
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "ti_flax"


def letters_of(path):
    """One-letter axes in a file's annotations, `Float[Array, "B L D"]`, by line."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Subscript(
                value=ast.Name(), slice=ast.Tuple(elts=[_, ast.Constant(str(shape))])
            ):
                for axis in shape.split():
                    if re.fullmatch(r"\*?[A-Za-z]", axis):
                        yield node.lineno, axis.removeprefix("*")


def test_the_legend_has_every_letter_of_a_shape_and_no_other():
    rows = re.findall(r"^\| `(.)` \| (.+) \|$", PAGE, re.MULTILINE)
    legend = dict(rows)
    assert len(legend) == len(rows)  # one meaning a letter
    used = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, letter in letters_of(path):
            assert letter in legend, f"{path.relative_to(ROOT)}:{line}: {letter}"
            used.add(letter)
    assert used == set(legend)


def test_letters_are_found_where_they_stand(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('def f(x: Float[Array, "B *h w 3"]) -> Int[Array, ""]: ...\n')
    assert [letter for _, letter in letters_of(file)] == ["B", "h", "w"]


def test_the_page_has_the_table_of_imports():
    rows = dict(
        re.findall(r"^\| \[(\w+)\]\(\S+\) \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
    )
    said = {
        room: "*" if "all" in may else " ".join(re.findall(r"\w+", may))
        for room, may in rows.items()
    }
    assert said == test_imports.ROOMS
    assert list(said) == list(test_imports.ROOMS)


def test_the_readme_names_every_room():
    tree = README.split("## File structure")[1].split("## ")[0]
    rooms = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    assert rooms == list(test_imports.ROOMS)


@pytest.mark.parametrize(
    "page",
    sorted(
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("launch/*.md")]
    ),
)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            file = (ROOT / page).parent / target.split("#")[0]
            assert file.exists(), f"{page}: {target}"


def test_the_index_of_the_docs_has_every_page():
    index = (DOCS / "README.md").read_text()
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_names_on_the_page_are_in_the_files_that_it_links():
    said = r"`(\w+)` (?:in|of)\s+\[\w+\.py\]\(\.\./(ti_flax/\S+?)\)"
    links = re.findall(said, PAGE)
    assert len(links) > 10
    for name, file in links:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (name, file)
