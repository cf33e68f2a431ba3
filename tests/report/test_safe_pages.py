"""Whatever stands in results, csv files and executed notebooks: a page of the report shows it, and runs no script."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from support.report import NAMES, PIXEL, Tags, outside_references, write_notebook, write_records

from adcore import notebook
from adcore.experiments import comparison
from adcore.experiments import record as recording
from adcore.figures.tables import comparison_html
from adcore.report import card, cluster, executed, pages, write_report
from adcore.report.executed import to_html, with_mathml
from adcore.report.safe import TAGS, mathml, only_safe, table_styles

MARK = "document.documentElement.id='ran'"  # what each attack does; the browser's page then begins with <html id="ran">
NAME = f"<img src=x onerror={MARK}>"
RUN = "_img src_x onerror_document.documentElement.id__ran__"  # the name of a run of a notebook of that name
DENSE = f"<img/src/onerror={MARK}>"  # without a space, which a formula would change
ATTACKS = [
    NAME, f"<script>{MARK}</script>", f"<ScRiPt\n>{MARK}</sCrIpT >", f"<svg onload={MARK}><script>{MARK}</script></svg>",
    f"<img src=x onerror=\"{MARK}\">", f"<div onmouseover={MARK} onclick={MARK}>x</div>",
    f"<details open ontoggle={MARK}><summary>x</summary></details>", f"<input autofocus onfocus={MARK}>",
    f"<video><source onerror={MARK}></video>", f"<body onload={MARK}>", f"<p/onclick={MARK}/style=x>x",
    f"<iframe srcdoc=\"<script>parent.{MARK}</script>\"></iframe>", "<iframe src=https://example.org></iframe>",
    f"<noscript><p title=\"</noscript><img src=x onerror={MARK}>\">", f"<!--><img src=x onerror={MARK}>-->",
    f"<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=x onerror={MARK}&gt;\">",
    f"<form><math><mtext></form><form><mglyph><style></math><img src onerror={MARK}>",
    f"<a href=\"javascript:{MARK}\">x</a>", f"<a href=\" java\nscript:{MARK}\">x</a>", "<a href=data:text/html,x>x</a>",
    "<meta http-equiv=refresh content=0;url=https://example.org>", "<base href=https://example.org/>",
    "<link rel=stylesheet href=//example.org/a.css>", "<style>@import '//example.org/a.css';</style>",
    "<style>@import url(https://example.org/a.css); .dataframe {background: url(//example.org/a)}</style>",
    "<p style=background:url(//example.org/a)>x", "<p style='position:fixed;top:0'>x", "<img src=https://example.org/a.png>",
    "<img src=//example.org/a.png>", "<img src=../../../secret.png>", "<object data=//example.org/a></object>",
    f"<form action=//example.org><button formaction=\"javascript:{MARK}\">x</button></form>", "<embed src=//example.org/a>"]
MATHML = {"math", "mrow", "mi", "mo", "mn", "mtext", "mfrac", "msub", "msup", "msubsup", "mover", "mstyle", "mtable", "mtr",
          "mtd", "msqrt", "munder", "munderover", "mspace"}
OURS = {"html", "head", "meta", "title", "style", "body", "main", "header", "nav", "footer", "section"}


def executed_copy(path: Path, sources: list[str], outputs: list[dict], **metadata: object) -> Path:
    """An executed notebook with Markdown cells and with outputs, which need not be valid."""
    cells: list[dict] = [{"cell_type": "markdown", "id": f"a{number}", "metadata": {}, "source": source}
                         for number, source in enumerate(sources)]
    cells += [{"cell_type": "code", "id": f"b{number}", "metadata": {"tags": [NAME]}, "source": "x", "execution_count": 1,
               "outputs": [output]} for number, output in enumerate(outputs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def hostile_copy(path: Path) -> Path:
    """An executed notebook that attacks from every place that nbconvert writes to a page."""
    def shown(**data: object) -> dict:
        metadata = {"image/png": {"width": NAME, "height": NAME}, "filenames": {"image/png": f'"{NAME}'}}
        return {"output_type": "display_data", "metadata": metadata, "data": data}

    plain = {"text/plain": "the plain text"}
    outputs = [*(shown(**{kind: attack}) for attack in ATTACKS for kind in ("text/html", "text/markdown")),
               shown(**{"application/javascript": MARK, **plain}), shown(**{"image/svg+xml": ATTACKS[3]}),
               shown(**{"image/png": f'"{NAME}', **plain}), shown(**{"text/latex": f"{NAME} ${NAME}$"}),
               shown(**{"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, **plain}),
               shown(**{"text/vnd.mermaid": NAME}),
               {"output_type": "stream", "name": "stdout", "text": NAME},
               {"output_type": "error", "ename": NAME, "evalue": NAME, "traceback": [NAME]}]
    formulas = [rf"$\text{{</mtext>{DENSE}}}$", rf"$$\href{{javascript:{MARK}}}{{x}}$$", rf"# A ${NAME}$",
                rf'![a $\text{{"{NAME}}}$](x.png)', rf"$\text{{$ {NAME}"]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"a": f"</script>{NAME}"}}}
    return executed_copy(path, [*ATTACKS, *formulas, f"```\n{NAME}\n```", f"`{NAME}`", f"[x](javascript:{MARK})"], outputs,
                         title=f"</title>{NAME}", widgets=state, language_info={"name": NAME, "pygments_lexer": NAME})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a report whose every source holds a script."""
    root = tmp_path_factory.mktemp("hostile")
    runs = root / "runs"
    for name, run in ((NAMES[0], NAMES[0]), (NAME, RUN)):
        write_notebook(root / "notebooks" / f"{name}.ipynb")
        hostile_copy(runs / "notebooks" / f"{run}.ipynb")
    write_records(root)
    for path in [root / "results" / "real_images.csv", *(root / "benchmarks").glob("*.csv")]:
        words = {"tile": NAME + "$\\frac$", "mtd": NAME, "quick": NAME, "a chip": NAME, "abc": NAME, "adeval": NAME + "$",
                 "100x256x256": NAME, "aupro": "<b>$\\frac$", "points": NAME, "gmm": NAME + "$\\a$"}
        pd.read_csv(path).replace(words).to_csv(path, index=False)
    speed = root / "benchmarks" / "results.csv"
    pd.read_csv(speed).assign(**{NAME: NAME}).to_csv(speed, index=False)
    (runs / "exhibits").mkdir()
    row = {"row": NAME, "column": NAME, "metric": NAME, "unit": NAME, "published": NAME, "measured": NAME, "std": NAME,
           "seeds": NAME, "verdict": "other", "why": NAME}
    for exhibit, rows in (("uniad2022.table_s2", [row]), ("uniad2022.table_s3", [{**row, "verdict": NAME}])):
        stored = {"context": f"data set {NAME}", "profile": "quick", "rows": rows}
        (runs / "exhibits" / f"{exhibit}.json").write_text(json.dumps(stored))
    outcome = {name: NAME if kind is str else kind(1) for name, kind in cluster.FIELDS.items()}
    (root / "results" / cluster.CLUSTER_TEST).write_text(json.dumps(outcome))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "notebook_folder", lambda: root / "notebooks")
        for module in (recording, pages, cluster):
            patch.setattr(module, "repository", lambda: root)
        patch.setattr(pages, "commit", lambda: NAME)
        yield write_report(root / "report", runs).parent


