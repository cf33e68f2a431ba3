"""The report's page of errata and choices."""

from __future__ import annotations

import re

import pandas as pd
from support.report import Tags

from adcore.papers import errata
from adcore.papers.errata import KINDS
from adcore.report import pages


def test_the_report_s_page_has_every_row_once_with_a_name_to_link_to(report):
    page = (report / "errata.html").read_text()
    found = Tags(page)
    names = [attributes["id"] for tag, attributes in found.tags if tag == "tr" and "id" in attributes]
    assert len(names) == len(set(names)) == len(errata())
    assert {f"#{name}" for name in names} <= {attributes.get("href") for tag, attributes in found.tags if tag == "a"}
    assert sum(tag == "math" for tag, _ in found.tags) >= 3 and "TPEK" not in page


def test_the_report_counts_the_rows_of_each_kind(report):
    cells = re.findall(r"<th>all</th>(.*?)</tr>", (report / "errata.html").read_text(), re.DOTALL)
    counts = errata()["kind"].value_counts()
    assert [int(number) for number in re.findall(r"\d+", cells[0])] == [counts[kind] for kind in KINDS]


def test_markdown_and_formulas_of_a_row_become_html(monkeypatch):
    row = {"paper": "ds2", "kind": "open", "place": "Here", "printed": "A `b` & $c_1$.", "chosen": "*d*.", "shown": "",
           "notebook": "ds2/01_dense_pretraining"}
    monkeypatch.setattr(pages, "errata", lambda: pd.DataFrame([row]))
    ((made,),) = pages.errata_sections().values()
    assert "<code>b</code> &amp; <math" in made["printed"] and "<em>d</em>" in made["chosen"] and made["shown"] == ""
    assert made["id"] == "ds2-01_dense_pretraining-here"
