"""The report from a hand-made store: every page there, nothing asked of the network, every count as counted by hand."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pytest import approx
from support.tiny import result

from adcore import figures, notebook
from adcore.errors import AdcoreError, StoreError
from adcore.experiments import ResultTable, Store, compare_values
from adcore.experiments import record as recording
from adcore.papers import exhibits, papers, published
from adcore.report import card, charts, cluster, pages, readme, score_card, write_report
from adcore.report.card import count_exhibits, notebook_runs
from adcore.report.executed import drop_outside, with_mathml

PIXEL = base64.b64encode(base64.b16decode(
    "89504E470D0A1A0A0000000D49484452000000010000000108060000001F15C4890000000D49444154789C63F8FFFF3F0005FE02FEA7356"
    "9810000000049454E44AE426082")).decode()
NAMES = ["uniad2022/01_architecture", "uniad2022/02_ablations", "heckler2023/02_best_layer"]


def write_notebook(path: Path) -> None:
    """As papermill leaves it: a formula in the line and one of its own, a picture, code with dollars and an address."""
    picture = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    code = 'price = "$5 and $6"\nhome = "https://example.org/x.js"'
    cells = [new_markdown_cell("# Title\nThe map is $s = \\|f - \\hat f\\|_2$, a price `$x` stays, and so does \\$3.\n\n"
                               "$$\\frac{1}{HW} \\sum_i x_i^2$$\n\n[paper](https://arxiv.org/abs/2206.03687)"),
             new_code_cell(code, execution_count=1, outputs=[picture]),
             new_code_cell("print('$a$')", execution_count=2, outputs=[new_output("stream", text="$a$ stays text\n")])]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def write_records(folder: Path) -> None:
    """results/real_images.csv and benchmarks/results.csv: two seeds of one method, one of another."""
    rows = []
    measured = (("uniad", 0, (0.9, 0.8, 0.7)), ("uniad", 1, (0.92, 0.84, 0.7)), ("patchcore", 0, (1.0, 0.5, 0.6)))
    for method, seed, values in measured:
        for metric, value in zip(("image_auroc", "pixel_auroc", "aupro"), values, strict=True):
            rows.append({"method": method, "dataset": "mtd", "category": "tile", "profile": "quick", "settings": "",
                         "seed": seed, "metric": metric, "value": value, "seconds": 10.0 * (seed + 1), "peak_bytes": 2e9,
                         "device": "cpu", "machine": "a chip", "commit": "abc", "data": "d", "weights_digest": "w",
                         "finished": "t", "key": f"{method}{seed}"})
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows)[recording.COLUMNS].to_csv(folder / "results" / "real_images.csv", index=False)
    (folder / "benchmarks").mkdir()
    speed = pd.DataFrame({"benchmark": ["aupro", "kcenter"], "peer": ["adeval", "anomalib"],
                          "size": ["100x256x256", "20000x128x2000"], "ratio": [3.0, 0.8]})
    speed.to_csv(folder / "benchmarks" / "results.csv", index=False)
    growth = [{"kernel": kernel, "of": "points", "size": size, "seconds": size**power / 1e6, "exponent": power, "expected": 1,
               "peak_mb": peak} for kernel, power, peak in (("gmm", 1.25, 3.0), ("nearest", 0.75, 0.0)) for size in (100, 200)]
    pd.DataFrame(growth).to_csv(folder / "benchmarks" / "growth.csv", index=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Path]:
    """A checkout with three notebooks and numbers on record."""
    root = tmp_path_factory.mktemp("checkout")
    for name in NAMES:
        write_notebook(root / "notebooks" / f"{name}.ipynb")
    write_records(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "notebook_folder", lambda: root / "notebooks")
        for module in (recording, pages, readme):
            patch.setattr(module, "repository", lambda: root)
        yield root


@pytest.fixture(scope="module")
def runs(checkout) -> Path:
    """A store: one notebook ran, one failed; tables S6, S7 and a figure regenerated."""
    root = checkout / "runs"
    write_notebook(root / "notebooks" / f"{NAMES[0]}.ipynb")
    (root / "notebooks" / f"{NAMES[0]}.json").write_text(json.dumps({"seconds": 12.5}))
    write_notebook(root / "notebooks" / f"{NAMES[1]}.ipynb")           # no record beside it: it failed
    compare_values("uniad2022.table_s7", {
        ("FLOPs(G)", "Ours"): 6.41, ("Learnable Params(M)", "Ours"): 7.479296, ("Learnable Params(M)", "PaDiM"): 950.3648,
        ("Sec. E.1", "claim"): "another"}, root=root)
    made = result({("screw", "image_auroc"): 0.965, ("screw", "pixel_auroc"): 0.99})
    ResultTable([made], Store(root)).against("uniad2022.table_s6")
    figures.record(Figure(figsize=(1, 1)), "heckler2023.figure_1", "random weights", "quick", root)
    return root


@pytest.fixture(scope="module")
def report(runs, checkout) -> Path:
    return write_report(checkout / "report", runs).parent


class Tags(HTMLParser):
    """All tags of a page with their attributes; the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in self.inline else ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in:
            self.inline[self._in].append(data)
        else:
            self.text += data


