"""A Gaussian mixture of features that can follow them while they drift.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024; the online scheme
is that of Cappe and Moulines, "On-line expectation-maximization algorithm for latent data models", JRSS B 2009.

    features (n, d) -> K-means -> EM steps on everything -> stepwise EM, batch by batch, while the network changes

    paper       code          shape       meaning
    S_0         s0            (K,)        mean responsibility of each component
    S_1, S_2    s1, s2        (K, d)...   means of r u and r u u^T
    gamma       gamma         scalar      share of the new batch in the statistics; 1 forgets all before

    S <- (1 - gamma) S + gamma * batch means,    pi = S_0,  mu = S_1 / S_0,  Sigma = S_2 / S_0 - mu mu^T + ridge I
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.errors import AdcoreError, ParameterError
from adcore.kernels import gmm

EMPTY = 1e-10    # a component whose share of the points falls below this keeps its place
SMALLEST = 1e-12  # variance of the ridge where all features are equal
ROWS = 8192      # points whose statistics are summed at a time


class Mixture(nn.Module):
    """Full-covariance Gaussian mixture of d-dimensional features; `start` it, then `em_step` or `update` it.

    components  K
    dim         d
    floor       ridge on the covariances' diagonal, as a share of the features' mean variance (over all components, so that it
                follows their scale)
    exponent    of the step sizes t^-exponent that `update` takes when it is given none; above 0.5 and at most 1
    dtype       of the parameters; statistics and factorisations are float64 throughout

    Parameters are buffers: they are saved with the module and no optimizer sees them. Gradients reach features, never the
    mixture.
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor
    s0: Tensor
    s1: Tensor
    s2: Tensor
    steps: Tensor

    def __init__(self, components: int, dim: int, *, floor: float = 1e-6, exponent: float = 0.6,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if components < 1 or dim < 1:
            raise ParameterError(f"a mixture of {components} components in {dim} dimensions: both must be at least 1")
        if not 0.5 < exponent <= 1:
            raise ParameterError(f"exponent {exponent} of the step sizes must be above 0.5 and at most 1")
        if not floor > 0:
            raise ParameterError(f"floor {floor} of the covariances must be above 0")
        self.floor, self.exponent = floor, exponent
        self.register_buffer("log_weights", torch.full((components,), -math.log(components), dtype=dtype))
        self.register_buffer("means", torch.zeros(components, dim, dtype=dtype))
        self.register_buffer("factors", torch.eye(dim, dtype=dtype).repeat(components, 1, 1))
        self.register_buffer("s0", torch.zeros(components, dtype=torch.float64))
        self.register_buffer("s1", torch.zeros(components, dim, dtype=torch.float64))
        self.register_buffer("s2", torch.zeros(components, dim, dim, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # stepwise updates so far

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> Mixture:
        """A mixture with given parameters (K,), (K, d), (K, d, d), in their dtype and without a ridge.

        Raises:
            ParameterError: weights that are no probabilities, or a covariance that is not positive definite.
        """
        if not (weights > 0).all() or abs(float(weights.sum()) - 1) > 1e-6:
            raise ParameterError(f"mixture weights {weights.tolist()} are not positive numbers that add up to 1")
        mixture = cls(*means.shape, dtype=means.dtype).to(means.device)
        w, m, c = weights.double(), means.double(), covariances.double()
        if (torch.linalg.cholesky_ex(c).info > 0).any():
            raise ParameterError("a covariance of the mixture is not positive definite")
        mixture.s0.copy_(w)
        mixture.s1.copy_(w[:, None] * m)
        mixture.s2.copy_(w[:, None, None] * (c + m[:, :, None] * m[:, None]))
        mixture._set(torch.ones_like(w, dtype=torch.bool), w, m, c)
        return mixture

    @property
    def started(self) -> bool:
        return bool(self.s0.sum() > 0)

    @property
    def weights(self) -> Tensor:
        """Mixture weights (K,)."""
        return self.log_weights.exp()

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices (K, d, d), from the factors in use: ridge included."""
        return _inverse(self.factors)

    def forward(self, points: Tensor) -> Tensor:
        """log GMM(u), differentiable by the points: (..., d) -> (...).

        Raises:
            AdcoreError: the mixture was not started.
        """
        return self._terms(points)[0]

    def responsibilities(self, points: Tensor) -> Tensor:
        """P(z = k | u) without gradient: (..., d) -> (..., K)."""
        return self._terms(points.detach())[1]

    def direction(self, points: Tensor) -> Tensor:
        """h(u) = GMM'(u) / GMM(u), Eq. (16), without gradient: (..., d) -> (..., d)."""
        with torch.enable_grad():
            inner = points.detach().clone().requires_grad_()
            (h,) = torch.autograd.grad(self(inner).sum(), inner)
        return h

    def _terms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self._must_be_started()
        k, d = self.means.shape
        if points.shape[-1] != d:
            raise ParameterError(f"features {tuple(points.shape)} for a mixture in {d} dimensions: expected (..., {d})")
        density, shares = gmm(points.reshape(-1, d), self.log_weights, self.means, self.factors)
        return density.view(points.shape[:-1]), shares.view(*points.shape[:-1], k)

    @torch.no_grad()
    def start(self, points: Tensor, seed: int = 0) -> Mixture:
        """Components from K-means: each gets the weight, mean and covariance of its cluster. (n, d) with n >= K.

        Raises:
            ParameterError: fewer points than components, or points of another dimension.
            AdcoreError: NaN or infinity among the points.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        points = self._checked(points)
        k = len(self.means)
        if len(points) < k:
            raise ParameterError(f"{len(points)} points cannot start {k} components: give at least as many points")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct points than clusters, seen to below
            labels = KMeans(k, n_init=1, random_state=seed).fit(points.cpu().numpy()).labels_
        hard = F.one_hot(torch.from_numpy(labels).long(), k).double().to(points.device)                     # (n, K)
        # A component without a point waits where the features are as a whole, as wide as they are, with next to no weight.
        mean, width = points.double().mean(0), points.double().var(0, correction=0).mean().clamp_min(SMALLEST).sqrt()
        self.means.copy_(mean.expand(k, -1))
        self.factors.copy_(torch.eye(len(mean), dtype=torch.float64, device=points.device) / width)
        self._blend(*self._statistics(points, hard), 1.0)
        self.steps.zero_()
        return self

    @torch.no_grad()
    def em_step(self, points: Tensor) -> float:
        """One EM step on all points (n, d). Returns the mean log-likelihood before it, which never falls from step to step.

        Raises:
            AdcoreError: the mixture was not started, or NaN or infinity among the points.
        """
        points = self._checked(points)
        density, shares = self._terms(points)
        self._blend(*self._statistics(points, shares.double()), 1.0)
        return float(density.double().mean())

    def fit(self, points: Tensor, *, seed: int = 0, most: int = 100, tolerance: float = 1e-3) -> list[float]:
        """Start, then EM steps until the mean log-likelihood gains less than `tolerance`, at most `most` of them.

        Returns the mean log-likelihood before each step.
        """
        self.start(points, seed)
        gained: list[float] = []
        while len(gained) < most and (len(gained) < 2 or gained[-1] - gained[-2] > tolerance):
            gained.append(self.em_step(points))
        return gained

    @torch.no_grad()
    def update(self, points: Tensor, gamma: float | None = None) -> float:
        """One step of online EM on a batch (n, d): forget a share gamma of the statistics and put the batch's in its place.

        gamma  in (0, 1]; None takes (t + 2)^-exponent at step t = 0, 1, ... A constant follows drifting features, a falling
               one settles.

        Returns the batch's mean log-likelihood before the step.

        Raises:
            AdcoreError: the mixture was not started, or NaN or infinity among the points.
            ParameterError: a gamma outside (0, 1], or no points.
        """
        if gamma is None:
            gamma = (int(self.steps) + 2) ** -self.exponent
        if not 0 < gamma <= 1:
            raise ParameterError(f"gamma {gamma} of online EM must be above 0 and at most 1")
        points = self._checked(points)
        density, shares = self._terms(points)
        self._blend(*self._statistics(points, shares.double()), gamma)
        self.steps += 1
        return float(density.double().mean())

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Points drawn from the mixture: (count, d)."""
        self._must_be_started()
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)             # (n,)
        noise = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, device=self.means.device, generator=generator)
        # y = (u - mu) U is standard normal, so u = mu + y U^-1.
        spread = torch.linalg.solve_triangular(self.factors[which], noise[:, None], upper=True, left=False)[:, 0]
        return self.means[which] + spread

    def _statistics(self, points: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over n points of r, r u and r u u^T, in float64: (K,), (K, d), (K, d, d)."""
        s0, s1, s2 = (torch.zeros_like(x) for x in (self.s0, self.s1, self.s2))
        for u, r in zip(points.split(ROWS), shares.split(ROWS), strict=True):
            u = u.double()
            s0 += r.sum(0)
            s1 += r.T @ u
            for k in range(len(s2)):
                s2[k].addmm_((r[:, k, None] * u).T, u)
        return s0 / len(points), s1 / len(points), s2 / len(points)

    def _blend(self, s0: Tensor, s1: Tensor, s2: Tensor, gamma: float) -> None:
        """Move the statistics towards a batch's and take the parameters from them (the M step)."""
        for kept, new in ((self.s0, s0), (self.s1, s1), (self.s2, s2)):
            kept.mul_(1 - gamma).add_(new, alpha=gamma)
        total = self.s0.sum()
        alive = self.s0 > EMPTY * total                                                                     # (K,)
        share = self.s0.clamp_min(EMPTY * total)
        means = self.s1 / share[:, None]
        covariances = self.s2 / share[:, None, None] - means[:, :, None] * means[:, None]
        variance = self.s2.sum(0).diagonal().sum() / total - (self.s1.sum(0) / total).square().sum()
        ridge = (self.floor * variance / means.shape[1]).clamp_min(SMALLEST)
        covariances.diagonal(dim1=1, dim2=2).add_(ridge)
        self._set(alive, share / share.sum(), means, _positive(covariances, ridge))

    def _set(self, alive: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Put parameters in place; a component that is not alive keeps its mean and covariance."""
        identity = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
        lower = torch.linalg.cholesky(torch.where(alive[:, None, None], covariances, identity))
        factors = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False).mT
        self.log_weights.copy_(weights.log())
        self.means.copy_(torch.where(alive[:, None], means, self.means.double()))
        self.factors.copy_(torch.where(alive[:, None, None], factors, self.factors.double()))

    def _checked(self, points: Tensor) -> Tensor:
        if points.ndim != 2 or points.shape[1] != self.means.shape[1] or len(points) == 0:
            raise ParameterError(f"features {tuple(points.shape)} for a mixture in {self.means.shape[1]} dimensions: expected "
                                 f"(n, {self.means.shape[1]}) with n at least 1")
        wrong = ~points.isfinite().all(1)
        if wrong.any():
            raise AdcoreError(f"{int(wrong.sum())} of {len(points)} features for the mixture hold NaN or infinity, the first "
                              f"in row {int(wrong.nonzero()[0])}: look for a diverging network or a division by zero")
        return points.detach().to(self.means.device, self.means.dtype)

    def _must_be_started(self) -> None:
        if not self.started:
            raise AdcoreError("the mixture has no components yet: call start(features) or fit(features) first")


def _positive(covariances: Tensor, ridge: Tensor) -> Tensor:
    """The matrices themselves, or, where rounding has left one indefinite, with its eigenvalues raised to the ridge."""
    bad = torch.linalg.cholesky_ex(covariances).info > 0
    if bad.any():
        values, vectors = torch.linalg.eigh(covariances[bad])
        covariances = covariances.clone()
        covariances[bad] = vectors * values.clamp_min(float(ridge))[:, None] @ vectors.mT
    return covariances


def _inverse(factors: Tensor) -> Tensor:
    """(U U^T)^-1 of upper triangular matrices (K, d, d)."""
    identity = torch.eye(factors.shape[1], dtype=torch.float64, device=factors.device).expand(factors.shape)
    inverse = torch.linalg.solve_triangular(factors.double(), identity, upper=True)                         # U^-1
    return (inverse.mT @ inverse).to(factors.dtype)
