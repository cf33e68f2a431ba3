"""Time DS2's GaussianDensity, fit and scores of one category, against a loop over positions with scikit-learn.

    python benchmarks/bench_density.py --images 350 --positions 20 --rounds 3

5 of 7 images are fitted and all are scored, separately at each position: PCA and a Ledoit-Wolf covariance, as in DS2. The
published size is 57 x 57 positions; the loop takes the same time for each, so 20 of them are enough. Features are float32;
scikit-learn computes in float32, and we fit in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import Tensor

from adcore.papers.ds2.gaussian import GaussianDensity


def features(images: int, positions: int, dim: int, seed: int = 0) -> Tensor:
    """(n, N, D) float32 with a covariance whose spectrum decreases, like that of real features."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, dim + 1) ** -0.5
    return torch.randn(images, positions, dim, generator=g) * spread[torch.randperm(dim, generator=g)]


def by_scikit_learn(normal: Tensor, everything: Tensor, dims: int) -> Tensor:
    """Distances (m, N), one position at a time."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA
    scores = np.empty(everything.shape[:2], np.float32)
    for position in range(normal.shape[1]):
        x, asked = normal[:, position].numpy(), everything[:, position].numpy()
        pca = PCA(dims, svd_solver="full").fit(x)
        gaussian = LedoitWolf().fit(pca.transform(x))
        scores[:, position] = np.sqrt(gaussian.mahalanobis(pca.transform(asked)))
    return torch.from_numpy(scores)


def disagreement(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> str | None:
    """Compares distances, relative to the largest."""
    error = float((ours - theirs).abs().max() / theirs.max())
    return f"differs by {error:g} of the largest distance" if not error <= tolerance else None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=350)
    parser.add_argument("--positions", type=int, default=20)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--dims", type=int, default=200, help="of the Gaussian (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds per peer (default 3)")
    parser.add_argument("--small", action="store_true", help="a size of milliseconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.small:
        arguments.images, arguments.positions, arguments.channels, arguments.dims = 21, 4, 12, 6
    x = features(arguments.images, arguments.positions, arguments.channels)
    normal, dims = x[:len(x) * 5 // 7], arguments.dims
    peers = [Peer("a loop with scikit-learn, PCA and LedoitWolf", lambda: lambda: by_scikit_learn(normal, x, dims),
                  ("scikit-learn",))]
    size = f"{len(x)} images, {x.shape[1]} positions, {x.shape[2]} channels to {dims}"
    merge(arguments.out, race("density.GaussianDensity, fit and score", size,
                              lambda: GaussianDensity(dims).fit(normal).score(x), peers, disagreement, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
