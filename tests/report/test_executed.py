"""Executed notebooks as HTML files: formulas become MathML, and nothing is loaded from the network."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from support.report import PIXEL, Tags, write_notebook

from adcore.report.executed import to_html, with_mathml


def test_formulas_become_mathml_and_dollar_signs_in_code_and_output_stay(tmp_path):
    write_notebook(tmp_path / "a.ipynb")
    to_html(tmp_path / "a.ipynb", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    tags = Tags(page)
    assert [attributes.get("display") for tag, attributes in tags.tags if tag == "math"] == ["inline", "block"]
    assert len(re.findall(r"<math[^>]*><mrow><m", page)) == 2, "the tags of a formula are nested correctly"
    assert "TPEK" not in page and "<mfrac>" in page and "\\frac" not in tags.text and "\\hat" not in tags.text
    assert "$5 and $6" in tags.text and "$a$ stays text" in tags.text and "$x" in tags.text
    assert f"data:image/png;base64,{PIXEL}" in page.replace("\n", "")


@pytest.mark.parametrize(("markdown", "formulas"), [
    ("$a$ and $b$", 2), ("$$a$$", 1), ("costs $5 and $6 more", 0), ("`$a$` is code", 0), ("```\n$a$\n```", 0), (r"\$a\$", 0),
    ("$$\na\n+ b\n$$", 1), ("x$a$", 0), ("($\\alpha$)", 1), ("no formula", 0)])
def test_dollar_signs_without_a_formula_stay(markdown, formulas):
    found = with_mathml(markdown)
    assert found.count("<math") == formulas and (formulas or found == markdown)


def test_a_formula_in_an_output_becomes_mathml(tmp_path):
    data = {"text/latex": r"$\displaystyle (9):\quad - \frac{\alpha}{L} h{\left(u \right)}$", "text/plain": "-alpha/L*h(u)"}
    cell = new_code_cell("x", outputs=[new_output("display_data", data=data)], execution_count=1)
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    to_html(tmp_path / "a.ipynb", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<mfrac><mrow><mi>α</mi></mrow><mrow><mi>L</mi></mrow></mfrac>" in page
    assert "displaystyle (9)" not in page and "-alpha/L*h(u)" not in page and "TPEK" not in page


def test_links_to_other_notebooks_lead_to_their_pages_and_are_plain_text_where_there_is_none(tmp_path):
    cell = nbformat.v4.new_markdown_cell("see [`b/02`](../b/02.ipynb), [`b/03`](../b/03.ipynb) and [all](https://a.org/x.ipynb)")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "01.ipynb")
    to_html(tmp_path / "01.ipynb", tmp_path / "a" / "01.html", [tmp_path / "b" / "02.html"])
    links = [attributes["href"] for tag, attributes in Tags((tmp_path / "a" / "01.html").read_text()).tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["../b/02.html", "https://a.org/x.ipynb"]
