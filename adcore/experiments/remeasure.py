"""Measure a csv of results/ again with today's code, at the settings that it records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from adcore.experiments.record import exported, record_rows, recorded
from adcore.experiments.runner import run
from adcore.files import write_text
from adcore.paths import repository


def remeasure(name: str, only: Mapping[str, str] | None = None, *, out: str | Path | None = None, device: str = "auto",
              progress: bool | None = None) -> str:
    """Run the experiments of results/NAME.csv and replace their rows; the other rows are kept. Returns a line about it.

    only  which ones, by column: {"method": "dra", "category": "screw"}; all by default

    The store keeps each finished experiment, so an interrupted call continues where it stopped. The csv is written when all
    chosen experiments are finished.

    Raises:
        StoreError: there is no such record, column or row.
        AdcoreError: see `run`.
    """
    only = dict(only or {})
    replaced = set(record_rows(name, only)["key"])
    experiments = [result.experiment for result in recorded(name, **only).results]
    made = run(experiments, out=out, device=device, progress=progress).frame
    rows = record_rows(name, {})                        # read again: another process may have measured other rows
    kept = rows[~rows["key"].isin(replaced)]
    path = (repository() or Path.cwd()) / "results" / f"{name}.csv"
    write_text(path, exported(pd.concat([kept, made[made["value"].notna()]])))
    return f"{path.name}: {len(experiments)} of {rows['key'].nunique()} experiments measured again"
