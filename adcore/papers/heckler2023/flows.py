"""Normalizing flows over feature maps, from FrEIA's layers: what FastFlow and AsymST's teacher share.

    x (B, C, h, w) -> invertible steps -> z (B, C, h, w) ~ N(0, 1),     log p(x) = log N(z) + log |det dz/dx|
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from adcore.errors import DataError, ParameterError

Shape = tuple[int, int, int]
Subnet = Callable[[int, int], nn.Module]


@contextlib.contextmanager
def torch_permutes() -> Iterator[None]:
    """Within it, numpy's global state, from which FrEIA draws its permutations, follows torch's; the caller's comes back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def check_shape(shape: Shape, name: str) -> None:
    """Raises ParameterError where an affine coupling has no second half of channels to change."""
    if shape[0] < 2:
        raise ParameterError(f"{name} has {shape[0]} channel: an affine coupling splits the channels in two, use a tap with "
                             f"at least 2")


def check_spread(features: Tensor, name: str) -> None:
    """Refuse training features that have no density: where nothing varies, the likelihood has no maximum.

    (n, C, h, w), looked at image by image, so that a memory-mapped tensor stays on disk.

    Raises:
        DataError: every channel is one constant over all images and cells.
    """
    low = torch.full((features.shape[1],), math.inf)
    high = -low
    for image in features:
        values = image.float().flatten(1)
        low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
        if bool((high > low).any()):
            return
    raise DataError(f"features of {name} are one constant over all {len(features)} training images: a flow has no density "
                    f"to learn there (are the images empty?)")


def channel_moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all images and cells: (n, C, h, w) -> (C,), (C,) float32.

    One pass, image by image, as the tensor may be larger than memory. A channel that never varies gets a deviation of 1.
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    squares = total.clone()
    for image in features:
        values = image.double().flatten(1)
        total += values.sum(1)
        squares += values.square().sum(1)
    count = features.numel() / features.shape[1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    varies = variance > 1e-12 * squares / count
    return mean.float(), torch.where(varies, variance.sqrt(), 1.0).float()


def energy(z: Tensor) -> Tensor:
    """Half the squared length of z in each cell, the negative log-likelihood under N(0, 1) but for a constant:
    (B, C, h, w) -> (B, h, w)."""
    return 0.5 * z.square().sum(1)


def nll(z: Tensor, log_det: Tensor) -> Tensor:
    """-log p(x) of each image but for the constant of the Gaussian: (B, C, h, w), (B,) -> (B,)."""
    return energy(z).sum((1, 2)) - log_det
