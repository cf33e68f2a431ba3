"""The pages of a report on a store written by hand: complete, offline, and replaced in one step."""

from __future__ import annotations

import json
import re

import pytest
from support.report import NAMES, Tags, outside_references

from adcore.errors import StoreError
from adcore.papers import exhibits, papers, published
from adcore.report import card, cluster, pages, score_card, write_report
from adcore.report.card import count_exhibits, notebook_runs

# --- pages ------------------------------------------------------------------------------------------------------------------

def test_all_pages_are_written_and_every_link_and_picture_exists(report):
    names = {path.relative_to(report).as_posix() for path in report.rglob("*.html")}
    fixed = {"index.html", "errata.html", "departures.html", "record.html", "benchmarks.html", "glossary.html",
             "bibliography.html"}
    assert names == {*fixed, *(f"{paper}.html" for paper in papers().index),
                     *(f"notebooks/{name}.html" for name in NAMES[:2])}
    for name in names:
        for tag, attributes in Tags((report / name).read_text()).tags:
            target = attributes.get("src") or (attributes.get("href") if tag in ("a", "link") else None) or "#"
            if not re.match(r"#|data:|https?:", target):
                assert (report / name).parent.joinpath(target).is_file(), f"{name}: {target}"


def test_no_page_loads_anything_from_the_network(report):
    for path in report.rglob("*.html"):
        assert outside_references(path.read_text()) == [], path.name


@pytest.mark.parametrize("page", [
    '<script src="https://cdn.example/x.js"></script>', "<link rel=stylesheet href='//cdn.example/x.css'>",
    '<img src="http://example.org/a.png">', "<style>@import 'x.css'</style>", "<style>a{background:url(https://e.org/a)}</style>",
    "<script>load('https://e.org/a')</script>", '<p style="background:url(//e.org/a)">'])
def test_the_check_above_finds_each_kind_of_reference(page):
    assert len(outside_references(page)) == 1


def test_the_index_page_shows_the_counts_of_the_score_card(runs, report):
    page = Tags((report / "index.html").read_text()).text
    row = count_exhibits(runs).loc["uniad2022"]
    assert re.search(re.escape(papers().loc["uniad2022", "title"]) + "".join(rf"\s*{value}" for value in row), page)


def test_each_notebook_is_listed_as_ran_with_its_seconds_as_failed_or_as_not_run(runs, report):
    states = {run.name: (run.state, run.seconds) for run in notebook_runs(runs)}
    assert states == {NAMES[0]: ("ran", 12.5), NAMES[1]: ("failed", None), NAMES[2]: ("not run", None)}
    page = (report / "index.html").read_text()
    rows = {name: re.search(rf"<tr><td>(?:(?!</tr>).)*{name}(?:(?!</tr>).)*</tr>", page, re.DOTALL)[0] for name in NAMES}
    for name, word in zip(NAMES, ("ran", "failed", "not run"), strict=True):
        assert f">{word}</span>" in rows[name]
    assert f"1 ran, 1 failed ({NAMES[1]}), 1 not run" in score_card(runs)


def test_a_papers_page_distinguishes_measured_from_published_numbers(report):
    page = (report / "uniad2022.html").read_text()
    for name in exhibits().index[exhibits()["paper"] == "uniad2022"]:
        assert f'id="{name}"' in page
    sections = dict(re.findall(r'<section class="exhibit" id="([^"]+)">(.*?)</section>', page, re.DOTALL))
    assert "<th>measured</th>" in sections["uniad2022.table_s6"] and 'class="published"' not in sections["uniad2022.table_s6"]
    assert "published numbers, not yet measured" in sections["uniad2022.table_s2"]
    assert "<th>measured</th>" not in sections["uniad2022.table_s2"]
    text = Tags(sections["uniad2022.table_s2"]).text
    assert all(cell in text for cell in published("uniad2022.table_s2")["text"])
    assert "exhibits/heckler2023.figure_1.png" in (report / "heckler2023.html").read_text()


