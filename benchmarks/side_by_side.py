"""Shared by the benchmarks: compare a peer's result with ours, time both in turns, and write the latest figures to one csv.

A new row replaces the old row of the same benchmark, peer, size and machine; all other rows are kept.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adcore.errors import AdcoreError, StoreError
from adcore.experiments.provenance import commit
from adcore.experiments.provenance import machine as machine_of
from adcore.files import write_text

COLUMNS = ["benchmark", "ours_s", "peer", "peer_s", "ratio", "rounds", "size", "machine", "versions", "commit"]
KEY = ["benchmark", "peer", "size", "machine"]
RESULTS = Path(__file__).with_name("results.csv")
# Seconds of rest before each turn. Idle threads of numpy, MKL and OpenMP wait for more work in a loop, on the cores that the
# next call needs: within 0.07 s after a peer's call, ours took twice as long.
REST = 0.25

Setting = Callable[[], contextlib.AbstractContextManager[Any]]


class DiffersError(Exception):
    """A peer computes something different."""


@dataclass(frozen=True)
class Peer:
    """Other code for the same computation.

    name      name in the csv
    prepare   imports and converts the input, which is not timed; returns the call that is timed
    packages  packages whose versions are in the csv
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    packages: tuple[str, ...] = ()


def race(benchmark: str, size: str, ours: Callable[[], Any], peers: Sequence[Peer],
         disagreement: Callable[[Any, Any], str | None], rounds: int, *, setting: Setting | None = None
         ) -> list[dict[str, str]]:
    """Rows of the csv, one per installed peer. `disagreement(ours, theirs)` returns what differs in words, or None.

    setting  see `alternate`

    Raises:
        DiffersError: a peer's result disagrees with ours.
    """
    result, rows = ours(), []
    for peer in peers:
        try:
            theirs = peer.prepare()
        except ImportError as error:
            print(f"{peer.name}: skipped, not installed here ({error})")
            continue
        difference = disagreement(result, theirs())
        if difference:
            raise DiffersError(f"{benchmark}, {size}: {peer.name} {difference}; not timed")
        ours_s, peer_s = alternate(ours, theirs, rounds, setting=setting)
        print(f"{benchmark}, {size}: {peer.name} {peer_s:.3f} s, adcore {ours_s:.3f} s, ratio {peer_s / ours_s:.1f}",
              flush=True)
        rows.append(row(benchmark, peer.name, ours_s, peer_s, rounds, size, ["torch", *peer.packages]))
    return rows


def status_of(main: Callable[[], int]) -> int:
    """The exit status of a benchmark: 1 if a peer differs. 2 means that it cannot run on this machine."""
    try:
        return main()
    except (AdcoreError, DiffersError) as error:
        print(error, file=sys.stderr)
        return 1


def machine() -> str:
    """The processor, and the number of threads that torch uses."""
    return f"{machine_of(torch.device('cpu'))}, {torch.get_num_threads()} threads"


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, *, setting: Setting | None = None
              ) -> tuple[float, float]:
    """Median seconds of both, timed in turns with a rest between, so that a slow phase of the machine affects both.

    setting  for calls that follow one another in use, such as training steps: the context in which the package makes our
             calls. Each timed call then follows an untimed one of the same code, whose threads and memory are ready
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken, around in zip((ours, theirs), seconds, (setting, contextlib.nullcontext), strict=True):
            time.sleep(REST)
            with (around or contextlib.nullcontext)():
                if setting is not None:
                    call()
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peak_rise(call: Callable[[], Any]) -> float | None:
    """Largest rise of resident memory during a call, in bytes; None on systems without /proc.

    A lower bound: free memory of the process is used first, and only glibc can be told to return it to the system.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None

    def kilobytes(name: str) -> int:
        return int(next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name)).split()[1])
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes("VmRSS")
    forget.write_text("5", encoding="utf-8")              # reset the peak
    call()
    return 1024.0 * (kilobytes("VmHWM") - before)


def row(benchmark: str, peer: str, ours_s: float, peer_s: float, rounds: int, size: str, packages: list[str]) -> dict[str, str]:
    """One row of the csv; the ratio is the peer's time divided by ours."""
    used = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {"benchmark": benchmark, "ours_s": f"{ours_s:.4f}", "peer": peer, "peer_s": f"{peer_s:.4f}",
            "ratio": f"{peer_s / ours_s:.2f}", "rounds": str(rounds), "size": size, "machine": machine(),
            "versions": " ".join(used), "commit": commit()}


def merge(path: Path, rows: list[dict[str, str]]) -> None:
    """Merge rows into the csv at `path`, sorted by key; the file is replaced as a whole.

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


def kept(path: Path, measured: Collection[str], columns: Collection[str]) -> list[list[str]]:
    """Rows of a csv of cases that are not measured now; empty in the last columns if the csv is from before these."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    missing = [""] * (len(columns) - len(head))
    return [line + missing for line in lines if line and line[0] not in measured]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a csv atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())