def outside_references(page: str) -> list[str]:
    """What a browser would fetch from elsewhere when it opens the page."""
    tags, found = Tags(page), []
    for tag, attributes in tags.tags:
        for name in ("src", "srcset", "data", "poster", *(["href"] if tag in ("link", "base", "use", "image") else [])):
            if re.match(r"\s*(https?:|ftp:)?//", attributes.get(name) or ""):
                found.append(f"<{tag} {name}={attributes[name]}>")
        if re.search(r"url\(\s*['\"]?(https?:)?//", attributes.get("style") or ""):
            found.append(f"<{tag} style>")
    found += [text for text in tags.inline["style"] if re.search(r"@import|url\(\s*['\"]?(https?:)?//", text)]
    found += [text[:300] for text in tags.inline["script"] if "http:" in text or "https:" in text]
    return found


# --- pages --------------------------------------------------------------------------------------------------------------

def test_every_page_is_written_and_every_link_and_picture_between_them_leads_somewhere(report):
    names = {path.relative_to(report).as_posix() for path in report.rglob("*.html")}
    assert names == {"index.html", "record.html", "benchmarks.html", *(f"{paper}.html" for paper in papers().index),
                     *(f"notebooks/{name}.html" for name in NAMES[:2])}
    for name in names:
        for tag, attributes in Tags((report / name).read_text()).tags:
            target = attributes.get("src") or (attributes.get("href") if tag in ("a", "link") else None) or "#"
            if not re.match(r"#|data:|https?:", target):
                assert (report / name).parent.joinpath(target).is_file(), f"{name}: {target}"


def test_no_page_asks_anything_of_the_network(report):
    for path in report.rglob("*.html"):
        assert outside_references(path.read_text()) == [], path.name


@pytest.mark.parametrize("page", [
    '<script src="https://cdn.example/x.js"></script>', "<link rel=stylesheet href='//cdn.example/x.css'>",
    '<img src="http://example.org/a.png">', "<style>@import 'x.css'</style>", "<style>a{background:url(https://e.org/a)}</style>",
    "<script>load('https://e.org/a')</script>", '<p style="background:url(//e.org/a)">'])
def test_the_check_of_the_pages_itself_finds_what_it_looks_for(page):
    assert len(outside_references(page)) == 1


def test_what_would_be_loaded_is_dropped_from_a_page_and_links_stay():
    page = ('<script src="https://cdn.example/x.js"></script><link href="//cdn.example/x.css" rel="stylesheet">'
            '<script>var a = 1;</script><script type="module">import m from "https://e.org/m.mjs";</script>'
            '<a href="https://arxiv.org">paper</a>')
    assert drop_outside(page) == '<script>var a = 1;</script><a href="https://arxiv.org">paper</a>'


def test_formulas_of_a_notebook_become_mathml_and_dollars_in_code_and_output_stay(report):
    page = (report / "notebooks" / f"{NAMES[0]}.html").read_text()
    tags = Tags(page)
    assert [attributes.get("display") for tag, attributes in tags.tags if tag == "math"] == ["inline", "block"]
    assert len(re.findall(r"<math[^>]*><mrow><m", page)) == 2, "their tags are nested as they were made"
    assert "ELUMROF" not in page and "<mfrac>" in page and "\\frac" not in tags.text and "\\hat" not in tags.text
    assert "$5 and $6" in tags.text and "$a$ stays text" in tags.text and "$x" in tags.text
    assert f"data:image/png;base64,{PIXEL}" in page.replace("\n", "")


