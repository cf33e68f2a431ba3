"""The score card of a store written by hand, against counts on paper."""

from __future__ import annotations

import re

import nbformat
from nbformat.v4 import new_output
from support.report import NAMES, write_notebook

from adcore.papers import exhibits
from adcore.report import score_card, write_report
from adcore.report.card import count_exhibits, notebook_runs


def test_the_score_card_counts_the_contents_of_the_store(runs):
    counts = count_exhibits(runs)
    uniad = counts.loc["uniad2022"]
    # S6 has 24 numbers: image AUROC of b4 is within the tolerance, its pixel AUROC of 99.0 is above 96.8, 22 have no result.
    # S7 has 16: the parameters of ours and PaDiM agree, 6.41 is below 6.46, 13 are not computed; text cells do not count.
    # The other tables of the paper are 4 (S1) + 18 (S2) + 20 (S3) + 6 (S4) + 6 (S5) numbers and CIFAR-10 has 5,
    # none of them run.
    assert uniad["numbers"] == 24 + 16 + 54 + 5
    assert (uniad["reproduced"], uniad["higher"], uniad["lower"]) == (1 + 2, 1, 1)
    assert uniad["not run"] == 22 + 13 + 54 + 5 and uniad["regenerated"] == 2
    assert tuple(counts.loc["heckler2023", ["regenerated", "quick or open", "reproduced"]]) == (0, 1, 0)
    assert counts.loc["all", "exhibits"] == len(exhibits())
    assert (counts.loc["all"] == counts.drop(index="all").sum()).all()
    assert (counts[["reproduced", "higher", "lower", "not run"]].sum(axis=1) == counts["numbers"]).all()


def test_the_score_card_of_an_empty_store_is_zero(checkout, tmp_path):
    counts = count_exhibits(tmp_path)
    assert counts.loc["all", "regenerated"] == counts.loc["all", "reproduced"] == 0
    assert counts.loc["all", "not run"] == counts.loc["all", "numbers"] > 290
    assert write_report(tmp_path / "report", tmp_path).is_file()


def test_a_notebook_with_a_damaged_record_is_listed_as_failed(checkout, tmp_path):
    executed, record = (tmp_path / "notebooks" / f"{NAMES[0]}{suffix}" for suffix in (".ipynb", ".json"))
    write_notebook(executed)
    record.write_text('{"seconds": 1')
    assert {run.name: run.state for run in notebook_runs(tmp_path)}[NAMES[0]] == "failed"
    record.write_text('{"seconds": 1}')
    assert {run.name: run.state for run in notebook_runs(tmp_path)}[NAMES[0]] == "ran"


def test_a_failed_parameter_set_is_listed_with_its_error_and_its_page(checkout, tmp_path):
    folder = tmp_path / "runs" / "notebooks"
    ran, failed, torn = (f"{NAMES[0]}@{digits}" for digits in ("00000001", "00000002", "00000003"))
    write_notebook(folder / f"{ran}.ipynb")
    (folder / f"{ran}.json").write_text('{"seconds": 1}')
    write_notebook(folder / f"{failed}.ipynb")
    content = nbformat.read(folder / f"{failed}.ipynb", as_version=4)
    error = {"ename": "DataError", "evalue": "data set <mvtec_ad> is not here\nsecond line", "traceback": []}
    content.cells[-1].outputs = [new_output("error", **error)]
    nbformat.write(content, folder / f"{failed}.ipynb")
    (folder / f"{torn}.ipynb").touch()                                 # Snakemake leaves an empty file of a killed run
    found = {run.name: run for run in notebook_runs(tmp_path / "runs")}
    assert ran not in found and [name for name, run in found.items() if run.state == "failed"] == [failed, torn]
    assert found[failed].error == "DataError: data set <mvtec_ad> is not here"
    assert found[torn].executed is None and found[torn].error == "still running, or ended before its notebook was written"
    assert f"2 failed ({failed}, {torn})" in score_card(tmp_path / "runs")

    page = write_report(tmp_path / "report", tmp_path / "runs").read_text()
    (row,) = re.findall(rf"<tr><td>(?:(?!</tr>).)*{failed}(?:(?!</tr>).)*</tr>", page, re.DOTALL)
    assert f'href="notebooks/{failed}.html"' in row and "DataError: data set &lt;mvtec_ad&gt; is not here" in row
    assert (tmp_path / "report" / "notebooks" / f"{failed}.html").is_file()
    assert "second line" not in row
