"""errata.csv: every row is complete, names things that exist, and is shown in its notebook."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from adcore.errors import ParameterError
from adcore.notebook import all_notebooks, notebook_name
from adcore.papers import errata, errata_of, papers
from adcore.papers.errata import COLUMNS, KINDS

TESTS = Path(__file__).parent.parent
each_notebook = pytest.mark.parametrize("path", all_notebooks(), ids=notebook_name)


def sources(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_every_row_has_a_known_paper_kind_and_notebook_and_a_text_in_each_column_but_the_last_two():
    table = errata()
    assert tuple(table.columns) == COLUMNS and len(table) >= 100
    assert set(table["paper"]) == {*papers().index, "all"} and set(table["kind"]) == set(KINDS)
    assert set(table["notebook"]) == set(map(notebook_name, all_notebooks()))
    for column in ("place", "printed", "chosen"):
        assert (table[column].str.strip() == table[column]).all() and (table[column] != "").all(), column
    for column in ("printed", "chosen"):
        wrong = table[~table[column].str.contains(r"[.!?:][`*$\")]?$")]
        assert wrong.empty, wrong[[column]].to_string()
    assert not table.duplicated(["notebook", "place"]).any()


def test_a_notebook_of_a_paper_shows_rows_of_that_paper_only():
    table = errata()
    folder = table["notebook"].str.partition("/")[0].where(table["notebook"].str.contains("/"), "all")
    assert (folder == table["paper"]).all()


def test_errors_are_shown_somewhere_and_test_files_named_as_proof_exist():
    table = errata()
    assert (table[table["kind"] == "error"]["shown"] != "").all()
    for row in table.to_dict("records"):
        for name in re.findall(r"test_\w+\.py", row["shown"]):
            here = TESTS / "papers" / row["paper"] / name
            assert here.is_file() or list(TESTS.rglob(name)), f"{row['place']}: {name}"


@each_notebook
def test_a_section_named_as_proof_is_a_heading_of_the_notebook(path):
    lines = [line for source in sources(path, "markdown") for line in source.splitlines()]
    headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
    for row in errata_of(notebook_name(path)).rows.to_dict("records"):
        for name in re.findall(r'section "([^"]+)"', row["shown"]):
            assert any(heading.startswith(name) for heading in headings), f"{row['place']}: no section '{name}'"


@each_notebook
def test_each_notebook_reads_its_own_rows(path):
    assert any(f'errata_of("{notebook_name(path)}")' in source for source in sources(path, "code"))


def test_the_list_in_a_notebook_has_one_line_per_row_with_its_kind():
    shown = errata_of("uniad2022/04_losses_and_backbones")
    legend, empty, *lines = shown._repr_markdown_().splitlines()
    assert len(lines) == len(shown.rows) and repr(shown) == f"{len(lines)} errata and choices"
    assert not empty and f"*error*: {KINDS['error']}" in legend and f"*open*: {KINDS['open']}" in legend
    (line,) = (line for line in lines if line.startswith("- **Eq. (S3)**"))
    assert "(*error*)" in line and "**Right:** The cosine distance" in line and "*Shown by: " in line
    assert all("**Right:**" in line if "(*error*)" in line else "**Here:**" in line for line in lines)


def test_a_notebook_without_rows_is_refused_with_a_suggestion():
    with pytest.raises(ParameterError, match=r"no row for notebook 'ds2/01_dense' \(did you mean 'ds2/01_"):
        errata_of("ds2/01_dense")