@pytest.mark.parametrize(("markdown", "formulas"), [
    ("$a$ and $b$", 2), ("$$a$$", 1), ("costs $5 and $6 more", 0), ("`$a$` is code", 0), ("```\n$a$\n```", 0), (r"\$a\$", 0),
    ("$$\na\n+ b\n$$", 1), ("x$a$", 0), ("($\\alpha$)", 1), ("no formula", 0)])
def test_only_formulas_are_taken_for_formulas(markdown, formulas):
    found = with_mathml(markdown)
    assert found.count("<math") == formulas and (formulas or found == markdown)


def test_a_notebook_that_ran_is_listed_with_its_seconds_one_that_failed_as_failed_and_one_never_run_as_not_run(runs, report):
    states = {run.name: (run.state, run.seconds) for run in notebook_runs(runs)}
    assert states == {NAMES[0]: ("ran", 12.5), NAMES[1]: ("failed", None), NAMES[2]: ("not run", None)}
    page = (report / "index.html").read_text()
    rows = {name: re.search(rf"<tr><td>(?:(?!</tr>).)*{name}(?:(?!</tr>).)*</tr>", page, re.DOTALL)[0] for name in NAMES}
    for name, word in zip(NAMES, ("ran", "failed", "not run"), strict=True):
        assert f">{word}</span>" in rows[name]
    assert f"1 ran, 1 failed ({NAMES[1]}), 1 not run" in score_card(runs)


def test_a_notebook_without_a_whole_record_is_listed_as_failed(checkout, tmp_path):
    executed, record = (tmp_path / "notebooks" / f"{NAMES[0]}{suffix}" for suffix in (".ipynb", ".json"))
    write_notebook(executed)
    record.write_text('{"seconds": 1')
    assert {run.name: run.state for run in notebook_runs(tmp_path)}[NAMES[0]] == "failed"
    record.write_text('{"seconds": 1}')
    assert {run.name: run.state for run in notebook_runs(tmp_path)}[NAMES[0]] == "ran"


def test_a_parameter_set_that_failed_is_listed_with_its_error_and_its_page_and_one_that_ran_is_not(checkout, tmp_path):
    folder = tmp_path / "runs" / "notebooks"
    ran, failed, torn = (f"{NAMES[0]}@{digits}" for digits in ("00000001", "00000002", "00000003"))
    write_notebook(folder / f"{ran}.ipynb")
    (folder / f"{ran}.json").write_text('{"seconds": 1}')
    write_notebook(folder / f"{failed}.ipynb")
    content = nbformat.read(folder / f"{failed}.ipynb", as_version=4)
    error = {"ename": "DataError", "evalue": "data set <mvtec_ad> is not here\nsecond line", "traceback": []}
    content.cells[-1].outputs = [new_output("error", **error)]
    nbformat.write(content, folder / f"{failed}.ipynb")
    (folder / f"{torn}.ipynb").touch()                                 # as Snakemake leaves it of a run that was killed
    found = {run.name: run for run in notebook_runs(tmp_path / "runs")}
    assert ran not in found and [name for name, run in found.items() if run.state == "failed"] == [failed, torn]
    assert found[failed].error == "DataError: data set <mvtec_ad> is not here"
    assert found[torn].executed is None and found[torn].error == "is running, or ended before its notebook was written"
    assert f"2 failed ({failed}, {torn})" in score_card(tmp_path / "runs")

    page = write_report(tmp_path / "report", tmp_path / "runs").read_text()
    (row,) = re.findall(rf"<tr><td>(?:(?!</tr>).)*{failed}(?:(?!</tr>).)*</tr>", page, re.DOTALL)
    assert f'href="notebooks/{failed}.html"' in row and "DataError: data set &lt;mvtec_ad&gt; is not here" in row
    assert (tmp_path / "report" / "notebooks" / f"{failed}.html").is_file()
    assert "second line" not in row


# --- a real cluster -------------------------------------------------------------------------------------------------------

CLUSTER = {"finished": "2026-11-22T23:00:00Z", "commit": "abc", "slurm": "22.05.8", "snakemake": "9", "plugin": "2",
           "notebooks": 13, "failed_notebooks": 1, "jobs": 7, "killed_jobs": 1, "killed_drivers": 1,
           "finished_before_restart": 5, "experiments": 40, "numbers": 160, "equal": True, "seconds": 300}


