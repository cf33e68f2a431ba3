"""Each paper's README leads from its equations, tables and figures to code and notebooks that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import adcore
from adcore.papers import exhibits, papers

ROOT = Path(adcore.__file__).parent
PLACE = re.compile(r"`([\w/]+\.py): ([\w.]+(?:, [\w.]+)*)`")  # `uniad.py: neighbor_mask` or `uniad.py: UniAD.score, jitter`
each_paper = pytest.mark.parametrize("paper", papers().index)


def readme(paper: str) -> str:
    return (ROOT / "papers" / paper / "README.md").read_text(encoding="utf-8")


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods (Class.method), attributes and constants that a file defines."""
    found: set[str] = set()

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                found.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    look(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def file_of(name: str, paper: str) -> Path:
    """`uniad.py` is in the paper's folder, `kernels/nearest.py` in the package."""
    inside = ROOT / "papers" / paper / name
    return inside if inside.is_file() else ROOT / name


@each_paper
def test_every_name_in_the_index_exists(paper):
    places = PLACE.findall(readme(paper))
    assert len(places) >= 10
    for file, names in places:
        path = file_of(file, paper)
        assert path.is_file(), file
        missing = set(names.split(", ")) - names_in(path)
        assert not missing, f"{file} has no {missing}"


@each_paper
def test_every_exhibit_is_in_the_index_with_its_notebook(paper):
    table = exhibits()
    text = readme(paper)
    for exhibit, row in table[table.paper == paper].iterrows():
        lines = [line for line in text.splitlines() if line.startswith("|") and f"`{exhibit}`" in line]
        assert lines, exhibit
        assert any(row.notebook in line for line in lines), f"{exhibit}: {row.notebook}"


@each_paper
def test_the_code_column_of_the_exhibits_names_what_exists_and_stands_in_the_index(paper):
    table = exhibits()
    for exhibit, row in table[table.paper == paper].iterrows():
        assert row.code, exhibit
        for place in row.code.split("; "):
            file, _, name = place.partition(": ")
            assert name in names_in(file_of(file, paper)), f"{exhibit}: {place}"


@each_paper
def test_the_page_is_short_and_its_notebooks_exist(paper):
    text = readme(paper)
    assert len(text.splitlines()) < 120
    named = set(re.findall(rf"`({paper}/\d\d_\w+)`", text))
    assert named and all((ROOT.parent / "notebooks" / f"{name}.ipynb").is_file() for name in named)


def test_the_distance_table_of_contributing_names_what_the_papers_indexes_name():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = re.findall(r"^\| [^|]+ \| 2 \| `(\w+)/([\w/]+\.py): ([\w.]+)` \|$", text, re.MULTILINE)
    assert len(places) == 16
    for paper, file, name in places:
        assert f"{file}: {name}`" in readme(paper) and name in names_in(file_of(file, paper)), (paper, file, name)


SYMBOLS = re.compile(r"^ *paper +code +shape +meaning\n((?: +\S.*\n)+)", re.MULTILINE)
TABLES = [path for path in sorted(ROOT.rglob("*.py")) if SYMBOLS.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_symbol_table_of_a_docstring_names_what_its_file_has(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    known = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    known |= {node.arg for node in ast.walk(tree) if isinstance(node, (ast.arg, ast.keyword)) and node.arg}
    known |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for line in SYMBOLS.search(text)[1].splitlines():
        code = re.split(r" {2,}", line.strip())[1]
        for name in code.split(", "):
            assert name.split(".")[-1] in known, f"{name} is not a name in {path.name}"
