"""The table of `bench_kernels.py` as a csv, within some minutes: one row per kernel, written as soon as it is measured.

    python benchmarks/bench_gpu_kernels.py --minutes 1.5 --out kernels.csv

For a GPU that is borrowed for minutes. Times are medians of single calls on the GPU's own clock, from a cold cache, without the
rests between calls that CPUs need. A kernel whose result differs from torch's, or that fails, gets a row that says so, and the
next follows. `--device cpu` measures tiny sizes, to try the script; with TRITON_INTERPRET=1 in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_kernels import COLUMNS, Case, as_table, cases, difference, line

from adcore.experiments.provenance import machine
from adcore.files import write_text
from adcore.kernels import kernels

TINY = {"batch": 1, "grid": 8, "queries": 40, "bank": 70, "points": 200, "side": 16}
LOOPS = ("kcenter",)  # torch.compile would unroll its thousands of picks


def seconds_of(call: Callable[[], Any], device: torch.device, most: float = 2.0, rounds: int = 20) -> float:
    """Median seconds of a call: 2 to `rounds` calls, as many as take about `most` seconds.

    On a GPU, a large buffer is written before each call. It empties the GPU's cache, and while it is written Python can prepare
    the call, so that the time is that of the GPU and not of Python.
    """
    call()
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    rounds = max(2, min(rounds, int(most / (time.perf_counter() - begin))))
    if device.type != "cuda":
        return statistics.median(_once(call) for _ in range(rounds))
    buffer = torch.empty(2**28, dtype=torch.int32, device=device)  # 1 GiB
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in pairs:
        buffer.zero_()
        start.record()
        call()
        stop.record()
    synchronize(device)
    return statistics.median(start.elapsed_time(stop) / 1e3 for start, stop in pairs)


def _once(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits(device: torch.device) -> tuple[float, dict[torch.dtype, float]]:
    """Bytes per second of a large copy, read and write, and operations per second of a large product, by dtype."""
    count, side = (2**28, 8192) if device.type == "cuda" else (2**20, 256)
    source = torch.zeros(count, device=device)
    to = torch.empty_like(source)
    bandwidth = 2 * 4 * count / seconds_of(lambda: to.copy_(source), device)
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device).to(dtype)
        speeds[dtype] = 2 * side**3 / seconds_of(partial(torch.matmul, a, a), device)
    return bandwidth, speeds


def selected(choice: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with the kernels set to `choice`."""
    def with_choice() -> Any:
        with kernels(choice):
            return call()
    return with_choice


def measured(case: Case, device: torch.device, bandwidth: float, speeds: dict[torch.dtype, float],
             compiling: bool) -> tuple[str, ...]:
    """The row of a kernel; in place of a verdict, why it has none."""
    blank = (case.name, case.size, *[""] * (len(COLUMNS) - 3))
    try:
        ours, eager = selected("triton", case.call), selected("torch", case.call)
        error = difference(ours(), eager())
        if not error <= case.tolerance:
            return (*blank, f"differs from torch by {error:g}: not timed")
        seconds, eager_seconds = seconds_of(ours, device), seconds_of(eager, device)
    except Exception as problem:  # of a compiler or a driver: the other kernels are measured all the same
        return (*blank, f"failed: {type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}")
    compiled = None
    if compiling and case.name not in LOOPS:
        try:
            compiled = seconds_of(selected("torch", torch.compile(case.call)), device)
        except Exception as problem:
            print(f"{case.name}, {case.size}: torch.compile not timed ({type(problem).__name__})", flush=True)
    return line(case, seconds, eager_seconds, compiled, case.cost.limit(bandwidth, speeds[case.dtype]))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3, help="no kernel is begun after so many minutes (default 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu_kernels.csv"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("the Triton kernels are timed on a GPU, and torch finds none here: run this where torch.cuda.is_available()",
              file=sys.stderr)
        return 2
    end, device = time.monotonic() + 60 * arguments.minutes, torch.device(arguments.device)
    bandwidth, speeds = limits(device)
    print(f"{machine(device)}: {bandwidth / 1e9:.0f} GB/s, " + ", ".join(
        f"{dtype} {speed / 1e12:.2f} Tflop/s" for dtype, speed in speeds.items()), flush=True)
    rows: list[tuple[str, ...]] = []
    found = cases(device, **(TINY if device.type == "cpu" else {}))
    for case in found:
        if time.monotonic() > end:
            print(f"the time is up: {len(found) - len(rows)} of {len(found)} kernels are not measured")
            break
        rows.append(measured(case, device, bandwidth, speeds, compiling=device.type == "cuda"))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*COLUMNS, "machine", "torch", "GB/s"))
        writer.writerows((*row, machine(device), torch.__version__, f"{bandwidth / 1e9:.0f}") for row in rows)
        write_text(arguments.out, text.getvalue())
        print(as_table(rows[-1:]), flush=True)
    return int(any("failed" in row[-1] or "differs" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
