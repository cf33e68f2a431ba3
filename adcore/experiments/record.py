"""Numbers on record: an extract of the store as a csv with provenance, for results/. Never typed by hand."""

from __future__ import annotations

from pathlib import Path

from adcore.errors import StoreError
from adcore.experiments.store import load_results
from adcore.files import write_text

COLUMNS = ["method", "dataset", "category", "profile", "settings", "seed", "metric", "value", "seconds", "peak_bytes", "device",
           "machine", "commit", "data", "weights", "finished", "key"]


def export_results(dataset: str | None = None, profile: str | None = None, to: Path | None = None,
                   out: str | Path | None = None) -> str:
    """Write the store's numbers, some or all, to a csv; without `to`, return the csv itself.

    Raises:
        StoreError: nothing to export, or the file cannot be written.
    """
    frame = load_results(out)
    for column, wanted in (("dataset", dataset), ("profile", profile)):
        if wanted is not None and not frame.empty:
            frame = frame[frame[column] == wanted]
    if frame.empty:
        raise StoreError(f"the store has no result with dataset={dataset or 'any'} and profile={profile or 'any'}")
    frame = frame[COLUMNS].sort_values(["method", "dataset", "category", "settings", "seed", "metric"], kind="stable")
    text = frame.to_csv(index=False, float_format="%.6f")
    if to is None:
        return text
    write_text(to, text)
    return f"{to}: {len(frame)} numbers of {frame['key'].nunique()} experiments"
