"""Time adcore.metrics.pixel_scores (AUROC, AP and AUPRO, exact) against other libraries on one synthetic data set.

    python benchmarks/bench_metrics.py --maps 100 --size 256 --rounds 5

Every peer is first held to our values, then ours and the peer's are timed in turns, in one process, on the same arrays.
A library that is not installed is skipped (`pip install adcore[bench]` brings them). A peer that computes fewer metrics
is still timed against all three of ours; its name says what it computes. Times are medians in seconds, the ratio is
theirs over ours. Rows of the same benchmark, peer, size and machine are replaced in the csv, others are kept.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from adcore.errors import AdcoreError, StoreError
from adcore.files import write_text
from adcore.metrics import Scores, pixel_scores

COLUMNS = ["benchmark", "ours_s", "peer", "peer_s", "ratio", "rounds", "size", "machine", "versions"]
KEY = ["benchmark", "peer", "size", "machine"]

Array = npt.NDArray[np.generic]
Peer = Callable[[], dict[str, float]]


def synthetic(count: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Masks (B, H, W) bool and maps (B, H, W) float32: two discs in six images of ten, 5 % of all pixels, some overlap."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), bool)
    y, x = np.mgrid[:size, :size]
    radius = size * (0.05 / 0.6 / 2 / np.pi) ** 0.5
    for index in range(count * 6 // 10):
        for centre in rng.uniform(radius, size - radius, (2, 2)):
            masks[index] |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius ** 2
    maps = rng.normal(size=masks.shape).astype(np.float32)
    maps += 2 * masks
    return masks, maps


def scikit_learn(masks: Array, maps: Array) -> Peer:
    from sklearn.metrics import average_precision_score, roc_auc_score
    return lambda: {"auroc": roc_auc_score(masks.ravel(), maps.ravel()),
                    "ap": average_precision_score(masks.ravel(), maps.ravel())}


def torchmetrics(masks: Array, maps: Array) -> Peer:
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision
    target, scores = torch.from_numpy(masks).ravel().int(), torch.from_numpy(maps).ravel()
    return lambda: {"auroc": float(binary_auroc(scores, target)), "ap": float(binary_average_precision(scores, target))}


def anomalib(masks: Array, maps: Array) -> Peer:
    import torch
    from anomalib.metrics import AUPRO
    batch = SimpleNamespace(anomaly_map=torch.from_numpy(maps), gt_mask=torch.from_numpy(masks).int())

    def run() -> dict[str, float]:
        metric = AUPRO(fields=["anomaly_map", "gt_mask"])
        metric.update(batch)
        return {"aupro": float(metric.compute())}
    return run


def adeval(masks: Array, maps: Array) -> Peer:
    vars(np).setdefault("trapz", np.trapezoid)         # adeval 1.1.0 calls a name that numpy 2.4 dropped
    from adeval import auroc_aupr_aupro
    targets = masks.astype(np.uint8)
    return lambda: dict(zip(("auroc", "ap", "aupro"), auroc_aupr_aupro(maps, targets), strict=True))


PEERS: dict[str, tuple[Callable[[Array, Array], Peer], str, float]] = {
    "scikit-learn": (scikit_learn, "AUROC, AP", 1e-9),
    "torchmetrics": (torchmetrics, "AUROC, AP", 1e-3),         # sums in float32
    "anomalib": (anomalib, "AUPRO", 1e-3),                     # sums in float32
    "adeval": (adeval, "AUROC, AP, AUPRO in 1000 bins", 1e-3),
}
"""Distribution -> (how to set it up, what it computes, how far its values may lie from ours)."""


def machine() -> str:
    """CPU model and the cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor() or platform.machine()}, {cores} cores"


def disagreement(ours: Scores, theirs: dict[str, float], tolerance: float) -> str | None:
    """The first metric that differs by more than the tolerance, in words."""
    for name, value in theirs.items():
        own = getattr(ours, name)
        if not abs(own - value) <= tolerance:
            return f"{name} is {value:.9f} there and {own:.9f} here, over the tolerance of {tolerance:g}"
    return None


def merge(path: Path, rows: list[dict[str, str]]) -> None:
    """Write `rows` into the csv at `path`: a row of the same key is replaced, any other kept, all sorted by key."""
    kept: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            kept = list(reader)
            if reader.fieldnames != COLUMNS:
                raise StoreError(f"{path} has columns {reader.fieldnames}, expected {COLUMNS}: name another file (--out)")
    merged = {tuple(row[name] for name in KEY): row for row in [*kept, *rows]}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged[key] for key in sorted(merged))
    write_text(path, text.getvalue())


def compare(peer: Peer, masks: Array, maps: Array, rounds: int) -> tuple[float, float]:
    """Median seconds of ours and of the peer's, in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        for run, seconds in ((lambda: pixel_scores(masks, maps), ours), (peer, theirs)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return statistics.median(ours), statistics.median(theirs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=100, help="number of anomaly maps (default 100)")
    parser.add_argument("--size", type=int, default=256, help="side of a map in pixels (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds a peer (default 5)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all that are installed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    arguments = parser.parse_args()
    if min(arguments.maps - 1, arguments.size - 7, arguments.rounds) < 1:
        parser.error("expected at least 2 maps of 8 pixels and 1 round")

    masks, maps = synthetic(arguments.maps, arguments.size)
    ours = pixel_scores(masks, maps)
    print(f"{maps.size / 1e6:.2f} M pixels, {masks.mean():.1%} anomalous, {machine()}: {ours}")
    rows = []
    for name, (prepare, computes, tolerance) in PEERS.items():
        if name not in arguments.peers:
            continue
        try:
            peer = prepare(masks, maps)
        except ImportError as error:
            print(f"{name}: skipped, not installed here ({error})")
            continue
        difference = disagreement(ours, peer(), tolerance)
        if difference:
            print(f"{name}: {difference}; not timed", file=sys.stderr)
            return 1
        ours_s, peer_s = compare(peer, masks, maps, arguments.rounds)
        print(f"{name} ({computes}): {peer_s:.3f} s, adcore (AUROC, AP, AUPRO): {ours_s:.3f} s, ratio {peer_s / ours_s:.1f}")
        versions = {package: importlib.metadata.version(package) for package in ("numpy", "scipy", name)}
        rows.append({
            "benchmark": "metrics.pixel_scores", "ours_s": f"{ours_s:.4f}", "peer": f"{name}: {computes}",
            "peer_s": f"{peer_s:.4f}", "ratio": f"{peer_s / ours_s:.2f}", "rounds": str(arguments.rounds),
            "size": f"{arguments.maps}x{arguments.size}x{arguments.size}", "machine": machine(),
            "versions": " ".join([f"python {platform.python_version()}", *(f"{k} {v}" for k, v in versions.items())]),
        })
    if rows:
        merge(arguments.out, rows)
        print(f"{len(rows)} rows in {arguments.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AdcoreError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