def test_a_damaged_comparison_counts_as_missing_and_is_named_on_its_page(checkout, tmp_path):
    (tmp_path / "runs" / "exhibits").mkdir(parents=True)
    (tmp_path / "runs" / "exhibits" / "uniad2022.table_s2.json").write_text("[1, 2")
    assert card.stored_comparison("uniad2022.table_s2", tmp_path / "runs") is None
    page = (write_report(tmp_path / "report", tmp_path / "runs").parent / "uniad2022.html").read_text(encoding="utf-8")
    assert page.count("cannot be read") == 1
    assert "exhibits/uniad2022.table_s2.json cannot be read: run its notebook again" in page


def test_the_pages_of_records_and_of_speed_show_their_numbers(report):
    assert "91.0 ± 1.4" in (report / "record.html").read_text() and "91.0 ± 1.4" in (report / "index.html").read_text()
    speed = (report / "benchmarks.html").read_text()
    assert "adeval" in speed and speed.count("data:image/png;base64,") == 3
    assert "<h2>Growth</h2>" in speed and "1.25" in speed and "321" in speed
    _, beside, less, many, parts, _ = re.split(r"<h2>(?:Whole methods \w+|One fast path less|Many images|Parts|Growth)", speed)
    assert "anomalib" in beside and "dropout" in less and "anomalib" not in less
    assert "321" in many and "adeval" in parts


def test_without_measurements_the_page_of_speed_says_how_to_get_them(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "benchmarks_on_record", lambda name: None)
    page = (write_report(tmp_path / "report", tmp_path / "runs").parent / "benchmarks.html").read_text()
    assert re.findall("<h2>.*?</h2>", page) == ["<h2>Parts</h2>"] and "run <code>make bench</code>" in page


# --- cluster ----------------------------------------------------------------------------------------------------------------

CLUSTER = {"finished": "2026-11-22T23:00:00Z", "commit": "abc", "slurm": "22.05.8", "snakemake": "9", "plugin": "2",
           "notebooks": 13, "failed_notebooks": 1, "jobs": 7, "killed_jobs": 1, "killed_drivers": 1,
           "finished_before_restart": 5, "experiments": 40, "numbers": 160, "equal": True, "seconds": 300}


def test_the_report_shows_the_last_run_on_a_cluster_or_that_there_is_none(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "repository", lambda: tmp_path)
    assert "Not run: <code>make test-slurm</code>" in write_report(tmp_path / "report", tmp_path / "runs").read_text()
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / cluster.CLUSTER_TEST
    for equal, word in ((True, "equal"), (False, "NOT equal")):
        path.write_text(json.dumps({**CLUSTER, "equal": equal}))
        page = Tags(write_report(tmp_path / "report", tmp_path / "runs").read_text()).text
        assert f"The 160 numbers of 40 experiments are {word} to those" in page and "SLURM 22.05.8" in page


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({**CLUSTER, "jobs": "7"}), json.dumps({**CLUSTER, "equal": 1}),
                                     b"\xff"])
def test_a_damaged_outcome_of_the_cluster_test_is_refused(tmp_path, content):
    (tmp_path / cluster.CLUSTER_TEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StoreError, match=r"slurm\.json is not a valid outcome of `make test-slurm`: run it again$"):
        cluster.cluster_test(tmp_path)


# --- writing ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a broken notebook"),
                                   KeyboardInterrupt()])
def test_the_old_report_stays_when_the_new_one_cannot_be_written(runs, tmp_path, monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("<title>adcore: score card</title> the old one")
    monkeypatch.setattr(pages, "to_html", fails)
    with pytest.raises(StoreError if isinstance(error, OSError) else type(error)) as caught:
        write_report(folder, runs)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"cannot write the report to {folder}: No space left on device")
    assert "the old one" in (folder / "index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_new_report_replaces_all_files_of_the_old_one(checkout, tmp_path):
    index = write_report(tmp_path / "report", tmp_path / "runs")
    (tmp_path / "report" / "left_over.html").write_text("x")
    assert write_report(tmp_path / "report", tmp_path / "runs") == index
    assert not (tmp_path / "report" / "left_over.html").exists() and index.is_file()


def test_a_folder_with_other_files_is_not_replaced(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"mine contains other files than a report: choose another folder with --to"):
        write_report(tmp_path / "mine", tmp_path / "runs")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
