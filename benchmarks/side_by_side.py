"""What the benchmarks share: timing in turns, and one csv of the last figures.

A row of the same benchmark, peer, size and machine replaces the old one; any other row stays.
"""

from __future__ import annotations

import csv
import io
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adcore.errors import StoreError
from adcore.experiments.provenance import commit
from adcore.experiments.provenance import machine as machine_of
from adcore.files import write_text

COLUMNS = ["benchmark", "ours_s", "peer", "peer_s", "ratio", "rounds", "size", "machine", "versions", "commit"]
KEY = ["benchmark", "peer", "size", "machine"]
RESULTS = Path(__file__).with_name("results.csv")


def machine() -> str:
    """The processor, and how many threads torch uses of it."""
    return f"{machine_of(torch.device('cpu'))}, {torch.get_num_threads()} threads"


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of both, timed in turns so that a slow phase of the machine hits both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def row(benchmark: str, peer: str, ours_s: float, peer_s: float, rounds: int, size: str, packages: list[str]) -> dict[str, str]:
    """One line of the csv; the ratio is the peer's time over ours."""
    used = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {"benchmark": benchmark, "ours_s": f"{ours_s:.4f}", "peer": peer, "peer_s": f"{peer_s:.4f}",
            "ratio": f"{peer_s / ours_s:.2f}", "rounds": str(rounds), "size": size, "machine": machine(),
            "versions": " ".join(used), "commit": commit()}


def merge(path: Path, rows: list[dict[str, str]]) -> None:
    """Put rows into the csv at `path`, sorted by key, written whole.

    Raises:
        StoreError: the file there has other columns.
    """
    kept: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            kept = list(reader)
            if reader.fieldnames != COLUMNS:
                raise StoreError(f"{path} has columns {reader.fieldnames}, expected {COLUMNS}: name another file (--out)")
    merged = {tuple(line[name] for name in KEY): line for line in [*kept, *rows]}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged[key] for key in sorted(merged))
    write_text(path, text.getvalue())
