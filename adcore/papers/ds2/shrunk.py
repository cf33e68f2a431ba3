"""Principal axes of many small clouds at once, and how far Ledoit and Wolf shrink the covariance along them.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate Analysis
2004, Sec. 3.3.

    cloud (P, n, D) -> mean, axes -> coordinates z -> shrinkage

    paper        code         shape       meaning
                 axes         (P, D, d)   the d directions in which a cloud varies most, as columns
    lambda       variances    (P, d)      along them, 1 / n, the largest first
    m_n          width        (P,)        mean of lambda
    d_n^2        delta        (P,)        mean_i (lambda_i - m_n)^2
    b_n^2        beta         (P,)        (mean_k |z_k|^4 - sum_i lambda_i^2) / (d n), at most delta
    b^2 / d^2    shrinkage    (P,)        S = (1 - shrinkage) diag(lambda) + shrinkage m_n I

The formulas are written for a covariance that is diagonal, as it is along its own axes. A point enters b_n by its length alone
(the published sum over all pairs of coordinates, sum_ij z_ki^2 z_kj^2, is |z_k|^4), so it can be added up in any portions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError

EPSILON = torch.finfo(torch.float64).eps


def principal_axes(x: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """PCA of each cloud (P, n, D) float64 by itself -> mean (P, D), variances (P, d), axes (P, D, d).

    Axes are orthonormal and of either sign; those along which a cloud has no extent are zero.

    Raises:
        ParameterError: dims above min(n - 1, D), which n points in D dimensions cannot span.
    """
    n, dim = x.shape[1:]
    if not 1 <= dims <= min(n - 1, dim):
        raise ParameterError(f"{dims} principal axes of {n} points in {dim} dimensions: take 1 to {min(n - 1, dim)}")
    mean = x.mean(1)
    x = x - mean[:, None]
    smallest = rounding(mean, n)
    if n >= dim:
        return mean, *axes_of(x.mT @ x / n, dims, smallest)
    # The n x n matrix has the same variances and is smaller; its vectors are the points' coordinates up to scale.
    variances, vectors = axes_of(x @ x.mT / n, dims, smallest)
    length = (n * variances).sqrt()[:, None]                                                               # (P, 1, d)
    return mean, variances, torch.where(length > 0, x.mT @ vectors / length, 0)


def axes_of(covariances: Tensor, dims: int, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (P, d) and their vectors (P, D, d) of matrices (P, D, D), both zero where the eigenvalue is no more
    than the rounding of `smallest` (P,) or of the largest."""
    values, vectors = torch.linalg.eigh(covariances)
    values, vectors = values[:, -dims:].flip(1), vectors[:, :, -dims:].flip(2)
    there = values > torch.maximum(smallest, len(covariances[0]) * EPSILON * values[:, 0])[:, None]        # (P, d)
    return values * there, vectors * there[:, None]


def rounding(mean: Tensor, n: int) -> Tensor:
    """Variance (P,) that equal points (P, D) seem to have once their mean, summed over n of them, is taken off."""
    return (n * EPSILON)**2 * mean.square().sum(1)


def ledoit_wolf(variances: Tensor, fourth: Tensor, n: int) -> Tensor:
    """Shrinkage (P,) in [0, 1] of n points' covariance.

    variances  (P, d) along the principal axes
    fourth     (P,) mean of |z_k|^4 over the points
    """
    d = variances.shape[1]
    delta = (variances - variances.mean(1, keepdim=True)).square().mean(1)
    beta = (fourth - variances.square().sum(1)) / (d * n)
    return torch.where(delta > 0, torch.minimum(beta, delta).clamp_min(0) / delta, 0)
