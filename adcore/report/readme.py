"""The table of results/README.md, written from the csv files beside it between two markers, and the figures of the README."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from adcore import figures
from adcore.data import load_dataset
from adcore.errors import AdcoreError
from adcore.experiments import grid, run
from adcore.experiments.intervals import auroc_intervals, recorded_scores
from adcore.experiments.networks import trained
from adcore.experiments.profiles import data_options
from adcore.experiments.record import METRICS, records, summarize
from adcore.files import atomic, write_text
from adcore.models import METHODS, PatchCore
from adcore.papers.experiments import PROTOCOL
from adcore.paths import repository

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def measured_table() -> str:
    """Markdown of what results/real_images.csv has on record."""
    frames = [summarize(record.frame) for record in records() if record.name == "real_images"]
    columns = ["method", "data set", "category", *METRICS.values(), "seeds", "minutes", "peak GB", "commit"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for frame in frames:
        frame = frame.assign(minutes=[f"{float(seconds) / 60:.0f}" for seconds in frame["seconds"]])
        lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in frame.to_dict("records")]
    return "\n".join(lines)


def rendered(text: str) -> str:
    """The page's text with a fresh table.

    Raises:
        AdcoreError: the markers are not there.
    """
    if BEGIN not in text or END not in text:
        raise AdcoreError(f"results/README.md has no place for the measured numbers: expected {BEGIN} and {END}")
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{measured_table()}\n{END}", text, flags=re.DOTALL)


def rewrite_readme() -> None:
    """Write the table of results/README.md and draw the README's figures.

    Raises:
        AdcoreError: not in a checkout, or the page has no place for the table.
    """
    root = repository()
    if root is None:
        raise AdcoreError("the README is part of the checkout: run this from there")
    page = root / "results" / "README.md"
    write_text(page, rendered(page.read_text(encoding="utf-8")))
    for name, figure in (("heat_maps", heat_map_figure), ("one_protocol", protocol_figure)):
        with atomic(root / "results" / f"{name}.png") as temporary:
            figure().savefig(temporary, format="png", dpi=110)


def heat_map_figure() -> Figure:
    """PatchCore (quick profile, seed 0; computed if the store does not have it) and the trained UniAD, on the embedded data."""
    figures.use_style()
    categories = ["brick", "capsule", "gear", "chip"]
    dataset = load_dataset("mini", categories, **data_options("mini", "quick"))
    patchcore = run(grid(PatchCore, categories=categories))
    return figures.stored_maps(dataset, {"PatchCore": patchcore, "UniAD": trained("uniad").maps(dataset.test)}, columns=12)


def protocol_figure() -> Figure:
    """What `02_one_protocol` has on record: image AUROC of each method on four real categories, with intervals and seeds."""
    figures.use_style()
    intervals = auroc_intervals(recorded_scores("one_protocol"))
    labeled = [name for name in PROTOCOL if hasattr(METHODS[name].Config(), "anomalies")]
    each = intervals[intervals["category"] != "mean"]
    return figures.method_intervals(each, "image AUROC, %", labeled, "also some labeled defects")
