"""Time adcore.metrics.pixel_scores (AUROC, AP and AUPRO, exact) against other libraries on one synthetic data set.

    python benchmarks/bench_metrics.py --maps 100 --size 256 --rounds 5

The values of each peer are first compared with ours; then both are timed in turns, in one process, on the same arrays. A
library that is not installed is skipped (`pip install adcore[bench]` installs them). A peer that computes fewer metrics is
still timed against all three of ours; its name in the csv lists what it computes. Times are medians in seconds, and the ratio
is theirs divided by ours. New rows replace those of the same benchmark, peer, size and machine in the csv; other rows are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
from side_by_side import RESULTS, alternate, machine, merge, row

from adcore.errors import AdcoreError
from adcore.metrics import Scores, pixel_scores

Array = npt.NDArray[np.generic]
Peer = Callable[[], dict[str, float]]


def synthetic(count: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Masks (B, H, W) bool and maps (B, H, W) float32: two discs in six images of ten, 5 % of all pixels, some overlap."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), bool)
    y, x = np.mgrid[:size, :size]
    radius = size * (0.05 / 0.6 / 2 / np.pi) ** 0.5
    for index in range(count * 6 // 10):
        for center in rng.uniform(radius, size - radius, (2, 2)):
            masks[index] |= (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius ** 2
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
    vars(np).setdefault("trapz", np.trapezoid)         # adeval 1.1.0 calls a function that numpy 2.4 removed
    from adeval import auroc_aupr_aupro
    targets = masks.astype(np.uint8)
    return lambda: dict(zip(("auroc", "ap", "aupro"), auroc_aupr_aupro(maps, targets), strict=True))


PEERS: dict[str, tuple[Callable[[Array, Array], Peer], str, float]] = {
    "scikit-learn": (scikit_learn, "AUROC, AP", 1e-9),
    "torchmetrics": (torchmetrics, "AUROC, AP", 1e-3),         # sums in float32
    "anomalib": (anomalib, "AUPRO", 1e-3),                     # sums in float32
    "adeval": (adeval, "AUROC, AP, AUPRO in 1000 bins", 1e-3),
}
"""Distribution -> (its set-up, what it computes, largest allowed difference from our values)."""


def disagreement(ours: Scores, theirs: dict[str, float], tolerance: float) -> str | None:
    """The first metric that differs by more than the tolerance, in words."""
    for name, value in theirs.items():
        own = getattr(ours, name)
        if not abs(own - value) <= tolerance:
            return f"{name} is {value:.9f} there and {own:.9f} here, over the tolerance of {tolerance:g}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=100, help="number of anomaly maps (default 100)")
    parser.add_argument("--size", type=int, default=256, help="side of a map in pixels (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per peer (default 5)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all that are installed")
    parser.add_argument("--out", type=Path, default=RESULTS)
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
        ours_s, peer_s = alternate(lambda: pixel_scores(masks, maps), peer, arguments.rounds)
        print(f"{name} ({computes}): {peer_s:.3f} s, adcore (AUROC, AP, AUPRO): {ours_s:.3f} s, ratio {peer_s / ours_s:.1f}")
        rows.append(row("metrics.pixel_scores", f"{name}: {computes}", ours_s, peer_s, arguments.rounds,
                        f"{arguments.maps}x{arguments.size}x{arguments.size}", ["numpy", "scipy", name]))
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