def test_the_report_shows_the_last_run_on_a_real_cluster_or_that_there_was_none(checkout, tmp_path, monkeypatch):
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
def test_a_record_of_a_cluster_that_is_damaged_is_said_to_be_so(tmp_path, content):
    (tmp_path / cluster.CLUSTER_TEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StoreError, match=r"slurm\.json is no record of a run on SLURM: make it again by `make test-slurm`$"):
        cluster.cluster_test(tmp_path)


# --- score card ---------------------------------------------------------------------------------------------------------

def test_the_score_card_counts_what_the_store_holds(runs):
    counts = count_exhibits(runs)
    uniad = counts.loc["uniad2022"]
    # S6 has 24 numbers: the b4's image AUROC fits, its pixel AUROC of 99.0 is above 96.8, 22 have no result.
    # S7 has 16: parameters of ours and PaDiM fit, 6.41 is below 6.46, 13 are not computed; its words are not counted.
    # The other tables of the paper are 4 (S1) + 18 (S2) + 20 (S3) + 6 (S4) + 6 (S5) numbers and CIFAR-10 has 5,
    # none of them run.
    assert uniad["numbers"] == 24 + 16 + 54 + 5
    assert (uniad["reproduced"], uniad["higher"], uniad["lower"]) == (1 + 2, 1, 1)
    assert uniad["not run"] == 22 + 13 + 54 + 5 and uniad["regenerated"] == 2
    assert tuple(counts.loc["heckler2023", ["regenerated", "quick only", "reproduced"]]) == (0, 1, 0)
    assert counts.loc["all", "exhibits"] == len(exhibits())
    assert (counts.loc["all"] == counts.drop(index="all").sum()).all()
    assert (counts[["reproduced", "higher", "lower", "not run"]].sum(axis=1) == counts["numbers"]).all()


def test_an_empty_store_is_a_score_card_of_zeros(checkout, tmp_path):
    counts = count_exhibits(tmp_path)
    assert counts.loc["all", "regenerated"] == counts.loc["all", "reproduced"] == 0
    assert counts.loc["all", "not run"] == counts.loc["all", "numbers"] > 290
    assert write_report(tmp_path / "report", tmp_path).is_file()


def test_the_front_page_shows_the_counts_of_the_score_card(runs, report):
    page = Tags((report / "index.html").read_text()).text
    row = count_exhibits(runs).loc["uniad2022"]
    assert re.search(re.escape(papers().loc["uniad2022", "title"]) + "".join(rf"\s*{value}" for value in row), page)


def test_a_papers_page_tells_measured_from_published(report):
    page = (report / "uniad2022.html").read_text()
    for name in exhibits().index[exhibits()["paper"] == "uniad2022"]:
        assert f'id="{name}"' in page
    sections = dict(re.findall(r'<section class="exhibit" id="([^"]+)">(.*?)</section>', page, re.DOTALL))
    assert "<th>measured</th>" in sections["uniad2022.table_s6"] and 'class="published"' not in sections["uniad2022.table_s6"]
    assert "published, nothing measured yet" in sections["uniad2022.table_s2"]
    assert "<th>measured</th>" not in sections["uniad2022.table_s2"]
    text = Tags(sections["uniad2022.table_s2"]).text
    assert all(cell in text for cell in published("uniad2022.table_s2")["text"])
    assert "exhibits/heckler2023.figure_1.png" in (report / "heckler2023.html").read_text()


# --- writing ------------------------------------------------------------------------------------------------------------

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


def test_a_new_report_replaces_the_old_one_whole(checkout, tmp_path):
    index = write_report(tmp_path / "report", tmp_path / "runs")
    (tmp_path / "report" / "left_over.html").write_text("x")
    assert write_report(tmp_path / "report", tmp_path / "runs") == index
    assert not (tmp_path / "report" / "left_over.html").exists() and index.is_file()


def test_a_folder_that_holds_something_else_is_not_replaced(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"mine holds something else than a report: name another folder with --to"):
        write_report(tmp_path / "mine", tmp_path / "runs")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_record_that_cannot_be_read_counts_as_none_and_is_named(checkout, tmp_path):
    (tmp_path / "runs" / "exhibits").mkdir(parents=True)
    (tmp_path / "runs" / "exhibits" / "uniad2022.table_s2.json").write_text("[1, 2")
    assert card.stored_comparison("uniad2022.table_s2", tmp_path / "runs") is None
    page = (write_report(tmp_path / "report", tmp_path / "runs").parent / "uniad2022.html").read_text(encoding="utf-8")
    assert page.count("cannot be read") == 1
    assert "exhibits/uniad2022.table_s2.json cannot be read: run its notebook again" in page


