"""Linear color transport: a photograph takes the colors of another image.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement
Sec. 1 and Fig. 1. The optimal map is the one of Pitie and Kokaram, "The Linear Monge-Kantorovitch Linear Colour Mapping for
Example-Based Colour Transfer", CVMP 2007.

    image -> mean and covariance of its colors -> affine map of colors -> image

    paper             code          shape             meaning
    u                 images        (B, 3, H, W)      natural photographs
    v                 target        (1 or B, 3, H, W) images whose colors are taken
    mu, Sigma         ColorMoments  (B, 3), (B, 3, 3) mean and covariance of an image's colors, or of a set of images
    T                 color_map     (B, 3, 3)         t(x) = T (x - mu_u) + mu_v
    rho               rho           scalar or (B,)    interpolation: x_rho = (1 - rho) x + rho t(x)

`diagonal` scales each channel by itself. `monge_kantorovich` is the optimal transport map between the two Gaussians with
these moments: it reaches the target's whole covariance, not only its variances, and moves the colors as little as possible.

Colors are in [0, 1]. A transported color may leave this range; it is clipped only on request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adcore.errors import DataError, ParameterError, did_you_mean
from adcore.kernels import color as kernels

TRANSPORTS = ("diagonal", "monge_kantorovich")

# The source's covariance is inverted, so its eigenvalues have a lower bound: this fraction of their sum, and at least the
# variance of a standard deviation of 1e-4 (a fortieth of one step of 8 bits). A gray or single-colored source has only
# rounding noise in some directions; without the bound that noise would be stretched to the target's spread.
RELATIVE_FLOOR = 1e-6
ABSOLUTE_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class ColorMoments:
    """Mean and covariance of colors, for each image of a batch or for a set of images together (`pool`).

    mean        (B, 3), or (3,) for one that serves every image
    covariance  (B, 3, 3) or (3, 3), divided by the number of pixels
    pixels      (B,) or (), the number of pixels: the weight in `pool`

    `moments[index]` selects images, as indexing a tensor does.

        >>> moments = ColorMoments(torch.zeros(4, 3), torch.eye(3).expand(4, 3, 3), torch.ones(4))
        >>> moments[0].mean.shape, moments[1:].mean.shape
        (torch.Size([3]), torch.Size([3, 3]))

    Raises:
        ParameterError: other shapes.
    """

    mean: Tensor
    covariance: Tensor
    pixels: Tensor

    def __post_init__(self) -> None:
        batch = tuple(self.mean.shape[:-1])
        if len(batch) > 1 or self.mean.shape != (*batch, 3) or self.covariance.shape != (*batch, 3, 3) \
                or self.pixels.shape != batch:
            raise ParameterError(f"moments take mean (B, 3), covariance (B, 3, 3) and pixels (B,), or each without B, not "
                                 f"{_shape(self.mean)}, {_shape(self.covariance)} and {_shape(self.pixels)}")

    def __getitem__(self, index: Any) -> ColorMoments:
        return ColorMoments(self.mean[index], self.covariance[index], self.pixels[index])

    def to(self, *args: Any, **kwargs: Any) -> ColorMoments:
        """Moments on another device or in another dtype; arguments as for `Tensor.to`."""
        return ColorMoments(*(part.to(*args, **kwargs) for part in (self.mean, self.covariance, self.pixels)))


def color_moments(images: Tensor, mask: Tensor | None = None) -> ColorMoments:
    """Mean and covariance of each image's colors, in one pass over the pixels.

    images  (B, 3, H, W), any floating dtype; half precision is summed in float32
    mask    (B, H, W) bool: only pixels where it is True count

        >>> black_and_white = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)      # two gray pixels
        >>> moments = color_moments(black_and_white)
        >>> moments.mean
        tensor([[0.5000, 0.5000, 0.5000]])
        >>> moments.covariance[0, 0]                                           # fully correlated channels
        tensor([0.2500, 0.2500, 0.2500])

    Raises:
        ParameterError: another shape or dtype.
        DataError: an image with NaN or infinite values, or with an empty mask.
    """
    _check_images(images, "images")
    if mask is not None:
        _check_mask(mask, images)
    moments = ColorMoments(*kernels.moments(images, mask))
    _check_finite(moments, "image")
    return moments


def pool(parts: Iterable[ColorMoments]) -> ColorMoments:
    """Moments of all pixels of several images together, for example of a data set read batch by batch.

        >>> black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
        >>> together = pool(color_moments(image) for image in (black, white))
        >>> together.mean, int(together.pixels)
        (tensor([0.5000, 0.5000, 0.5000]), 8)

    Returns mean (3,), covariance (3, 3) and pixels ().

    Raises:
        ParameterError: no moments are given.
    """
    several = list(parts)
    if not several or not sum(part.mean.numel() for part in several):
        raise ParameterError("there are no moments to pool: give those of at least one image")
    mean = torch.cat([part.mean.reshape(-1, 3) for part in several])
    covariance = torch.cat([part.covariance.reshape(-1, 3, 3) for part in several])
    pixels = torch.cat([part.pixels.reshape(-1) for part in several])
    weight = (pixels / pixels.sum()).to(mean.dtype)
    pooled = (weight[:, None] * mean).sum(0)
    offset = mean - pooled                                                      # (B, 3)
    spread = covariance + offset[:, :, None] * offset[:, None, :]               # within the images and between them
    return ColorMoments(pooled, (weight[:, None, None] * spread).sum(0), pixels.sum())


def color_map(source: ColorMoments, target: ColorMoments, method: str = "monge_kantorovich") -> Tensor:
    """The linear part T of the transport t(x) = T (x - mu_u) + mu_v (supplement Sec. 1), symmetric and positive semidefinite.

        diagonal            T = diag(sigma_v / sigma_u)
        monge_kantorovich   T = Su^-1/2 (Su^1/2 Sv Su^1/2)^1/2 Su^-1/2

    The target's covariance may have any rank: 1 for a gray image, 0 for a single color (T = 0). Eigenvalues of the source's
    covariance (variances, for the diagonal) are raised to RELATIVE_FLOOR times their sum and to ABSOLUTE_FLOOR.

        >>> def uncorrelated(*deviations):
        ...     return ColorMoments(torch.zeros(3), torch.diag(torch.tensor(deviations) ** 2), torch.tensor(1.0))
        >>> color_map(uncorrelated(0.1, 0.2, 0.4), uncorrelated(0.3, 0.1, 0.4)).diagonal()
        tensor([3.0000, 0.5000, 1.0000], dtype=torch.float64)

    Returns (B, 3, 3) float64, or (3, 3) when neither has a batch; B of one of them may be 1.

    Raises:
        ParameterError: an unknown method, or two batches of different sizes.
    """
    if method not in TRANSPORTS:
        raise ParameterError(f"unknown method '{method}'{did_you_mean(method, TRANSPORTS)}: use {' or '.join(TRANSPORTS)}")
    sizes = [moments.mean.shape[0] for moments in (source, target) if moments.mean.ndim == 2]
    if len({size for size in sizes if size != 1}) > 1:
        raise ParameterError(f"there are {sizes[1]} targets for {sizes[0]} images: give one, or one for each image "
                             f"(pool(color_moments(targets)) makes one of several)")
    # In float64: it costs nothing for 3 x 3 matrices, and a gray target needs all the digits.
    Su, Sv = source.covariance.double(), target.covariance.to(source.covariance.device, torch.float64)
    floor = (RELATIVE_FLOOR * Su.detach().diagonal(dim1=-2, dim2=-1).sum(-1)).clamp_min(ABSOLUTE_FLOOR)
    if method == "diagonal":
        variances = torch.maximum(Su.diagonal(dim1=-2, dim2=-1), floor[..., None])
        return torch.diag_embed(_safe_sqrt(Sv.diagonal(dim1=-2, dim2=-1)) / variances.sqrt())
    root = _Root.apply(Su, floor)                                               # Su^1/2
    inverse = torch.linalg.inv(root)
    middle = _Root.apply(root @ Sv @ root, torch.zeros_like(floor))             # (Su^1/2 Sv Su^1/2)^1/2
    return inverse @ middle @ inverse


def transport(images: Tensor, target: Tensor | ColorMoments, method: str = "monge_kantorovich", rho: float | Tensor = 1.0,
              *, clip: bool = False) -> Tensor:
    """The images in the target's colors, fully or partly (supplement Sec. 1, Fig. 1).

    images  (B, 3, H, W), any floating dtype, colors in [0, 1]
    target  images (1 or B, 3, H', W') of any size, or moments; one target serves all images. For a target that serves many
            batches, compute its moments once: `target = color_moments(targets)[0]`, or `pool(color_moments(targets))`
    method  'diagonal' or 'monge_kantorovich'
    rho     interpolation in [0, 1]: 0 is the image itself, 1 the full transport; a tensor (B,) gives one value per image
    clip    clip the result to [0, 1]; off by default, because clipping changes the moments that were just reached

        >>> photograph = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> gray = torch.linspace(0.2, 0.4, 16).view(1, 1, 4, 4).expand(1, 3, 4, 4)
        >>> moved = transport(photograph, gray)                                # as the zebra on the gray screw in Fig. 1
        >>> bool(chroma(moved) < 1e-5), round(float(moved.mean()), 3)
        (True, 0.3)

    Returns (B, 3, H, W) of the images' dtype and device. Differentiable in the images and the target. Runs outside autocast,
    because bfloat16 has fewer digits than a photograph.

    Raises:
        ParameterError: a wrong shape, dtype, method or rho.
        DataError: an image or target with NaN or infinite values.
    """
    _check_images(images, "images")
    if isinstance(target, Tensor):
        _check_images(target, "target")
    moved = _transport(images, target, method, rho)
    return moved.clamp(0, 1) if clip else moved


def transport_uint8(images: Tensor, target: Tensor | ColorMoments, method: str = "monge_kantorovich",
                    rho: float | Tensor = 1.0) -> Tensor:
    """`transport` for images of 8 bits: (B, 3, H, W) uint8 -> uint8, rounded to the nearest and clipped to 0..255.

    Target images are uint8 too; target moments are those of colors in [0, 1].

        >>> images = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
        >>> target = torch.tensor([50, 70], dtype=torch.uint8).expand(1, 3, 1, 2)
        >>> transport_uint8(images, target)[0, 0]
        tensor([[50, 70]], dtype=torch.uint8)

    Raises:
        ParameterError: as `transport`, or images that are not uint8.
    """
    for name, given in (("images", images), ("target", target)):
        if isinstance(given, Tensor) and given.dtype != torch.uint8:
            raise ParameterError(f"transport_uint8 takes {name} of dtype uint8, not {given.dtype}: for colors in [0, 1] use "
                                 f"transport")
    _check_shape(images, "images")
    if isinstance(target, Tensor):
        _check_shape(target, "target")
    return _transport(images, target, method, rho)


def _transport(images: Tensor, target: Tensor | ColorMoments, method: str, rho: float | Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        # The target's moments are computed on its own device, so that a few numbers are moved and not an image.
        goal = ColorMoments(*kernels.moments(target)) if isinstance(target, Tensor) else target
        goal = goal.to(images.device)
        start = ColorMoments(*kernels.moments(images))
        _check_finite(start, "image")
        _check_finite(goal, "target")
        T = color_map(start, goal, method)
        rhos = _as_column(rho, images)                                          # (B, 1)
        identity = torch.eye(3, dtype=T.dtype, device=T.device)
        A = (1 - rhos[..., None]) * identity + rhos[..., None] * T              # (B, 3, 3)
        mean = (1 - rhos) * start.mean.double() + rhos * goal.mean.double()     # (B, 3)
        return kernels.affine(images, A, start.mean, mean)


def chroma(images: Tensor) -> Tensor:
    """Amount of color of each image: the largest channel minus the smallest, averaged over the pixels; 0 exactly if R=G=B.

        >>> orange = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
        >>> chroma(orange), chroma(torch.ones(1, 3, 4, 4))
        (tensor([1.]), tensor([0.]))

    (B, 3, H, W) -> (B,)
    """
    _check_images(images, "images")
    return (images.amax(1) - images.amin(1)).mean((1, 2))


class _Root(torch.autograd.Function):
    """Square root of symmetric matrices (..., 3, 3), with eigenvalues below `floor` (...) replaced by it.

    The gradient of an eigendecomposition divides by differences of eigenvalues and is infinite for a gray image, two of whose
    eigenvalues are zero. The gradient of the root divides by sums of roots (divided differences of Daleckii and Krein) and is
    finite. The floor counts as a constant.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, floor: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        tiny = 1e-14 * values[..., -1:].clamp_min(0)                            # rounding error of a zero eigenvalue
        free = values > torch.maximum(floor[..., None], tiny)
        roots = torch.where(free, values, floor[..., None]).sqrt()
        ctx.save_for_backward(values, vectors, roots, free)
        return (vectors * roots[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        values, vectors, roots, free = ctx.saved_tensors
        both, none = free[..., :, None] & free[..., None, :], ~(free[..., :, None] | free[..., None, :])
        sums = roots[..., :, None] + roots[..., None, :]
        gaps = values[..., :, None] - values[..., None, :]
        one = (roots[..., :, None] - roots[..., None, :]) / torch.where(gaps == 0, 1.0, gaps)
        quotient = torch.where(both, 1 / torch.where(both, sums, 1.0), torch.where(none, 0.0, one))
        inner = vectors.mT @ gradients[0] @ vectors
        inner = quotient * (inner + inner.mT) / 2
        return vectors @ inner @ vectors.mT, None


def _safe_sqrt(values: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero and not infinite; negative values count as zero."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)


def _as_column(rho: float | Tensor, images: Tensor) -> Tensor:
    """One rho per image, (B, 1) float64."""
    rhos = torch.as_tensor(rho, dtype=torch.float64, device=images.device)
    if rhos.shape not in ((), (len(images),)):
        raise ParameterError(f"rho takes a number or a tensor with one value per image, ({len(images)},), not {_shape(rhos)}")
    if not bool(((rhos >= 0) & (rhos <= 1)).all()):                             # NaN is refused too
        raise ParameterError(f"rho is {rho}: give a value in [0, 1], 0 for the image itself and 1 for the target's colors")
    return rhos.expand(len(images))[:, None]


def _check_images(images: Tensor, name: str) -> None:
    _check_shape(images, name)
    if not images.is_floating_point():
        raise ParameterError(f"{name} takes colors in [0, 1] of a floating dtype, not {images.dtype}: for uint8 there is "
                             f"transport_uint8")


def _check_shape(images: Tensor, name: str) -> None:
    if not isinstance(images, Tensor):
        raise ParameterError(f"{name} takes a tensor (B, 3, H, W), not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or not images.shape[2] * images.shape[3]:
        hint = "; images[None] makes a batch of one image" if images.ndim == 3 and images.shape[0] == 3 else ""
        raise ParameterError(f"{name} takes shape (B, 3, H, W) with at least one pixel, not {_shape(images)}{hint}")


def _check_mask(mask: Tensor, images: Tensor) -> None:
    expected = (images.shape[0], *images.shape[2:])
    if mask.shape != expected or mask.dtype != torch.bool:
        raise ParameterError(f"mask takes bool {_shape(torch.empty(expected, device='meta'))} for these images, not "
                             f"{mask.dtype} {_shape(mask)}")
    empty = (~mask.flatten(1).any(1)).nonzero()
    if len(empty):
        raise DataError(f"the mask of image {int(empty[0])} is empty: leave out the image or the mask")


def _check_finite(moments: ColorMoments, what: str) -> None:
    # A NaN or infinite pixel makes the sums NaN or infinite, so checking the moments spares a pass over the pixels.
    fine = torch.isfinite(moments.mean).all(-1) & torch.isfinite(moments.covariance).flatten(-2).all(-1)
    if not bool(fine.all()):
        where = f" {int((~fine).nonzero()[0])}" if fine.ndim else ""
        raise DataError(f"{what}{where} has NaN or infinite values: repair the image or leave it out")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
