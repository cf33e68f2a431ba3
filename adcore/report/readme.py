"""The README's table of measured numbers, rendered from results/ between two markers; a test holds the two together."""

from __future__ import annotations

import re
from pathlib import Path

from adcore.errors import AdcoreError
from adcore.experiments.record import METRICS, records, summarise
from adcore.files import write_text
from adcore.paths import repository

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def measured_table() -> str:
    """Markdown of what results/real_images.csv has on record."""
    frames = [summarise(record.frame) for record in records() if record.name == "real_images"]
    columns = ["method", "data set", "category", *METRICS.values(), "seeds", "seconds", "peak GB", "commit"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |"
              for frame in frames for row in frame.to_dict("records")]
    return "\n".join(lines)


def rendered(text: str) -> str:
    """The README's text with its table rendered anew.

    Raises:
        AdcoreError: the markers are not there.
    """
    if BEGIN not in text or END not in text:
        raise AdcoreError(f"README.md has no place for the measured numbers: expected {BEGIN} and {END}")
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{measured_table()}\n{END}", text, flags=re.DOTALL)


def rewrite_readme(path: Path | None = None) -> None:
    """Render the table of the checkout's README in place."""
    root = repository()
    if path is None and root is None:
        raise AdcoreError("the README is part of the checkout: run this from there")
    path = path or root / "README.md"  # type: ignore[operator]
    write_text(path, rendered(path.read_text(encoding="utf-8")))
