"""What the benchmarks share: a peer held to our values and then timed in turns, and one csv of the last figures.

A row of the same benchmark, peer, size and machine replaces the old one; any other row stays.
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
from collections.abc import Callable, Sequence
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
# Seconds before each turn. Idle threads of numpy's, MKL's and OpenMP's products wait for more work in a loop, on the cores that
# the other's threads need: ours took twice as long within 0.07 s of a peer's call.
REST = 0.25

Setting = Callable[[], contextlib.AbstractContextManager[Any]]


class DiffersError(Exception):
    """A peer computes something else than we do."""


@dataclass(frozen=True)
class Peer:
    """Another's code for the same computation.

    name      as the csv shows it
    prepare   what is not timed: imports and its own form of the input; returns the call that is timed
    packages  whose versions the csv shows
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    packages: tuple[str, ...] = ()


def race(benchmark: str, size: str, ours: Callable[[], Any], peers: Sequence[Peer],
         disagreement: Callable[[Any, Any], str | None], rounds: int, *, setting: Setting | None = None
         ) -> list[dict[str, str]]:
    """Rows of the csv, one a peer that is installed. `disagreement(ours, theirs)` says what differs, or None.

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
    """The exit status of a benchmark: 1 where a peer differs. 2 is kept for a machine on which it cannot run."""
    try:
        return main()
    except (AdcoreError, DiffersError) as error:
        print(error, file=sys.stderr)
        return 1


def machine() -> str:
    """The processor, and how many threads torch uses of it."""
    return f"{machine_of(torch.device('cpu'))}, {torch.get_num_threads()} threads"


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, *, setting: Setting | None = None
              ) -> tuple[float, float]:
    """Median seconds of both, timed in turns so that a slow phase of the machine hits both, with a rest between.

    setting  for calls that come one after another in use, such as the steps of a training: the block in which the package
             makes ours. Each timed call then follows an untimed one of the same code, which has woken its threads and got
             its memory
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
    """Bytes by which resident memory rose at most during a call; None where there is no /proc to read it from.

    A lower bound: memory that the process holds free is used first, and only glibc can be told to give it back.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None

    def kilobytes(name: str) -> int:
        return int(next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name)).split()[1])
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes("VmRSS")
    forget.write_text("5", encoding="utf-8")              # forget the peak so far
    call()
    return 1024.0 * (kilobytes("VmHWM") - before)


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
