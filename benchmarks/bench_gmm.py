"""Time adcore.kernels.gmm, value and gradient of a mixture's log-density, against torch.distributions and scikit-learn.

    python benchmarks/bench_gmm.py --points 100000 --dims 64 --components 10 50 --rounds 3

Everything is float32 with full covariances. scikit-learn computes no gradient, so only its value is timed. Each timed call
follows an untimed one of the same code: numpy's threads would otherwise still wait for more work on the cores that torch needs.
Ours keeps its memory between calls, as in the trainings and evaluations that call it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import Tensor

from adcore.kernels import gmm
from adcore.memory import kept_memory

Mixture = tuple[Tensor, Tensor, Tensor]


def mixture(k: int, d: int, seed: int = 0) -> Mixture:
    """Log weights (K,), means (K, d) and precision factors (K, d, d) of correlated components."""
    g = torch.Generator().manual_seed(seed)
    turns = torch.linalg.qr(torch.randn(k, d, d, generator=g, dtype=torch.float64)).Q
    precisions = turns * (0.5 + torch.rand(k, 1, d, generator=g, dtype=torch.float64)) @ turns.mT
    # P = U U^T with U upper triangular: reverse the axes of P, take the lower factor, reverse its axes.
    factors = torch.linalg.cholesky(precisions.flip(1, 2)).flip(1, 2)
    weights = torch.rand(k, generator=g) + 0.1
    return (weights / weights.sum()).log(), torch.randn(k, d, generator=g), factors.float().contiguous()


def torch_mixture(log_weights: Tensor, means: Tensor, factors: Tensor) -> torch.distributions.Distribution:
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
    precisions = factors.double() @ factors.double().mT
    lower = torch.linalg.cholesky(torch.linalg.inv(precisions)).float()
    normal = MultivariateNormal(means, scale_tril=lower, validate_args=False)
    return MixtureSameFamily(Categorical(logits=log_weights), normal, validate_args=False)


def scikit_learn(points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor) -> Callable[[], Tensor]:
    from sklearn.mixture import GaussianMixture
    model = GaussianMixture(len(means))
    model.weights_, model.means_, model.precisions_cholesky_ = log_weights.exp().numpy(), means.numpy(), factors.numpy()
    model.covariances_ = torch.linalg.inv(factors.double() @ factors.double().mT).numpy()
    asked = points.numpy()
    return lambda: torch.from_numpy(model.score_samples(asked))


def gradient(density: Callable[[Tensor], Tensor], points: Tensor) -> Callable[[], Tensor]:
    """A call for the value (n, 1) and the gradient (n, d) of a log-density, side by side."""
    def call() -> Tensor:
        u = points.clone().requires_grad_()
        value = density(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        return torch.cat([value.detach()[:, None], slope], dim=1)
    return call


def disagreement(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> str | None:
    """Compares numbers, relative to the largest."""
    error = float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())
    return f"differs by {error:g} of the largest value" if not error <= tolerance else None


def compared(points: Tensor, ours: Mixture, rounds: int) -> list[dict[str, str]]:
    """Rows of the csv for these points, value alone and with its gradient."""
    theirs = torch_mixture(*ours)
    size = f"{len(points)} points, d {points.shape[1]}, K {len(ours[0])}"
    value = [Peer("torch MixtureSameFamily", lambda: lambda: theirs.log_prob(points)),
             Peer("scikit-learn GaussianMixture", lambda: scikit_learn(points, *ours), ("scikit-learn",))]
    slope = [Peer("torch MixtureSameFamily", lambda: gradient(theirs.log_prob, points))]
    return [*race("kernels.gmm, value", size, lambda: gmm(points, *ours)[0], value, disagreement, rounds,
                   setting=kept_memory),
            *race("kernels.gmm, value and gradient", size, gradient(lambda u: gmm(u, *ours)[0], points), slope, disagreement,
                  rounds, setting=kept_memory)]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--components", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds per peer (default 3)")
    parser.add_argument("--small", action="store_true", help="sizes of milliseconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.small:
        arguments.points, arguments.dims, arguments.components = 60, 5, [3]
    n, d = arguments.points, arguments.dims
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    for k in arguments.components:
        merge(arguments.out, compared(points, mixture(k, d), arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
