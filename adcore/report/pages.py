"""The pages of the report: score card, one page per paper, numbers on record, benchmarks, executed notebooks."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from adcore.data.manifest import load_manifest
from adcore.errors import StoreError
from adcore.experiments.departures import agreement, departures, recorded_results
from adcore.experiments.provenance import commit
from adcore.experiments.record import METRICS, Record, records, summarize
from adcore.experiments.store import Result
from adcore.figures.tables import comparison_html, published_html
from adcore.papers import bibliography, errata, exhibits, glossary, papers
from adcore.papers.errata import KINDS
from adcore.paths import repository, runs_folder
from adcore.report.card import NotebookRun, cells, count_exhibits, judged, notebook_runs, stored_comparison
from adcore.report.charts import benchmark_chart, growth_chart, record_chart, whole_chart
from adcore.report.cluster import cluster_test
from adcore.report.executed import NotebookError, markdown_to_html, to_html
from adcore.report.safe import environment


def write_report(folder: Path | None = None, out: str | Path | None = None) -> Path:
    """Write the report and return the path of its index page. An existing report is replaced once the new one is complete.

    Raises:
        StoreError: the folder cannot be written, or contains other files than a report.
    """
    root = runs_folder(out)
    folder = (folder or (repository() or Path.cwd()) / "report").absolute()
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(folder):
        raise StoreError(f"{folder} contains other files than a report: choose another folder with --to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder.parent) as name:
            fresh = Path(name) / "report"
            fresh.mkdir()
            _write(fresh, root)
            if folder.exists():
                shutil.rmtree(folder)
            fresh.replace(folder)
    except OSError as error:
        raise StoreError(f"cannot write the report to {folder}: {error.strerror or error}; choose another folder with "
                         f"--to") from error
    return folder / "index.html"


def _is_report(folder: Path) -> bool:
    index = folder / "index.html"
    return index.is_file() and "<title>adcore: score card</title>" in index.read_text(encoding="utf-8", errors="replace")


def _write(folder: Path, root: Path) -> None:
    templates = environment()
    runs = notebook_runs(root)
    pages = _notebook_pages(runs, folder)
    # File and title of each page, for the navigation bar.
    links = [("index.html", "Score card"), *[(f"{paper}.html", paper) for paper in papers().index],
             ("errata.html", "Errata"), ("departures.html", "Departures"), ("record.html", "Real images"),
             ("benchmarks.html", "Speed"), ("glossary.html", "Glossary"), ("bibliography.html", "Bibliography")]
    shared: dict[str, Any] = {"links": links, "commit": commit() or "unknown"}

    def page(template: str, name: str, **values: Any) -> None:
        text = templates.get_template(template).render(**shared, here=name, **values)
        (folder / name).write_text(text, encoding="utf-8")

    measured, recorded = records(), recorded_results()
    tables = [{"name": record.name, "about": record.about, "html": Markup(record.html), "chart": record_chart(record.frame)}
              for record in measured]
    page("index.html", "index.html", card=count_exhibits(root), papers=papers().to_dict("index"), runs=runs, pages=pages,
         headline=headline(measured), cluster=cluster_test())
    for paper, described in papers().to_dict("index").items():
        page("paper.html", f"{paper}.html", paper=paper, described=described, pages=pages,
             exhibits=[_exhibit(name, row, root, folder, recorded) for name, row in exhibits().iterrows()
                       if row.paper == paper])
    page("errata.html", "errata.html", papers=papers().to_dict("index"), sections=errata_sections(), kinds=KINDS, pages=pages)
    page("departures.html", "departures.html", sections=departing_exhibits(recorded), metrics=METRICS)
    page("record.html", "record.html", tables=tables)
    page("glossary.html", "glossary.html", terms=glossary().to_dict("index"), pages=pages)
    page("bibliography.html", "bibliography.html", papers=papers().to_dict("index"), works=bibliography().to_dict("records"),
         datasets=[entry for entry in load_manifest().values() if entry.kind == "dataset" and entry.citation != "adcore"])
    frames = {name: benchmarks_on_record(name) for name in ("results", "whole", "paths", "growth", "large", "kcenter_memory")}
    speed = {name: None if frame is None or frame.empty else _table(frame) for name, frame in frames.items()}
    page("benchmarks.html", "benchmarks.html", chart=benchmark_chart(frames["results"]),
         whole_chart=whole_chart(frames["whole"]), growth_chart=growth_chart(frames["growth"]), **speed)


def _notebook_pages(runs: list[NotebookRun], folder: Path) -> dict[str, str]:
    """Write the executed notebooks as pages: name of the run -> address below the report's folder.

    A run whose page cannot be made is marked as failed in `runs`.
    """
    pages = {}
    targets = {run.name: folder / "notebooks" / f"{run.name}.html" for run in runs if run.executed is not None}
    for number, run in enumerate(runs):
        if run.executed is not None:
            target = targets[run.name]
            try:
                to_html(run.executed, target, targets.values())
                pages[run.name] = quote(target.relative_to(folder).as_posix(), safe="/@")
            except NotebookError as error:
                runs[number] = replace(run, state="failed", executed=None, error=str(error))
    return pages


def _exhibit(name: str, row: Any, root: Path, folder: Path, recorded: Sequence[Result]) -> dict[str, Any]:
    """The values of one exhibit for the template paper.html; copies its figure into the report."""
    found, printed = stored_comparison(name, root), cells(name)
    damaged = found is None and (root / "exhibits" / f"{name}.json").is_file()
    picture = root / "exhibits" / f"{name}.png"
    if picture.is_file():
        (folder / "exhibits").mkdir(exist_ok=True)
        shutil.copyfile(picture, folder / "exhibits" / picture.name)
    table: Markup | None = None
    comparison = judged(name, root, recorded)
    departs = 0 if comparison is None else comparison.counts()["departs"]
    if found is not None:
        state, context = {"paper": "regenerated"}.get(found["profile"], found["profile"]), found["context"]
    else:
        state, context = ("planned" if row.state == "planned" else "not run yet"), ""
    if comparison is not None and ((found and found["rows"]) or departs):
        table = Markup(comparison_html(comparison.frame))
    elif printed is not None:
        table = Markup(published_html(printed))
    return {"id": name, "number": row.number, "title": row.title, "caption": row.caption, "notebook": row.notebook,
            "needs": ", ".join(filter(None, [row.needs_data.replace(";", ", "), row.needs_weights.replace(";", ", ")])),
            "note": row.note, "state": state, "table": table, "context": context,
            "problem": f"exhibits/{name}.json cannot be read: run its notebook again" if damaged else "",
            "cells": 0 if printed is None else len(printed), "departs": departs,
            "picture": f"exhibits/{picture.name}" if picture.is_file() else None}


def departing_exhibits(recorded: Sequence[Result]) -> list[dict[str, Any]]:
    """For each exhibit with cells that depart: how they go with the printed ones, and the cells."""
    found = []
    for name, row in exhibits().iterrows():
        departing = departures(name, recorded) if cells(name) is not None else pd.DataFrame()
        if len(departing):
            found.append({"id": name, "paper": row.paper, "number": row.number, "title": row.title,
                          "agreement": agreement(departing).to_dict("records"),
                          "sources": sorted(set("; ".join(departing["source"]).split("; "))),
                          "numbers": len(departing), "schedule": int(departing["schedule"].sum()),
                          "table": Markup(comparison_html(departing))})
    return found


def errata_sections() -> dict[str, list[dict[str, str]]]:
    """The rows of errata.csv by paper, their texts as HTML, each with a name to link to."""
    sections: dict[str, list[dict[str, str]]] = {}
    texts = ("place", "printed", "chosen", "shown")
    for number, row in enumerate(errata().to_dict("records")):
        converted = {name: markdown_to_html(row[name]) for name in texts}
        slug = re.sub(r"\W+", "-", f"{row['notebook']} {row['place']}").strip("-").lower()
        sections.setdefault(row["paper"], []).append({**row, **converted, "id": slug, "number": str(number)})
    return {paper: sections[paper] for paper in (*papers().index, "all") if paper in sections}


def headline(measured: list[Record]) -> Markup | None:
    """The record 'real_images' as an HTML table for the index page, or None when there is no such record."""
    columns = ["method", "data set", "category", *METRICS.values(), "seeds", "commit"]
    frames = [record.frame for record in measured if record.name == "real_images"]
    return _table(summarize(frames[0])[columns]) if frames else None


def _table(frame: pd.DataFrame) -> Markup:
    """A table whose names and cells pandas has escaped."""
    return Markup(frame.to_html(index=False, border=0, na_rep=""))


def benchmarks_on_record(name: str) -> pd.DataFrame | None:
    """The table benchmarks/<name>.csv, or None when there is no such file."""
    path = (repository() or Path.cwd()) / "benchmarks" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None
