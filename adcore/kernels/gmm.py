"""Log-density and responsibilities of a Gaussian mixture with full covariances, and the gradient in closed form.

    paper      code                shape       meaning
    u          points              (n, d)
    log pi     log_weights         (K,)
    mu         means               (K, d)
    U          factors             (K, d, d)   upper triangular, U U^T = Sigma^-1, as scikit-learn's precisions_cholesky_
    y          whitened            (n, K, d)   |y_k| is the Mahalanobis distance to component k
    P(z = k)   responsibilities    (n, K)
    h          direction           (n, d)      gradient of the log-density

    y_k      = (u - mu_k) U_k
    log GMM  = logsumexp_k [log pi_k + sum_i log U_k[i, i] - d/2 log(2 pi) - |y_k|^2 / 2]
    h        = -sum_k Sigma_k^-1 (u - mu_k) P(z = k | u) = -sum_k P(z = k | u) y_k U_k^T        (artola2024, Eq. 16)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.errors import ParameterError
from adcore.kernels.choice import use_plain, use_triton
from adcore.kernels.cpu import gmm as fast


def plain_gmm(points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density (n,), responsibilities (n, K) and h (n, d); the whitened points need K times the memory of the points.

    >>> plain_gmm(torch.tensor([[1.0]]), torch.zeros(1), torch.tensor([[3.0]]), torch.ones(1, 1, 1))[2]     # toward the mean
    tensor([[2.]])
    """
    whitened = torch.einsum("nkd,kde->nke", points[:, None] - means, factors)                               # (n, K, d)
    joint = log_constants(log_weights, factors) - whitened.square().sum(2) / 2                              # (n, K)
    log_density = joint.logsumexp(1)                                                                        # (n,)
    responsibilities = (joint - log_density[:, None]).exp()                                                 # (n, K)
    direction = -torch.einsum("nk,nke,kde->nd", responsibilities, whitened, factors)                        # Eq. (16)
    return log_density, responsibilities, direction


def gmm(points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor, *,
        chunk_bytes: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-density (n,) and responsibilities (n, K) of points under a mixture.

    points       (n, d) float32 or float64; half precision is computed in float32, also under autocast
    log_weights  (K,), -inf for a component that is switched off
    means        (K, d)
    factors      (K, d, d) upper triangular Cholesky factors of the precision matrices; entries below the diagonal are ignored
    chunk_bytes  limit on the whitened points in memory at a time (in torch; Triton stores none); changes speed and memory, not
                 the result

    The log-density is differentiable once, with respect to the points only: its gradient is h(u) of Eq. (16). Responsibilities
    have no gradient.

    >>> log_density, responsibilities = gmm(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> log_density, responsibilities                                       # -log(2 pi)
    (tensor([-1.8379]), tensor([[1.]]))

    Raises:
        ParameterError: shapes that do not fit together, or a parameter of the mixture that requires a gradient.
    """
    d, k = points.shape[-1], len(log_weights)
    if points.ndim != 2 or log_weights.shape != (k,) or means.shape != (k, d) or factors.shape != (k, d, d):
        raise ParameterError(f"points {tuple(points.shape)}, log weights {tuple(log_weights.shape)}, means "
                             f"{tuple(means.shape)} and factors {tuple(factors.shape)} are not (n, d), (K,), (K, d), (K, d, d)")
    if log_weights.requires_grad or means.requires_grad or factors.requires_grad:
        raise ParameterError("the mixture's parameters get no gradient from gmm: detach them")
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    log_weights, means, factors = (x.to(points.dtype) for x in (log_weights, means, factors.triu()))
    graded = points.requires_grad and torch.is_grad_enabled()
    return _Mixture.apply(points, log_weights, means, factors, chunk_bytes, graded)


def log_constants(log_weights: Tensor, factors: Tensor) -> Tensor:
    """What component k contributes at every point: log pi_k + log |Sigma_k|^-1/2 - d/2 log(2 pi), (K,)."""
    return log_weights + factors.diagonal(dim1=1, dim2=2).log().sum(1) - factors.shape[-1] / 2 * math.log(2 * math.pi)


class _Mixture(torch.autograd.Function):
    """h is computed in the same pass as the log-density, and is all that the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor, chunk_bytes: int | None,
                graded: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast(points.device.type, enabled=False):
            found = _computed(points, log_weights, means, factors, chunk_bytes, graded)
        log_density, responsibilities, direction = found
        ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(responsibilities)
        return log_density, responsibilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return weight[:, None] * direction, None, None, None, None, None


def _computed(points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor, chunk_bytes: int | None,
              graded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain_gmm`, by the selected backend; h is empty unless `graded`."""
    if use_plain():
        return plain_gmm(points, log_weights, means, factors)
    constants = log_constants(log_weights, factors)
    if use_triton(points, "gmm"):
        from adcore.kernels.triton import gmm as fused
        if fused.takes(points, means):
            return fused.gmm(points, constants, means, factors, graded)
    return fast.gmm(points, constants, means, factors, graded, chunk_bytes)