# --- numbers on record --------------------------------------------------------------------------------------------------

def test_numbers_on_record_are_summarized_in_per_cent_over_seeds(checkout):
    (record,) = recording.records()
    table = recording.summarize(record.frame).set_index("method")
    # 90 and 92: mean 91, deviation sqrt(2); 80 and 84: mean 82, deviation 2 sqrt(2).
    uniad = table.loc["uniad", ["image AUROC", "pixel AUROC", "AUPRO", "seeds"]]
    assert tuple(uniad) == ("91.0 ± 1.4", "82.0 ± 2.8", "70.0 ± 0.0", "0, 1")
    assert tuple(table.loc["patchcore", ["image AUROC", "seconds", "peak GB", "commit"]]) == ("100.0", "10", "2.0", "abc")
    assert float(table.loc["uniad", "seconds"]) == approx(15)
    assert record.about == "real_images.csv: 3 experiments on mtd"


def test_a_notebook_asks_for_a_record_by_name_and_method(checkout):
    assert list(recording.on_record("real_images", method="patchcore")["method"]) == ["patchcore"]
    with pytest.raises(StoreError, match="results/ has no record 'real'; it has real_images"):
        recording.on_record("real")


def test_the_record_page_and_the_speed_page_show_their_numbers(report):
    assert "91.0 ± 1.4" in (report / "record.html").read_text() and "91.0 ± 1.4" in (report / "index.html").read_text()
    speed = (report / "benchmarks.html").read_text()
    assert "adeval" in speed and speed.count("data:image/png;base64,") == 2
    assert "<h2>Growth</h2>" in speed and "1.25" in speed and "Whole methods" not in speed    # nothing whole was measured


def test_the_growth_chart_has_a_panel_a_computation_with_its_exponents(checkout, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "as_data", lambda figure: drawn.append(figure) or "data:")
    assert charts.growth_chart(pages.benchmarks_on_record("growth")) == "data:" and charts.growth_chart(None) is None
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    titles = ["gmm\ntime ~ points^1.25, counted 1", "nearest\ntime ~ points^0.75, counted 1"]
    assert [axes.get_title() for axes in panels] == titles
    assert [axes.get_ylabel() for axes in drawn[0].axes].count("peak MB") == 1         # nothing was held beyond nearest's input


def test_the_readmes_table_is_written_between_its_markers_and_nowhere_else(checkout, monkeypatch):
    monkeypatch.setattr(readme, "heat_map_figure", Figure)
    path = checkout / "README.md"
    path.write_text(f"# adcore\n\nbefore \\1 \\g<0>\n{readme.BEGIN}\nstale\n{readme.END}\nafter | a | table |\n")
    readme.rewrite_readme()
    once = path.read_text()
    head, rest = once.split(readme.BEGIN)
    table, tail = rest.split(readme.END)
    assert head == "# adcore\n\nbefore \\1 \\g<0>\n" and tail == "\nafter | a | table |\n" and "stale" not in table
    lines = table.strip().splitlines()
    assert lines[0].startswith("| method | data set | category | image AUROC |") and set(lines[1]) <= set("|- ")
    assert len(lines) == 2 + 2 and "| uniad | mtd | tile | 91.0 ± 1.4 |" in table
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    readme.rewrite_readme()
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END])
def test_a_readme_without_the_markers_is_refused(text):
    with pytest.raises(AdcoreError, match=r"README\.md has no place for the measured numbers"):
        readme.rendered(text)


def test_a_formula_that_a_cell_gives_out_is_drawn_without_the_network(tmp_path):
    import nbformat

    from adcore.report.executed import to_html
    data = {"text/latex": r"$\displaystyle (9):\quad - \frac{\alpha}{L} h{\left(u \right)}$", "text/plain": "-alpha/L*h(u)"}
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", data=data)], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    to_html(tmp_path / "a.ipynb", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<mfrac><mrow><mi>&#x003B1;</mi></mrow><mrow><mi>L</mi></mrow></mfrac>" in page
    assert "displaystyle (9)" not in page and "-alpha/L*h(u)" not in page and "ELUMROF" not in page
