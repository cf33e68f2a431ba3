"""Time adcore.kernels.kcenter, PatchCore's coreset, against the greedy k-center of others.

    python benchmarks/bench_kcenter.py --sizes 20000x128x2000 100000x128x1000 --rounds 3
    python benchmarks/bench_kcenter.py --features bank.npy --share 0.1

A size is points x dimensions x centers. anomalib's sampler runs from our first point, without its random projection and its
progress bar. "One update a center" follows the sampler in Amazon's PatchCore: for each center it computes the squared lengths
of all points again, their products with the center, and the smaller of old and new distance. Two selections agree if they cover
the points equally well: rounding may swap picks that are almost equally far, and then all picks after them.

Peak memory is measured in a second call in a separate process, in addition to the bank (Linux only), and written to
kcenter_memory.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from side_by_side import RESULTS, Peer, machine, merge, peak_rise, race, status_of
from torch import Tensor

from adcore.errors import ParameterError
from adcore.experiments.provenance import commit
from adcore.files import write_text
from adcore.kernels import kcenter, nearest

SIZES = ("20000x128x2000", "100000x128x1000", "20000x1024x2000")
SMALL = ("300x8x30",)


def parsed(size: str) -> tuple[int, int, int]:
    """Points, dimensions and centers of a size.

    Raises:
        ParameterError: not three numbers, or more centers than points.
    """
    words = size.split("x")
    if len(words) != 3 or not all(word.isdigit() for word in words) or not 1 <= int(words[2]) <= int(words[0]):
        raise ParameterError(f"size '{size}' is not points x dimensions x centers, such as {SIZES[0]}")
    n, d, k = map(int, words)
    return n, d, k


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def one_update_a_center(points: Tensor, k: int) -> list[int]:
    """Greedy k-center with one pass over all points per pick, from the first point."""
    distance, picked = torch.full((len(points), 1), torch.inf), [0]
    while True:
        center = points[picked[-1]][None]                                                     # (1, d)
        lengths, length = (x.unsqueeze(1).bmm(x.unsqueeze(2)).reshape(-1, 1) for x in (points, center))
        new = (-2 * points.mm(center.T) + lengths + length.T).clamp(0, None).sqrt()           # (n, 1)
        distance = torch.cat([distance, new], dim=1).min(dim=1).values[:, None]
        if len(picked) == k:
            return picked
        picked.append(int(distance.argmax()))


def anomalib(points: Tensor, k: int) -> Callable[[], list[int]]:
    from anomalib.models.components import KCenterGreedy

    module = sys.modules[KCenterGreedy.__module__]

    def run() -> list[int]:
        sampler = KCenterGreedy(points, sampling_ratio=(k + 0.5) / len(points))
        sampler.model = SimpleNamespace(fit=lambda x: None, transform=lambda x: x)
        with mock.patch.object(torch, "randint", lambda high, size, device: torch.zeros(size, dtype=torch.long)), \
                mock.patch.object(module, "tqdm", lambda steps, desc: steps):
            return sampler.select_coreset_idxs()
    return run


def radius(points: Tensor, picked: Tensor | Sequence[int]) -> float:
    """The largest distance of a point to its nearest pick, which greedy k-center keeps small."""
    return float(nearest(points, points[torch.as_tensor(picked)])[0].max())


def disagreement(points: Tensor, tolerance: float = 1e-3) -> Callable[[Tensor, Sequence[int]], str | None]:
    """Compares selections by size and radius."""
    def compare(ours: Tensor, theirs: Sequence[int]) -> str | None:
        if len(set(theirs)) != len(ours):
            return f"picks {len(set(theirs))} points and we {len(ours)}"
        own, other = radius(points, ours), radius(points, theirs)
        if abs(own - other) > tolerance * own:
            return f"leaves a point at {other:g} and we at {own:g}"
        return None
    return compare


def compared(points: Tensor, k: int, size: str, rounds: int) -> list[dict[str, str]]:
    """Rows of the csv for k of these points."""
    peers = [Peer("anomalib KCenterGreedy, not projected", lambda: anomalib(points, k), ("anomalib",)),
             Peer("one update a center, after Amazon's", lambda: lambda: one_update_a_center(points, k))]
    return race("kernels.kcenter", size, lambda: kcenter(points, k, progress=False), peers, disagreement(points), rounds)


def peak_over_bank(n: int, d: int, k: int) -> float:
    """Largest resident memory during a second `kcenter`, including the bank, divided by the size of the bank.

    Raises:
        ParameterError: not on Linux.
    """
    kcenter(gaussian(n, d), k, progress=False)      # libraries allocate some megabytes when first used at a size
    points = gaussian(n, d)
    rise = peak_rise(lambda: kcenter(points, k, progress=False))
    if rise is None:
        raise ParameterError("peak memory is read from /proc, which is not here")
    return 1 + rise / (points.numel() * points.element_size())


def memory(sizes: Sequence[str], path: Path) -> None:
    """Write the peak memory at each size to a csv."""
    lines = ["size,peak_over_bank,machine,commit"]
    for size in sizes:
        done = subprocess.run([sys.executable, __file__, "--peak", size], capture_output=True, text=True)
        if done.returncode:
            print(f"peak memory not measured: {done.stderr.strip().splitlines()[-1]}")
            return
        lines.append(f'{size},{float(done.stdout):.3f},"{machine()}",{commit()}')
        print(f"kcenter, {size}: peak memory {float(done.stdout):.2f} of the bank's", flush=True)
    write_text(path, "\n".join(lines) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help=f"points x dimensions x centers (default {' '.join(SIZES)})")
    parser.add_argument("--features", type=Path, help="a .npy file (n, d) of real features, instead of the sizes")
    parser.add_argument("--share", type=float, default=0.1, help="fraction of the features that is picked (default 0.1)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds per peer (default 3)")
    parser.add_argument("--small", action="store_true", help="a size of milliseconds")
    parser.add_argument("--peak", metavar="SIZE", help="print the peak memory at this size divided by the bank's, and end")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.peak:
        print(peak_over_bank(*parsed(arguments.peak)))
        return 0
    sizes = SMALL if arguments.small else arguments.sizes
    cases = {size: (lambda size=size: gaussian(*parsed(size)[:2]), parsed(size)[2]) for size in sizes}
    if arguments.features:
        features = torch.from_numpy(np.load(arguments.features)).float()
        picks = max(1, int(len(features) * arguments.share))
        cases = {f"{len(features)}x{features.shape[1]}x{picks}, real features": (lambda: features, picks)}
    for size, (make, k) in cases.items():
        merge(arguments.out, compared(make(), k, size, arguments.rounds))
    if not arguments.features:
        memory(sizes, arguments.out.with_name("kcenter_memory.csv"))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
