"""Measure how the time and the memory of whole jobs grow with the number of images, and write it to large.csv.

    python benchmarks/bench_large.py

1,000, 4,000 and 16,000 images of 64 x 64 pixels are drawn once. Each job runs in a process of its own with an empty cache.

"Memory" is the process's own, torch and Python included: what the system cannot take back (RssAnon of /proc, Linux only). Pages
of mapped files, such as cached features, come on top while there is room. "Resident" is the peak with both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from side_by_side import DiffersError, machine, status_of, write_rows

from adcore.data import load_dataset
from adcore.data.verify import verify_dataset
from adcore.experiments.evaluation import evaluate
from adcore.experiments.provenance import commit
from adcore.features import images_digest
from adcore.models import PatchCore, PatchCoreConfig, UniAD, UniADConfig

COLUMNS = ["job", "images", "seconds", "memory_mb", "resident_mb", "fixed", "machine", "versions", "commit"]
LARGE = Path(__file__).with_name("large.csv")
SIZES, SMALL = (1000, 4000, 16_000), (16, 32)
SIDE = 64
PATCHCORE = {"backbone": "efficientnet_lite0", "taps": (3, 4), "image_size": SIDE, "crop": None, "embed_dim": 0,
             "coreset": 1000, "max_bank_bytes": 64 * 2**20}
UNIAD = {"backbone": "efficientnet_lite0", "image_size": SIDE, "hidden": 64, "heads": 4, "ffn": 128, "neighbors": 1,
         "epochs": 2}


def draw(root: Path, train: int, test: int) -> None:
    """A data set of one category: stripes under noise, and blobs in half of the test images."""
    rng = np.random.default_rng(0)
    stripes = 110 + 40 * np.sin(np.arange(SIDE)[:, None] / 3 + np.zeros(SIDE))
    part = root / "stripes"
    for folder in ("train/good", "test/good", "test/blob", "ground_truth/blob"):
        (part / folder).mkdir(parents=True)
    for i in range(train + test):
        pixels = stripes + rng.normal(0, 6, (SIDE, SIDE))
        blob = i >= train and i % 2 == 1
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if blob:
            top, left = rng.integers(0, SIDE - 8, 2)
            mask[top:top + 8, left:left + 8] = 255
            pixels[mask > 0] += 60
            Image.fromarray(mask).save(part / f"ground_truth/blob/{i:05}_mask.png")
        folder = "train/good" if i < train else "test/blob" if blob else "test/good"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB").save(part / folder / f"{i:05}.png")


def _patchcore(train: Any) -> Any:
    return PatchCore(PatchCoreConfig(**{**PATCHCORE, "weights": "random"})).fit(train, progress=False)


def fitting(root: Path) -> Callable[[], Any]:
    dataset = load_dataset(root)
    return lambda: _patchcore(dataset.train)


def testing(root: Path) -> Callable[[], Any]:
    dataset = load_dataset(root)
    detector = _patchcore(dataset.train[:200])
    return lambda: evaluate(detector, dataset, progress=False)


def training(root: Path) -> Callable[[], Any]:
    dataset = load_dataset(root)
    uniad = UniAD(UniADConfig(**{**UNIAD, "weights": "random"}))
    return lambda: uniad.fit(dataset.train, progress=False)


def verifying(root: Path) -> Callable[[], Any]:
    return lambda: verify_dataset(root, progress=False)


def digesting(root: Path) -> Callable[[], Any]:
    dataset = load_dataset(root)
    samples = [*dataset.train, *dataset.test]
    return lambda: images_digest(samples)


def digesting_again(root: Path) -> Callable[[], Any]:
    again = digesting(root)
    again()
    return again


# Name of the job -> what prepares the call that is measured, whether its images are for training, and its fixed sizes.
JOBS: dict[str, tuple[Callable[[Path], Callable[[], Any]], bool, str]] = {
    "PatchCore, fit": (fitting, True, "64 patches an image, 1000 kept, max_bank_bytes 64 MiB"),
    "UniAD, fit": (training, True, "2 epochs on cached features, 16 tokens of 192 channels"),
    "PatchCore, test and metrics": (testing, False, "bank of 1000 patches of 200 images"),
    "verify": (verifying, False, "half of the images with a mask"),
    "digests, first": (digesting, False, ""),
    "digests, again": (digesting_again, False, "remembered"),
}


class Watched:
    """Seconds and peak memory of a block, in MB: `memory`, the process's own, and `resident`, with mapped files."""

    def __enter__(self) -> Watched:
        self.memory = self.resident = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            kilobytes = dict(re.findall(r"(RssAnon|VmRSS):\s+(\d+)", status.read_text(encoding="utf-8")))
            self.memory = max(self.memory, int(kilobytes["RssAnon"]) / 1024)
            self.resident = max(self.resident, int(kilobytes["VmRSS"]) / 1024)
            if self._stop.wait(0.01):
                return


def alone(job: str, root: Path) -> dict[str, float]:
    """One run in a separate process with an empty cache.

    Raises:
        DiffersError: the run failed; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, __file__, "--job", job, "--root", str(root)], capture_output=True, text=True,
                              env={**os.environ, "ADCORE_CACHE": cache})
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DiffersError(f"{job}: {said[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few images, for a try")
    parser.add_argument("--job", choices=JOBS, help="print one run as JSON and end; with --root")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, default=LARGE)
    asked = parser.parse_args(words)
    if asked.job:
        call = JOBS[asked.job][0](asked.root)
        with Watched() as watched:
            call()
        print(json.dumps({"seconds": watched.seconds, "memory_mb": watched.memory, "resident_mb": watched.resident}))
        return 0
    versions = f"python {platform.python_version()} torch {torch.__version__.split('+')[0]}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = SMALL if asked.small else SIZES
        for n in sizes:
            draw(Path(folder) / f"train{n}", n, 2)
            draw(Path(folder) / f"test{n}", min(n, 200), n)
        for job, (_, trains, fixed) in JOBS.items():
            for n in sizes:
                found = alone(job, Path(folder) / f"{'train' if trains else 'test'}{n}")
                print(f"{job}, {n} images: {', '.join(f'{name} {value:.1f}' for name, value in found.items())}", flush=True)
                rows.append([job, str(n), f"{found['seconds']:.2f}", f"{found['memory_mb']:.0f}", f"{found['resident_mb']:.0f}",
                             fixed, machine(), versions, commit()])
    write_rows(asked.out, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
