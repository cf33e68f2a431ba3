"""A Gaussian mixture of features, fitted by EM, that follows them by stepwise (online) EM while the network is fine-tuned.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement Sec. 2.
The supplement names an online scheme and does not print it; this is stepwise EM by Cappe and Moulines, "On-line
expectation-maximization algorithm for latent data models", JRSS B 2009.

    features (n, d) -> K-means (`start`) -> EM on all features (`em_step`) -> stepwise EM, batch by batch (`update`)

    paper           code               shape       meaning
    u               points             (n, d)      features
    P(z = k | u)    responsibilities   (n, K)      weights in Eq. (16)
    h(u)            direction          (n, d)      Eqs. (14)-(16)
    S_0             s0                 (K,)        mean responsibility r of each component
    S_1             s1                 (K, d)      mean of r u
    S_2             s2                 (K, d, d)   mean of r u u^T
    gamma           gamma              scalar      weight of the new batch in the statistics; 1 forgets all earlier batches

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

EMPTY = 1e-10     # a component whose weight falls below this keeps its mean and covariance
SMALLEST = 1e-12  # variance of the ridge where all features are equal
ROWS = 8192       # number of points per block when statistics are summed


class Mixture(nn.Module):
    """Gaussian mixture with full covariances of d-dimensional features: call `start`, then `em_step` or `update`.

    components  K
    dim         d
    floor       ridge on the covariances' diagonal, as a fraction of the features' mean variance over all components
    exponent    of the default step sizes (t + 2)^-exponent of `update`; above 0.5 and at most 1
    dtype       of the parameters; statistics and factorizations are float64

    The parameters are buffers: they are saved with the module and are not seen by an optimizer. Gradients reach the features,
    never the mixture.
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
        """A mixture with the given parameters (K,), (K, d), (K, d, d), in their dtype and without a ridge.

        Raises:
            ParameterError: weights that are not probabilities, or a covariance that is not positive definite.
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
        """Whether the mixture has components."""
        return bool(self.s0.sum() > 0)

    @property
    def weights(self) -> Tensor:
        """Mixture weights (K,)."""
        return self.log_weights.exp()

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices (K, d, d), ridge included."""
        return _inverse(self.factors)

    def forward(self, points: Tensor) -> Tensor:
        """log GMM(u), differentiable in the points: (..., d) -> (...).

        Raises:
            AdcoreError: the mixture has not been started.
        """
        return self._terms(points)[0]

    def responsibilities(self, points: Tensor) -> Tensor:
        """P(z = k | u), the weights in Eq. (16), without gradient: (..., d) -> (..., K)."""
        return self._terms(points.detach())[1]

    def direction(self, points: Tensor) -> Tensor:
        """h(u) = GMM'(u) / GMM(u) = -sum_k Sigma_k^-1 (u - mu_k) P(z = k | u), Eqs. (14) and (16): (..., d) -> (..., d).

        Computed as the derivative of log GMM(u), whose closed form in `kernels.gmm` is Eq. (16). The result has no gradient.
        """
        with torch.enable_grad():
            inner = points.detach().clone().requires_grad_()
            (h,) = torch.autograd.grad(self(inner).sum(), inner)
        return h

    def _terms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """log GMM(u) and P(z = k | u): (..., d) -> (...), (..., K)."""
        self._must_be_started()
        k, d = self.means.shape
        if points.shape[-1] != d:
            raise ParameterError(f"features {tuple(points.shape)} for a mixture in {d} dimensions: expected (..., {d})")
        density, responsibilities = gmm(points.reshape(-1, d), self.log_weights, self.means, self.factors)
        return density.view(points.shape[:-1]), responsibilities.view(*points.shape[:-1], k)

    @torch.no_grad()
    def start(self, points: Tensor, seed: int = 0) -> Mixture:
        """Initialize by K-means: each component gets the weight, mean and covariance of its cluster. (n, d) with n >= K.

        Raises:
            ParameterError: fewer points than components, or points of another dimension.
            AdcoreError: some points are NaN or infinite.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        points = self._checked(points)
        k = len(self.means)
        if len(points) < k:
            raise ParameterError(f"{len(points)} points cannot start {k} components: give at least as many points")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters are handled below
            labels = KMeans(k, n_init=1, random_state=seed).fit(points.cpu().numpy()).labels_
        hard = F.one_hot(torch.from_numpy(labels).long(), k).double().to(points.device)                     # (n, K)
        # A component without points gets the mean of all features, their average width and nearly no weight.
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
            AdcoreError: the mixture has not been started, or some points are NaN or infinite.
        """
        points = self._checked(points)
        density, responsibilities = self._terms(points)
        self._blend(*self._statistics(points, responsibilities.double()), 1.0)
        return float(density.double().mean())

    def fit(self, points: Tensor, *, seed: int = 0, most: int = 100, tolerance: float = 1e-3) -> list[float]:
        """`start`, then EM steps until the mean log-likelihood gains less than `tolerance`, at most `most` steps.

        Returns the mean log-likelihood before each step.
        """
        self.start(points, seed)
        gained: list[float] = []
        while len(gained) < most and (len(gained) < 2 or gained[-1] - gained[-2] > tolerance):
            gained.append(self.em_step(points))
        return gained

    @torch.no_grad()
    def update(self, points: Tensor, gamma: float | None = None) -> float:
        """One step of stepwise (online) EM on a batch (n, d): S <- (1 - gamma) S + gamma * means over the batch.

        gamma  step size in (0, 1]; None takes (t + 2)^-exponent at step t = 0, 1, ... With a constant step the mixture follows
               drifting features, with a falling step it converges.

        Returns the batch's mean log-likelihood before the step.

        Raises:
            AdcoreError: the mixture has not been started, or some points are NaN or infinite.
            ParameterError: a gamma outside (0, 1], or no points.
        """
        if gamma is None:
            gamma = (int(self.steps) + 2) ** -self.exponent
        if not 0 < gamma <= 1:
            raise ParameterError(f"gamma {gamma} of online EM must be above 0 and at most 1")
        points = self._checked(points)
        density, responsibilities = self._terms(points)
        self._blend(*self._statistics(points, responsibilities.double()), gamma)
        self.steps += 1
        return float(density.double().mean())

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Points drawn from the mixture: (count, d)."""
        self._must_be_started()
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)             # (n,)
        noise = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, device=self.means.device, generator=generator)
        # y = (u - mu) U is standard normal, hence u = mu + y U^-1.
        offset = torch.linalg.solve_triangular(self.factors[which], noise[:, None], upper=True, left=False)[:, 0]
        return self.means[which] + offset

    def _statistics(self, points: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over n points of r, r u and r u u^T, in float64: (K,), (K, d), (K, d, d)."""
        s0, s1, s2 = (torch.zeros_like(x) for x in (self.s0, self.s1, self.s2))
        for u, r in zip(points.split(ROWS), responsibilities.split(ROWS), strict=True):
            u = u.double()
            s0 += r.sum(0)
            s1 += r.T @ u
            for k in range(len(s2)):
                s2[k].addmm_((r[:, k, None] * u).T, u)
        return s0 / len(points), s1 / len(points), s2 / len(points)

    def _blend(self, s0: Tensor, s1: Tensor, s2: Tensor, gamma: float) -> None:
        """S <- (1 - gamma) S + gamma * batch means, then the parameters from S (M step)."""
        for kept, new in ((self.s0, s0), (self.s1, s1), (self.s2, s2)):
            kept.mul_(1 - gamma).add_(new, alpha=gamma)
        total = self.s0.sum()
        alive = self.s0 > EMPTY * total                                                                     # (K,)
        weights = self.s0.clamp_min(EMPTY * total)
        means = self.s1 / weights[:, None]
        covariances = self.s2 / weights[:, None, None] - means[:, :, None] * means[:, None]
        variance = self.s2.sum(0).diagonal().sum() / total - (self.s1.sum(0) / total).square().sum()
        ridge = (self.floor * variance / means.shape[1]).clamp_min(SMALLEST)
        covariances.diagonal(dim1=1, dim2=2).add_(ridge)
        self._set(alive, weights / weights.sum(), means, _positive_definite(covariances, ridge))

    def _set(self, alive: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set the parameters; a component that is not alive keeps its mean and covariance."""
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
            raise AdcoreError(f"{int(wrong.sum())} of {len(points)} features for the mixture are NaN or infinite, the first in "
                              f"row {int(wrong.nonzero()[0])}: check for a diverging network or a division by zero")
        return points.detach().to(self.means.device, self.means.dtype)

    def _must_be_started(self) -> None:
        if not self.started:
            raise AdcoreError("the mixture has no components yet: call start(features) or fit(features) first")


def _positive_definite(covariances: Tensor, ridge: Tensor) -> Tensor:
    """The matrices, with eigenvalues raised to the ridge where rounding has left a matrix indefinite."""
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
