"""Measure how the time and the memory of each computation grow with its input, and write it to growth.csv.

    python benchmarks/bench_growth.py --rounds 5

Sizes double. The exponent p of time = c size^p is fitted by least squares in logarithms: 1 is linear, 2 quadratic. For small
inputs the fixed cost of a call dominates, so a fitted exponent is below the one from counting operations. Memory is the peak in
addition to the input (Linux only), measured once, with ascending sizes.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_color import photograph
from bench_density import features
from bench_gmm import gradient, mixture
from bench_metrics import synthetic
from side_by_side import machine, peak_rise, status_of
from torchvision import models

from adcore.experiments.provenance import commit
from adcore.files import write_text
from adcore.kernels import gmm, kcenter, nearest
from adcore.metrics import pixel_scores
from adcore.papers.artola2024.color import transport_uint8
from adcore.papers.ds2.gaussian import GaussianDensity
from adcore.papers.heckler2023.receptive_field import measure

COLUMNS = ["kernel", "of", "size", "seconds", "exponent", "expected", "peak_mb", "fixed", "machine", "versions", "commit"]
GROWTH = Path(__file__).with_name("growth.csv")


@dataclass(frozen=True)
class Series:
    """One computation at several sizes of one of its inputs.

    of        what the sizes count
    fixed     the other sizes, in words
    expected  exponent from counting operations
    prepare   size -> the call that is timed
    """

    kernel: str
    of: str
    sizes: tuple[int, ...]
    fixed: str
    expected: int
    prepare: Callable[[int], Callable[[], Any]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coreset(n: int) -> Callable[[], Any]:
    points = random(n, 64)
    return lambda: kcenter(points, max(1, n // 10), progress=False)


def search(m: int) -> Callable[[], Any]:
    queries, bank = random(196, 256), random(m, 256, seed=1)
    return lambda: nearest(queries, bank)


def density_of_mixture(n: int, k: int) -> Callable[[], Any]:
    parameters = mixture(k, 64)
    return gradient(lambda u: gmm(u, *parameters)[0], random(n, 64))


def transport(pixels: int) -> Callable[[], Any]:
    side = round(pixels**0.5)
    u, v = photograph(side, 0), photograph(side, 1)
    return lambda: transport_uint8(u, v)


def metrics(count: int, side: int) -> Callable[[], Any]:
    masks, maps = synthetic(count, side)
    return lambda: pixel_scores(masks, maps)


def fields(side: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    network, image = models.resnet18().eval(), random(1, 3, side, side)
    return lambda: measure(network, ["layer1", "layer2", "layer3"], image=image)


def density(images: int) -> Callable[[], Any]:
    normal = features(images, 20, 64)
    return lambda: GaussianDensity(16).fit(normal)


def doubled(first: int, times: int) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range(times))


def all_series(small: bool = False) -> list[Series]:
    """Every computation; `small` keeps the first two sizes, a sixteenth as large."""
    def sizes(first: int, times: int = 4) -> tuple[int, ...]:
        return doubled(first // 16, 2) if small else doubled(first, times)
    pixels = tuple(side * side for side in ((16, 32) if small else (256, 362, 512, 724, 1024)))
    sides = (64, 96) if small else (512, 640, 768, 1024)
    return [
        Series("kernels.kcenter", "points", sizes(4000), "10 % picked, d 64", 2, coreset),
        Series("kernels.nearest", "bank entries", sizes(16_000), "196 queries, d 256", 1, search),
        Series("kernels.gmm, value and gradient", "points", sizes(8000), "K 10, d 64", 1, lambda n: density_of_mixture(n, 10)),
        Series("kernels.gmm, value and gradient", "components", doubled(2, 2) if small else doubled(5, 4), "10000 points, d 64",
               1, lambda k: density_of_mixture(10_000, k)),
        Series("color.transport_uint8", "pixels", pixels, "one image, one target", 1, transport),
        Series("metrics.pixel_scores", "maps", doubled(4, 2) if small else doubled(25, 4), "256x256, 5 % anomalous", 1,
               lambda n: metrics(n, 256)),
        Series("metrics.pixel_scores", "pixels", pixels, "16 maps, 5 % anomalous", 1, lambda n: metrics(16, round(n**0.5))),
        # From 512 pixels on the largest of the three fields fits in the image, and only that part is computed.
        Series("receptive_field.measure", "pixels", tuple(side * side for side in sides), "ResNet-18, three taps", 0,
               lambda n: fields(round(n**0.5))),
        # Beyond 64 images the size of the covariance is fixed by the 64 channels, and only the products grow.
        Series("density.GaussianDensity, fit", "images", doubled(32, 2) if small else doubled(512, 4),
               "20 positions, 64 channels to 16", 1, density),
    ]


def seconds(calls: Mapping[int, Callable[[], Any]], rounds: int) -> dict[int, float]:
    """Median time at each size, after a first call that is not timed; sizes take turns, so a slow phase affects all."""
    taken: dict[int, list[float]] = {size: [] for size in calls}
    for turn in range(rounds + 1):
        for size, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                taken[size].append(time.perf_counter() - start)
    return {size: statistics.median(times) for size, times in taken.items()}


def exponent(times: Mapping[int, float]) -> float:
    """p of time = c size^p, by least squares in logarithms."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def lines(series: Series, times: Mapping[int, float], peaks: Mapping[int, float | None]) -> list[list[str]]:
    """Rows of the csv, one per size; a peak that was not measured is empty."""
    versions = f"python {platform.python_version()} torch {torch.__version__.split('+')[0]}"
    megabytes = {size: "" if peak is None else f"{peak / 1e6:.1f}" for size, peak in peaks.items()}
    return [[series.kernel, series.of, str(size), f"{taken:.5f}", f"{exponent(times):.2f}", str(series.expected),
             megabytes[size], series.fixed, machine(), versions, commit()] for size, taken in times.items()]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds at each size (default 5)")
    parser.add_argument("--small", action="store_true", help="sizes of milliseconds")
    parser.add_argument("--out", type=Path, default=GROWTH)
    arguments = parser.parse_args(words)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for series in all_series(arguments.small):
        calls = {size: series.prepare(size) for size in series.sizes}
        calls[series.sizes[0]]()                             # libraries allocate memory when they are first used
        peaks = {size: peak_rise(call) for size, call in calls.items()}
        times = seconds(calls, arguments.rounds)
        writer.writerows(lines(series, times, peaks))
        print(f"{series.kernel}: {', '.join(f'{size} {taken:.4f} s' for size, taken in times.items())}; grows with {series.of} "
              f"to the power {exponent(times):.2f}, by counting {series.expected}", flush=True)
    write_text(arguments.out, text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