def harmful(page: str) -> list[str]:
    """Tags and attributes of a page that can run a script, or that a page of ours does not use."""
    found = []
    for tag, attributes in Tags(page).tags:
        names = {name for name in attributes if name.startswith("on") or name in ("srcdoc", "formaction", "action")}
        bad = [name for name in ("href", "src") if re.match(r"\s*(javascript|data:(?!image/))", attributes.get(name) or "")]
        if tag not in TAGS | MATHML | OURS or names or bad:
            found.append(f"<{tag} {attributes}>")
    return found


def browser(page: Path, *options: str) -> str:
    """What Chromium prints when it opens a page."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    words = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000",
             f"--user-data-dir={page.parent / '.profile'}", *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def ran_a_script(page: Path) -> bool:
    return re.search(r"<html[^>]* id=\"ran\"", browser(page, "--dump-dom")) is not None


def without_policy(page: Path, target: Path) -> Path:
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    assert "Content-Security-Policy" not in text
    target.write_text(text, encoding="utf-8")
    return target


# --- pages ------------------------------------------------------------------------------------------------------------------

def test_no_page_of_a_report_on_hostile_results_has_a_script_or_loads_anything(report):
    found = {path.relative_to(report).as_posix(): path.read_text(encoding="utf-8") for path in report.rglob("*.html")}
    assert {"index.html", "uniad2022.html", "record.html", "benchmarks.html", f"notebooks/{NAMES[0]}.html",
            f"notebooks/{RUN}.html"} <= set(found)
    for name, page in found.items():
        assert (harmful(page), outside_references(page)) == ([], []), name
    for name in ("index", "uniad2022", "record", "benchmarks"):
        assert NAME in Tags(found[f"{name}.html"]).text, f"{name} shows the name as it is"


def test_every_page_begins_with_the_policy_that_forbids_scripts_and_the_network(report):
    for path in report.rglob("*.html"):
        head = path.read_text(encoding="utf-8").partition("<title>")[0]
        assert ("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: 'self'; "
                "style-src 'unsafe-inline'; ") in head, path.name


def test_a_stored_comparison_with_an_unknown_verdict_is_damaged(report):
    page = (report / "uniad2022.html").read_text(encoding="utf-8")
    assert "exhibits/uniad2022.table_s3.json cannot be read: run its notebook again" in page


@pytest.mark.parametrize("content", ["[" * 100_000, '{"context": 1, "profile": "quick", "rows": 3}',
                                     '{"context": "", "profile": "quick", "rows": {"verdict": ["other"]}}',
                                     '{"context": "", "profile": "other", "rows": []}',
                                     json.dumps({"context": "", "profile": "quick", "rows": {
                                         name: ["other"] for name in comparison.SHOWN}}),
                                     '{"context": "", "profile": "paper", "rows": [{"row": "a"}]}'])
def test_a_comparison_with_other_content_is_damaged(tmp_path, content):
    (tmp_path / "exhibits").mkdir()
    (tmp_path / "exhibits" / "a.json").write_text(content)
    assert card.stored_comparison("a", tmp_path) is None


def test_a_table_of_a_comparison_escapes_every_cell():
    row = dict.fromkeys(("row", "column", "metric", "unit", "published", "measured", "std", "seeds", "why"), NAME)
    table = comparison_html(pd.DataFrame([{**row, "verdict": "other"}]))
    assert harmful(table) == [] and Tags(table).text.count(NAME) == 9


def test_a_reason_of_more_than_two_rows_is_written_once_below_the_table():
    fields = ("row", "column", "metric", "unit", "published", "measured", "std", "seeds")
    row = {**dict.fromkeys(fields, "x"), "verdict": "other"}
    rows = [{**row, "why": why} for why in ("rare", "", NAME, NAME, "twice", "twice", NAME)]
    table = comparison_html(pd.DataFrame(rows))
    text = Tags(table).text
    assert harmful(table) == [] and (text.count(NAME), text.count("rare"), text.count("twice")) == (1, 1, 2)
    assert table.count("other</b><sup>1</sup>") == 3 and table.endswith(f"<sup>1</sup> {escape(NAME)}</small></p>")


def test_the_index_links_to_the_page_of_a_notebook_with_any_name(report):
    links = [attributes.get("href") for tag, attributes in Tags((report / "index.html").read_text()).tags if tag == "a"]
    assert links.count(f"notebooks/{RUN.replace(' ', '%20')}.html") == 1


# --- notebooks --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("attack", ATTACKS)
def test_html_of_unknown_origin_keeps_no_script_and_no_outside_address(attack):
    page = only_safe(attack)
    assert (harmful(page), outside_references(page)) == ([], [])
    assert not re.search("position|secret", str(Tags(page).tags))


def test_pictures_tables_and_foldable_details_of_a_notebook_stay(tmp_path):
    table = ('<table border="1" class="dataframe"><tr><th rowspan="2" valign="top">a</th>'
             '<td style="color: #1b7837">b</td></tr></table>')
    source = "1. Why?\n<details><summary>Solution</summary>\n\nBecause.\n\n</details>\n\n2. How? [here](#a) $x$"
    path = executed_copy(tmp_path / "a.ipynb", [source], [
        {"output_type": "display_data", "metadata": {}, "data": {"text/html": table}},
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": PIXEL}}])
    to_html(path, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert re.search(r"<details><summary>Solution</summary>\s*<p>Because\.</p>\s*</details>", page)
    assert '<th rowspan="2" valign="top">' in page and '<td style="color: #1b7837">' in page and '<a href="#a">here</a>' in page
    assert f' src="data:image/png;base64,{PIXEL}"' in page and "<math" in page


def test_a_styled_table_of_pandas_keeps_its_colors_and_nothing_else_of_its_style():
    table = pd.DataFrame({"a": [1.0, 2.0]}).style.background_gradient().format(precision=1).to_html()
    styles, rest = table_styles(table + "<style>body {color: red} #T_x {position: fixed; color: blue} @import 'a';</style>")
    assert styles.count("background-color") == 2 and "#T_x { color: blue }" in styles
    assert not re.search("body|position|import", styles) and "<style" not in rest and 'id="T_' in only_safe(rest)


@pytest.mark.parametrize("style", [
    "<style>.dataframe {color: red}</style", "<style>#T_a[title='\\3c/style>\\3cp>'] {color: red}</style>",
    "<style>#T_a {color: url(//e.org)} #T_a {background: u\\72l(//e.org)}</style>", "<style>#T_a, body {color: red}</style>",
    "<style>@media all {#T_a {color: red}}</style>"])
def test_a_style_that_reaches_beyond_its_table_is_left_out(style):
    styles, rest = table_styles(style)
    assert "e.org" not in styles and "body" not in styles and "<p>" not in styles and harmful(styles + only_safe(rest)) == []


@pytest.mark.parametrize(("formula", "shown"), [
    (rf"\text{{</mtext>{DENSE}}}", "mtext"), (r"\text{a < b & c}", "a &lt; b &amp; c"), ("a < b", "<mo>&lt;</mo>"),
    (rf"\href{{javascript:{MARK}}}{{x}}", "<mi>x</mi>"), (r"\style{position:fixed}{x}", "<mi>x</mi>"),
    ("a_b_c", "<code>a_b_c</code>")])
def test_a_formula_is_only_mathml_or_its_own_source(formula, shown):
    found = mathml(formula, "inline")
    assert shown in found.replace("\N{NO-BREAK SPACE}", " ") and harmful(found) == []
    assert not {"href", "style", "class"} & {name for _, attributes in Tags(found).tags for name in attributes}
    assert harmful(with_mathml(f"${formula}$")) == []


def test_an_executed_copy_of_which_no_page_can_be_made_is_listed_as_failed(tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks" / "a.ipynb")
    monkeypatch.setattr(notebook, "notebook_folder", lambda: tmp_path / "notebooks")
    path = executed_copy(tmp_path / "runs" / "notebooks" / "a.ipynb", [], [{"output_type": "display_data"}])
    path.with_suffix(".json").write_text('{"seconds": 1}')
    page = Tags(write_report(tmp_path / "report", tmp_path / "runs").read_text()).text
    assert re.search(r"a\s*failed\s*\S*a\.ipynb cannot be shown as a page \(\w+\): run it again", page)


# --- in a browser -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", ["index", "uniad2022", "record", "benchmarks", f"notebooks/{NAMES[0]}"])
def test_in_a_browser_no_page_runs_a_script_even_without_the_policy(report, tmp_path, page):
    assert not ran_a_script(without_policy(report / f"{page}.html", tmp_path / "page.html"))


def test_in_a_browser_the_policy_alone_stops_every_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(executed, "only_safe", lambda page: page)
    to_html(hostile_copy(tmp_path / "a.ipynb"), tmp_path / "a.html")
    assert not ran_a_script(tmp_path / "a.html")
    assert ran_a_script(without_policy(tmp_path / "a.html", tmp_path / "b.html")), "the check can find a script"


def test_in_a_browser_the_policy_shows_pictures_of_the_page_and_beside_it(tmp_path):
    Image.new("RGB", (100, 100), "red").save(tmp_path / "a.png")
    Image.new("RGB", (100, 100), "blue").save(tmp_path / "b.png")
    inside = base64.b64encode((tmp_path / "b.png").read_bytes()).decode()
    policy = Path(pages.__file__).with_name("templates") / "policy.html"
    (tmp_path / "a.html").write_text(f"<!doctype html><head>{policy.read_text()}<style>* {{margin: 0}}</style></head><body>"
                                     f"<img src=a.png><img src=data:image/png;base64,{inside}>")
    browser(tmp_path / "a.html", f"--screenshot={tmp_path / 'shot.png'}", "--window-size=400,400")
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    assert (shot.getpixel((50, 50)), shot.getpixel((150, 50))) == ((255, 0, 0), (0, 0, 255))
