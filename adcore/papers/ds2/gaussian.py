"""The Gaussian density of patches, by which DS2 and CutPaste localize.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining", WACV 2024, as its
published evaluation does it.

    features (n, N, D) -> PCA to d numbers -> covariance, shrunk -> distance of a patch to the mean (m, N)

    symbol      code         shape       meaning
    mu          mean         (P, D)      P = N where every position has a Gaussian of its own, 1 where one serves all
    V           axes         (P, D, d)   the d directions in which normal patches vary most
    s           variances    (P, d)      along them, after Ledoit and Wolf's shrinkage

PCA and covariance come from the same patches: in the coordinates z = V^T (x - mu) their covariance is diagonal, and shrinking
it towards a multiple of the identity leaves it so. The Mahalanobis distance is then sqrt(sum_i z_i^2 / s_i), and no matrix is
left to factorise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adcore.errors import AdcoreError, ParameterError
from adcore.papers.ds2.shrunk import axes_of, ledoit_wolf, principal_axes, rounding

Stream = Callable[[], Iterable[Tensor]]
BUFFERS = {"mean": 2, "axes": 3, "variances": 2, "shrinkage": 1}  # and how many indices each has


def published_dims(images: int, *, aligned: bool) -> int:
    """Numbers that DS2's evaluation keeps of a patch: 500 where one Gaussian serves all positions, 200 where each has its own,
    and 50 where there are too few images for that (toothbrush has 60)."""
    return 500 if not aligned else 200 if images > 200 else 50


class GaussianDensity(nn.Module):
    """PCA and a Gaussian with Ledoit-Wolf covariance of patch features, one for each position or one for all.

    dims         d; None takes `published_dims`, or as many as the patches can span where that is less
    aligned      True for a Gaussian at every position (objects that lie still), False for one of all patches (textures)
    dtype        of the parameters and of scores; fitting is float64 throughout
    chunk_bytes  about what to take of memory beside features and parameters; changes speed, not the result

    Parameters are buffers, whose shapes follow what was fitted or loaded; the axes, P D d numbers, are most of them (1.3 GB in
    float32 for 57 x 57 positions, 512 features and 200 dims). An axis along which the patches have no extent does
    not count: where all images agree to the last digit, every patch scores 0.

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

        features  a tensor, perhaps memory-mapped; where one Gaussian serves all positions also a function that yields parts
                  (b, N, D) of it, which then never exists as a whole. It is called twice: the shrinkage needs the axes

        Raises:
            ParameterError: features of another shape, or too few of them for so many dims.
            AdcoreError: NaN or infinity among the features.
        """
        if not self.aligned:
            return self._keep(*self._pooled((lambda: [features]) if isinstance(features, Tensor) else features))
        if not isinstance(features, Tensor):
            raise ParameterError("a Gaussian at every position needs the features of all images at once: give a tensor "
                                 "(n, N, D), or set aligned=False")
        n, positions, dim = _shape(features)
        d = self._dims(n, dim)
        step = self._fitting(8 * (4 * n * dim + 3 * min(n, dim)**2 + dim * d))
        parts = [self._each(self._taken(features[:, left:left + step], torch.float64, position=left), d)
                 for left in range(0, positions, step)]
        return self._keep(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def score(self, features: Tensor) -> Tensor:
        """Mahalanobis distances of patches (m, N, D) to the normal ones -> (m, N).

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
        step = self._fitting(2 * m * (dim + d) * scores.element_size())
        for left in range(0, n, step):
            x = self._taken(features[:, left:left + step], scores.dtype, position=left)
            here = slice(left, left + step) if self.aligned else slice(None)
            z = (x - self.mean[here]).transpose(0, 1) @ self.axes[here]                                     # (P, m, d)
            scores[:, left:left + step] = (z.square_() @ precisions[here, :, None]).squeeze(2).sqrt().T
        return scores

    def _each(self, x: Tensor, d: int) -> tuple[Tensor, ...]:
        """A Gaussian at each of some positions, (n, P, D) float64."""
        x = x.transpose(0, 1).contiguous()
        mean, variances, axes = principal_axes(x, d)
        z = (x - mean[:, None]) @ axes                                                                      # (P, n, d)
        return _shrunk(mean, axes, variances, z.square_().sum(2).square_().mean(1), len(x[0]))

    def _pooled(self, features: Stream) -> tuple[Tensor, ...]:
        """One Gaussian of all patches, P = 1, from sums over portions of them."""
        count = 0
        for x in self._portions(features):
            if not count:
                # Sums are taken about the first portion's mean: about zero, a mean far from it costs the covariance digits.
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
        """Patches (r, D) in float64, as many at a time as working memory allows."""
        seen, dim = 0, None
        for part in features():
            b, positions, d = _shape(part)
            if dim not in (None, d):
                raise ParameterError(f"features {tuple(part.shape)} after others of {dim} dimensions: they must agree")
            dim = d
            rows = self._fitting(8 * 4 * d)
            images, columns = max(1, rows // positions), min(rows, positions)
            for top in range(0, b, images):
                for left in range(0, positions, columns):
                    some = part[top:top + images, left:left + columns]
                    yield self._taken(some, torch.float64, seen + top, left).flatten(0, 1)
            seen += b

    def _taken(self, features: Tensor, dtype: torch.dtype, image: int = 0, position: int = 0) -> Tensor:
        """Features (b, P, D) on the density's device, refused unless finite; the first has these numbers."""
        wrong = ~features.isfinite().all(2)
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            raise AdcoreError(f"features for the Gaussian density hold NaN or infinity, first in image {image + first[0]} at "
                              f"position {position + first[1]}: look for a diverging network or a division by zero")
        return features.to(self.mean.device, dtype)

    def _dims(self, patches: int, dim: int) -> int:
        most = min(patches - 1, dim)
        if most < 1 or (self.dims or 0) > most:
            raise ParameterError(f"a Gaussian density in {self.dims or 1} dims of {patches} patches in {dim} dimensions"
                                 f"{' at each position' if self.aligned else ''}: they span at most {most}; lower dims or give "
                                 f"more images")
        return self.dims or min(most, published_dims(patches, aligned=self.aligned))

    def _fitting(self, each: int) -> int:
        """How many things of that many bytes the working memory holds."""
        return max(1, self.chunk_bytes // each)

    def _keep(self, *fitted: Tensor) -> GaussianDensity:
        for name, values in zip(BUFFERS, fitted, strict=True):
            setattr(self, name, values.to(self.mean.dtype))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the shapes that were saved; torch then copies the numbers."""
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
    """What is kept of a fit, in the order of BUFFERS."""
    shrinkage = ledoit_wolf(variances, fourth, n)
    shrunk = torch.lerp(variances, variances.mean(1, keepdim=True), shrinkage[:, None])
    return mean, axes, torch.where(variances > 0, shrunk, 0), shrinkage
