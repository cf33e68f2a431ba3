"""Every committed notebook has the required parts and can be read on the web."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from adcore.grids import load_grid
from adcore.notebook import all_notebooks, notebook_name, read_parameters
from adcore.papers import exhibits, papers
from adcore.paths import repository

NOTEBOOKS = all_notebooks()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_name)
LONGEST_DEF = 8  # lines; a longer function belongs in the package, where it is tested


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(path: Path) -> list:
    return [output for cell in code_cells(path) for output in cell.outputs]


def test_the_first_notebook_is_the_one_to_start_with():
    assert notebook_name(NOTEBOOKS[0]) == "00_start_here" and len(NOTEBOOKS) >= 3


@each
def test_a_notebook_is_valid_and_under_300_kb(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 300_000


@each
def test_cells_were_run_once_from_top_to_bottom_without_an_error(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(path) if output.output_type == "error"]


@each
def test_the_kernel_is_python3_and_no_path_of_a_machine_is_kept(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert not re.search(r"(?<![\w/.:<])/(?:home|root|tmp|work|Users|opt|mnt)/|[A-Z]:\\\\", path.read_text(encoding="utf-8"))


@each
def test_no_cell_ends_with_a_semicolon_and_no_output_has_a_progress_bar(path):
    for cell in code_cells(path):
        assert not cell.source.rstrip().endswith(";"), cell.source
    streams = [output for output in outputs(path) if output.output_type == "stream"]
    assert not [output for output in streams if output.name == "stderr" or "\r" in output.text]


@each
def test_the_parameters_are_literals_with_the_quick_profile_and_the_default_store(path):
    parameters = read_parameters(path)
    assert parameters["profile"] == "quick" and parameters["out"] == ""


@each
def test_the_cell_after_the_parameters_checks_them(path):
    cells = code_cells(path)
    (at,) = (i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ()))
    assert f'checked("{notebook_name(path)}", globals())' in cells[at + 1].source.splitlines()


@each
def test_papermill_sees_every_parameter_with_its_default(path):
    """papermill skips a line with two equals signs, also when the second is in a comment."""
    seen = {name: ast.literal_eval(one["default"]) for name, one in papermill.inspect_notebook(str(path)).items()}
    assert seen == read_parameters(path)


@each
def test_no_function_is_long_and_no_class_is_defined(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_DEF, node.name


@each
def test_a_notebook_has_all_required_parts(path):
    prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for part in ("What you will learn:", "Minutes:", "Needs:", "## Claims", "## Errata and choices", "## Exercises",
                 "<details>"):
        assert part in prose, part
    claims = [cell for cell in code_cells(path) if re.search(r"^(?:\s*)assert ", cell.source, flags=re.M)]
    assert len(claims) >= 3, "claims, shapes and the block rebuilt by hand need assertions"


def markdown_cells(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


@each
def test_a_notebook_that_is_named_in_the_text_is_linked_and_every_linked_file_exists(path):
    names = {notebook_name(one) for one in NOTEBOOKS}
    for text in markdown_cells(path):
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            assert re.match(r"https://|#", link) or (path.parent / link).is_file(), link
        for word in re.findall(r"(?<!\[)`([\w/]+)`", text):
            assert not {word, f"{notebook_name(path).partition('/')[0]}/{word}"} & names - {notebook_name(path)}, word


@each
def test_a_papers_notebook_links_to_the_paper(path):
    paper = notebook_name(path).partition("/")[0]
    if paper in papers().index:
        assert f"]({papers().loc[paper, 'url']})" in markdown_cells(path)[0]


@each
def test_each_section_begins_a_slide_and_parameters_and_imports_are_on_none(path):
    for cell in nbformat.read(path, as_version=4).cells:
        kind = cell.metadata["slideshow"]["slide_type"]
        if cell.cell_type == "markdown":
            assert not re.search(r"\n## ", cell.source), "a section begins in a cell of its own"
            assert "\n<details" not in cell.source.replace("\n\n<details", ""), "nbconvert needs an empty line before <details>"
            expected = "slide" if re.match("##? ", cell.source) else "subslide"
            assert kind == ("skip" if cell.source == "## Errata and choices" else expected), cell.source
        else:
            assert kind in ("skip", "subslide", "-")
            assert kind == "skip" or "parameters" not in cell.metadata.get("tags", ())


def test_the_first_notebook_has_a_table_of_all_notebooks_with_their_seconds():
    (table,) = (text for text in markdown_cells(NOTEBOOKS[0]) if "| notebook | shows |" in text)
    seconds = pd.read_csv(repository() / "benchmarks" / "notebooks.csv", index_col="notebook")
    assert set(seconds.index) == {notebook_name(path) for path in NOTEBOOKS}
    for name, row in seconds.iterrows():
        (line,) = (line for line in table.splitlines() if f"`{name}`" in line)
        assert line.endswith(f"| {row.cold:.0f} | {row.warm:.0f} |"), line


def made_for(path: Path, **given) -> list[bool]:
    """The values of `as_made`, with which a notebook's claims are made, at the defaults and the given parameters."""
    names, found = {**read_parameters(path), **given}, []
    for cell in code_cells(path):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "as_made":
                exec(ast.unparse(node), names)
        if "claim(" in cell.source and "import claim" not in cell.source:
            found.append(names["as_made"])
    return found


@each
def test_claims_about_a_run_are_raised_at_the_defaults_and_only_reported_for_other_data(path):
    assert all(made_for(path))
    defaults = read_parameters(path)
    for name, other in (("profile", "paper"), ("dataset", "mtd"), ("categories", ["x"]), ("seeds", [3]), ("seed", 3)):
        # The equations and photographs of two notebooks are the same in both profiles.
        if name in defaults and (name != "profile" or "dataset" in defaults):
            assert not any(made_for(path, **{name: other})), name


@each
def test_a_notebook_has_a_cell_whose_output_nbval_compares(path):
    tagged = [cell for cell in code_cells(path) if "nbval-check-output" in cell.metadata.get("tags", ())]
    assert tagged and all(cell.outputs for cell in tagged)


@each
def test_a_notebook_is_in_the_quick_grid(path):
    assert notebook_name(path) in {job.id for job in load_grid("quick")}


def test_every_regenerated_exhibit_has_a_notebook_and_every_notebook_an_exhibit():
    table = exhibits()
    names = {notebook_name(path) for path in NOTEBOOKS} - {"00_start_here", "01_your_own_data", "02_one_protocol"}
    assert set(table[table.state == "regenerated"].notebook) == names
