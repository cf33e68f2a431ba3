"""Time whole methods with every fast path, and with one of them replaced by plain code: is it worth its lines?

    ADCORE_DATA=... python benchmarks/bench_paths.py

A run is a fit and a test on real images, from the files to the last metric, in a process of its own with empty caches. "With"
and "without" take turns; paths.csv contains medians. `score` and `map` are the largest differences of the test images' scores
and maps, as a fraction of the largest score and of the largest value of a map; they are empty for UniAD, whose plain code draws
other random numbers. Rounding decides which of two almost equally far patches PatchCore's coreset picks, and so all later ones.
So its two are measured with another bank: every hundredth patch, or, for k-center, 200 that it picks in double precision.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_uniad import Plain
from side_by_side import DiffersError, kept, machine, status_of, write_rows

from adcore.experiments import Experiment, grid
from adcore.experiments.evaluation import evaluate, predict_all
from adcore.experiments.provenance import commit
from adcore.kernels import kernels
from adcore.kernels.kcenter import plain_kcenter
from adcore.kernels.nearest import plain_nearest
from adcore.models import PatchCore
from adcore.papers.heckler2023 import patchcore
from adcore.papers.uniad2022.transformer import Attention
from adcore.papers.uniad2022.uniad import UniADNetwork

COLUMNS = ["case", "path", "with_s", "without_s", "times faster", "score", "map", "rounds", "machine", "commit"]
# Name -> method, data set, category, settings, and the fast paths that are left out. The plain k-center of ten per cent of the
# patches takes more than a quarter of an hour.
Case = tuple[str, str, str, dict[str, Any], tuple[str, ...]]
CASES: dict[str, Case] = {
    "patchcore bottle, 1 %": ("patchcore", "mvtec_384", "bottle", {"weights": "random", "coreset": 0.01},
                              ("k-center", "kept memory")),
    "patchcore bottle, 10 %": ("patchcore", "mvtec_384", "bottle", {"weights": "random"}, ("nearest",)),
    "contrastive bottle, 2 epochs": ("contrastive", "mvtec_384", "bottle", {
        "backbone": "efficientnet_lite0", "negatives": "photographs", "epochs": 2},
        ("mixture and colors", "kept memory")),
    "uniad screw, 4 epochs": ("uniad", "mvtec_512", "screw", {
        "backbone": "efficientnet_lite0", "image_size": 224, "epochs": 4, "batch_size": 32},
        ("attention", "dropout")),
}
SMALL: dict[str, Case] = {
    "patchcore mini": ("patchcore", "mini", "gear", {"backbone": "efficientnet_lite0", "taps": (2, 3), "image_size": 64,
                                                     "crop": None, "coreset": 50, "weights": "random"}, ("nearest",))}


def plain_attention() -> contextlib.AbstractContextManager[Any]:
    """UniAD's networks have nn.MultiheadAttention."""
    def network(*values: Any) -> UniADNetwork:
        made = UniADNetwork(*values)
        for module in list(made.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Attention):
                    setattr(module, name, Plain(child))
        return made
    return mock.patch("adcore.papers.uniad2022.uniad.UniADNetwork", network)


# Name -> the context without it
PATHS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "kept memory": lambda: mock.patch("adcore.memory._glibc", lambda: None),
    "k-center": lambda: mock.patch(
        "adcore.papers.heckler2023.patchcore.kcenter", lambda points, k, initial, progress: plain_kcenter(points, k, initial)),
    "nearest": lambda: mock.patch("adcore.papers.heckler2023.patchcore.nearest", plain_nearest),
    "attention": plain_attention,
    "dropout": lambda: mock.patch("adcore.kernels.dropout.fast.takes", lambda x, p: False),
    "mixture and colors": lambda: kernels("plain"),
}
RANDOM = ("attention", "dropout")       # without these, other random numbers are drawn


def other_bank(path: str) -> contextlib.AbstractContextManager[Any]:
    """PatchCore picks patches that do not depend on rounding."""
    kcenter = patchcore.kcenter
    return mock.patch.object(patchcore, "kcenter", lambda points, k, initial, progress: (
        kcenter(points.double(), min(k, 200), initial=initial.double(), progress=False) if path == "k-center"
        else torch.arange(0, len(points), 100)))


def once(one: Experiment, path: str, without: bool, to: Path) -> float:
    """Seconds of one run in this process; its scores and maps go to a file."""
    dataset, device = one.data(), torch.device("cpu")
    with PATHS[path]() if without else contextlib.nullcontext():
        start = time.perf_counter()
        detector = one.detector(device).fit(dataset.train, progress=False)
        evaluate(detector, dataset, progress=False)
        seconds = time.perf_counter() - start
        if isinstance(detector, PatchCore):
            with other_bank(path):
                detector.fit(dataset.train, progress=False)
        scores, maps = predict_all(detector, dataset.test, False)
    np.savez(to, scores=scores, maps=maps if maps is not None else np.zeros(0))
    return seconds


def alone(words: Sequence[str]) -> float:
    """`once` in a separate process with an empty cache.

    Raises:
        DiffersError: the run failed; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True,
                              env={**os.environ, "ADCORE_CACHE": cache})
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DiffersError(f"{' '.join(words)}: {said[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def differences(folder: Path) -> tuple[str, str]:
    """Largest difference of scores and of maps, as fractions of the largest value."""
    ours, plain = (np.load(folder / f"{way}.npz") for way in ("with", "without"))
    return tuple(f"{np.abs(ours[name] - plain[name]).max() / np.abs(plain[name]).max():.0e}" if ours[name].size else ""
                 for name in ("scores", "maps"))  # type: ignore[return-value]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="embedded images, seconds")
    parser.add_argument("--cases", nargs="+", help="only these; the csv keeps the rows of the others (default: all)")
    parser.add_argument("--case", help="print the seconds of one run of this case and end; with --path, --to and --without")
    parser.add_argument("--path")
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("paths.csv"))
    asked = parser.parse_args(words)
    cases = SMALL if asked.small else CASES
    if asked.case:
        method, dataset, category, settings, _ = cases[asked.case]
        (one,) = grid(method, dataset=dataset, categories=[category], profile="paper", **settings)
        print(json.dumps(once(one, asked.path, asked.without, asked.to)))
        return 0
    rows = kept(asked.out, asked.cases or cases, COLUMNS)
    for case in asked.cases or cases:
        for path in cases[case][-1]:
            taken: dict[str, list[float]] = {"with": [], "without": []}
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(asked.rounds):
                    for way, seconds in taken.items():
                        seconds.append(alone(["--case", case, "--path", path, "--to", str(Path(folder) / f"{way}.npz"),
                                              *["--without"] * (way == "without"), *["--small"] * asked.small]))
                score, of_maps = ("", "") if path in RANDOM else differences(Path(folder))
            ours, plain = (statistics.median(seconds) for seconds in taken.values())
            print(f"{case}, {path}: {ours:.1f} s, without {plain:.1f} s, {plain / ours:.2f} times; {score} {of_maps}",
                  flush=True)
            rows.append([case, path, f"{ours:.1f}", f"{plain:.1f}", f"{plain / ours:.2f}", score, of_maps, str(asked.rounds),
                         machine(), commit()])
        write_rows(asked.out, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
