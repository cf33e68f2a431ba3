"""The Gaussian density of patch features and its Mahalanobis distance, with which DS2 and CutPaste localize.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining" (DS2), WACV 2024, as
in its published evaluation. Shrinkage: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", Journal of Multivariate Analysis 2004, Sec. 3.3.

    features (n, N, D) -> PCA to d dimensions -> covariance, shrunk -> Mahalanobis distance of each patch (m, N)

    paper        code         shape       meaning
    mu           mean         (P, D)      P = N if every position has a Gaussian of its own, P = 1 if all share one
    V            axes         (P, D, d)   principal axes: the d directions of largest variance of normal patches, as columns
    lambda       variances    (P, d)      variances along the axes, the largest first; kept after shrinkage
    d_n^2        delta        (P,)        mean_i (lambda_i - m_n)^2, with m_n the mean of lambda
    b_n^2        beta         (P,)        (mean_k |z_k|^4 - sum_i lambda_i^2) / (d n), at most delta
    b^2 / d^2    shrinkage    (P,)        S = (1 - shrinkage) diag(lambda) + shrinkage m_n I

PCA and covariance use the same patches. In the coordinates z = V^T (x - mu) the covariance is therefore diagonal, and it stays
diagonal when it is shrunk towards a multiple of the identity. The Mahalanobis distance is then sqrt(sum_i z_i^2 / s_i) with s
the shrunk variances, and no matrix has to be inverted.

Ledoit and Wolf's formulas are written here for this diagonal covariance. A point enters b_n only by its length: the published
sum over all pairs of coordinates, sum_ij z_ki^2 z_kj^2, is |z_k|^4. So the sum can be taken over the points in any portions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adcore.errors import AdcoreError, ParameterError

Stream = Callable[[], Iterable[Tensor]]
BUFFERS = {"mean": 2, "axes": 3, "variances": 2, "shrinkage": 1}  # name -> number of its dimensions
EPSILON = torch.finfo(torch.float64).eps


def published_dims(images: int, *, aligned: bool) -> int:
    """PCA dimensions in DS2's evaluation: 500 if all positions share one Gaussian, 200 if each has its own, and 50 if there are
    too few images for 200 (toothbrush has 60)."""
    return 500 if not aligned else 200 if images > 200 else 50


class GaussianDensity(nn.Module):
    """PCA and a Gaussian with Ledoit-Wolf covariance of patch features, one per position or one for all positions.

    dims         d; None means `published_dims`, or fewer if the patches span fewer dimensions
    aligned      True for a Gaussian at every position (aligned objects), False for one over all patches (textures)
    dtype        of the parameters and scores; fitting always uses float64
    chunk_bytes  working memory beside features and parameters, approximately; changes speed, not the result

    Parameters are buffers whose shapes follow what was fitted or loaded. The axes, P D d numbers, are the largest (1.3 GB in
    float32 for 57 x 57 positions, 512 features and 200 dimensions). Axes without variance are ignored: where all images
    agree to the last digit, every patch scores 0.

    Raises:
        ParameterError: dims or chunk_bytes below 1.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    shrinkage: Tensor

    def __init__(self, dims: int | None = None, *, aligned: bool = True, dtype: torch.dtype = torch.float32,
                 chunk_bytes: int = 2**26) -> None:
        super().__init__()
        if (dims is not None and dims < 1) or chunk_bytes < 1:
            raise ParameterError(f"dims {dims} and chunk_bytes {chunk_bytes} of a Gaussian density must be at least 1")
        self.dims, self.aligned, self.chunk_bytes = dims, aligned, chunk_bytes
        for name, indices in BUFFERS.items():
            self.register_buffer(name, torch.zeros((0,) * indices, dtype=dtype))

    @property
    def fitted(self) -> bool:
        return len(self.mean) > 0

    @torch.no_grad()
    def fit(self, features: Tensor | Stream) -> GaussianDensity:
        """Fit to patches of normal images (n, N, D), on the density's own device.

        features  a tensor, which may be memory-mapped. If all positions share one Gaussian, also a function that yields
                  parts (b, N, D), so that the whole tensor never exists. It is called twice: the shrinkage needs the axes

        Raises:
            ParameterError: features of another shape, or too few of them for `dims`.
            AdcoreError: NaN or infinity among the features.
        """
        if not self.aligned:
            return self._keep(*self._pooled((lambda: [features]) if isinstance(features, Tensor) else features))
        if not isinstance(features, Tensor):
            raise ParameterError("a Gaussian at every position needs the features of all images at once: give a tensor "
                                 "(n, N, D), or set aligned=False")
        n, positions, dim = _shape(features)
        d = self._dims(n, dim)
        step = self._chunk(8 * (4 * n * dim + 3 * min(n, dim)**2 + dim * d))
        parts = [self._each(self._checked(features[:, left:left + step], torch.float64, position=left), d)
                 for left in range(0, positions, step)]
        return self._keep(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def score(self, features: Tensor) -> Tensor:
        """Mahalanobis distances of patches to the Gaussian of normal ones: (m, N, D) -> (m, N).

        Raises:
            AdcoreError: called before `fit`, or NaN or infinity among the features.
            ParameterError: features of another shape.
        """
        if not self.fitted:
            raise AdcoreError("the Gaussian density has no mean yet: call fit(features) first")
        positions, dim, d = self.axes.shape
        m, n, given = _shape(features)
        if given != dim or (self.aligned and n != positions):
            raise ParameterError(f"features {tuple(features.shape)} for a Gaussian density of (n, "
                                 f"{positions if self.aligned else 'N'}, {dim}): give as many positions and dimensions")
        precisions = torch.where(self.variances > 0, 1 / self.variances, 0)
        scores = self.mean.new_empty(m, n)
        step = self._chunk(2 * m * (dim + d) * scores.element_size())
        for left in range(0, n, step):
            x = self._checked(features[:, left:left + step], scores.dtype, position=left)
            here = slice(left, left + step) if self.aligned else slice(None)
            z = (x - self.mean[here]).transpose(0, 1) @ self.axes[here]                                     # (P, m, d)
            scores[:, left:left + step] = (z.square_() @ precisions[here, :, None]).squeeze(2).sqrt().T
        return scores

    def _each(self, x: Tensor, d: int) -> tuple[Tensor, ...]:
        """A Gaussian at each position: (n, P, D) float64."""
        x = x.transpose(0, 1).contiguous()
        mean, variances, axes = principal_axes(x, d)
        z = (x - mean[:, None]) @ axes                                                                      # (P, n, d)
        return _shrunk(mean, axes, variances, z.square_().sum(2).square_().mean(1), len(x[0]))

    def _pooled(self, features: Stream) -> tuple[Tensor, ...]:
        """One Gaussian over all patches, P = 1, from sums over portions of them."""
        count = 0
        for x in self._portions(features):
            if not count:
                # Subtract the first portion's mean: with a mean far from zero, the covariance would lose digits.
                origin = x.mean(0)                                                                          # (D,)
                total, square = torch.zeros_like(origin), origin.new_zeros(len(origin), len(origin))
            x = x - origin
            count, total = count + len(x), total + x.sum(0)
            square.addmm_(x.T, x)
        if not count:
            raise ParameterError("a Gaussian density of no features: the function must yield some, (b, N, D) at a time")
        d = self._dims(count, len(origin))
        mean = origin + total / count
        variances, axes = axes_of((square / count - total.outer(total) / count**2)[None], d, rounding(mean[None], count))
        lengths, again = mean.new_zeros(1), 0
        for x in self._portions(features):
            lengths += ((x - mean) @ axes[0]).square_().sum(1).square_().sum()
            again += len(x)
        if again != count:
            raise ParameterError(f"the function that yields features gave {count} patches and then {again}: it must yield the "
                                 f"same ones each time it is called")
        return _shrunk(mean[None], axes, variances, lengths / count, count)

    def _portions(self, features: Stream) -> Iterator[Tensor]:
        """Portions of patches (r, D) in float64, as large as the working memory allows."""
        seen, dim = 0, None
        for part in features():
            b, positions, d = _shape(part)
            if dim not in (None, d):
                raise ParameterError(f"features {tuple(part.shape)} after others of {dim} dimensions: they must agree")
            dim = d
            rows = self._chunk(8 * 4 * d)
            images, columns = max(1, rows // positions), min(rows, positions)
            for top in range(0, b, images):
                for left in range(0, positions, columns):
                    some = part[top:top + images, left:left + columns]
                    yield self._checked(some, torch.float64, seen + top, left).flatten(0, 1)
            seen += b

    def _checked(self, features: Tensor, dtype: torch.dtype, image: int = 0, position: int = 0) -> Tensor:
        """Features (b, P, D) on the density's device; raises unless finite. `image`, `position`: indices of the first."""
        wrong = ~features.isfinite().all(2)
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            raise AdcoreError(f"features for the Gaussian density hold NaN or infinity, first in image {image + first[0]} at "
                              f"position {position + first[1]}: look for a diverging network or a division by zero")
        return features.to(self.mean.device).to(dtype)  # in this order: not every device has float64

    def _dims(self, patches: int, dim: int) -> int:
        most = min(patches - 1, dim)
        if most < 1 or (self.dims or 0) > most:
            raise ParameterError(f"a Gaussian density in {self.dims or 1} dims of {patches} patches in {dim} dimensions"
                                 f"{' at each position' if self.aligned else ''}: they span at most {most}; lower dims or give "
                                 f"more images")
        return self.dims or min(most, published_dims(patches, aligned=self.aligned))

    def _chunk(self, each: int) -> int:
        """How many items of `each` bytes fit into the working memory, at least 1."""
        return max(1, self.chunk_bytes // each)

    def _keep(self, *fitted: Tensor) -> GaussianDensity:
        for name, values in zip(BUFFERS, fitted, strict=True):
            setattr(self, name, values.to(self.mean.dtype))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give the buffers the saved shapes; torch then copies the values."""
        for name in BUFFERS:
            if prefix + name in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _shape(features: Tensor) -> tuple[int, int, int]:
    if features.ndim != 3 or not features.numel():
        raise ParameterError(f"features {tuple(features.shape)} for a Gaussian density: expected (n, N, D), none of them 0")
    n, positions, dim = features.shape
    return n, positions, dim


def _shrunk(mean: Tensor, axes: Tensor, variances: Tensor, fourth: Tensor, n: int) -> tuple[Tensor, ...]:
    """The values to keep, in the order of BUFFERS."""
    shrinkage = ledoit_wolf(variances, fourth, n)
    shrunk = torch.lerp(variances, variances.mean(1, keepdim=True), shrinkage[:, None])
    return mean, axes, torch.where(variances > 0, shrunk, 0), shrinkage


# Principal axes and shrinkage.

def principal_axes(x: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """PCA of each of P sets of n points: (P, n, D) float64 -> mean (P, D), variances (P, d), axes (P, D, d).

    Axes are orthonormal, with either sign. Axes without variance are zero.

    Raises:
        ParameterError: dims above min(n - 1, D), the most that n points in D dimensions span.
    """
    n, dim = x.shape[1:]
    if not 1 <= dims <= min(n - 1, dim):
        raise ParameterError(f"{dims} principal axes of {n} points in {dim} dimensions: take 1 to {min(n - 1, dim)}")
    mean = x.mean(1)
    x = x - mean[:, None]
    smallest = rounding(mean, n)
    if n >= dim:
        return mean, *axes_of(x.mT @ x / n, dims, smallest)
    # The n x n matrix is smaller and has the same variances; its eigenvectors are the points' coordinates up to scale.
    variances, vectors = axes_of(x @ x.mT / n, dims, smallest)
    length = (n * variances).sqrt()[:, None]                                                               # (P, 1, d)
    return mean, variances, torch.where(length > 0, x.mT @ vectors / length, 0)


def axes_of(covariances: Tensor, dims: int, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """The d largest eigenvalues and their vectors: (P, D, D) -> (P, d), (P, D, d).

    Both are zero where an eigenvalue is not above rounding error: `smallest` (P,), or that of the largest eigenvalue.
    """
    values, vectors = torch.linalg.eigh(covariances)
    values, vectors = values[:, -dims:].flip(1), vectors[:, :, -dims:].flip(2)
    there = values > torch.maximum(smallest, len(covariances[0]) * EPSILON * values[:, 0])[:, None]        # (P, d)
    return values * there, vectors * there[:, None]


def rounding(mean: Tensor, n: int) -> Tensor:
    """Rounding error of variances: what n equal points seem to have after subtracting their mean. (P, D) -> (P,)."""
    return (n * EPSILON)**2 * mean.square().sum(1)


def ledoit_wolf(variances: Tensor, fourth: Tensor, n: int) -> Tensor:
    """Shrinkage (P,) in [0, 1] of the covariance of n points.

    variances  (P, d) along the principal axes
    fourth     (P,) mean of |z_k|^4 over the points
    """
    d = variances.shape[1]
    delta = (variances - variances.mean(1, keepdim=True)).square().mean(1)
    beta = (fourth - variances.square().sum(1)) / (d * n)
    return torch.where(delta > 0, torch.minimum(beta, delta).clamp_min(0) / delta, 0)
