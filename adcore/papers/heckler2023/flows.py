"""Normalizing flows over feature maps: likelihood, checks and moments for FastFlow and AsymST's teacher (layers by FrEIA).

    x (B, C, h, w) -> invertible steps -> z (B, C, h, w) ~ N(0, 1),     log p(x) = log N(z) + log |det dz/dx|
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from adcore.errors import DataError, ParameterError

Shape = tuple[int, int, int]  # (C, h, w)


@contextlib.contextmanager
def seeded_permutations() -> Iterator[None]:
    """A block in which FrEIA's channel permutations follow torch's random state.

    FrEIA draws them from numpy's global state and takes no other generator. The block seeds that state from torch's and
    restores it at the end, so that the caller's state does not change.
    """
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def check_shape(shape: Shape, name: str) -> None:
    """Raises ParameterError for a single channel, which an affine coupling cannot split into two halves."""
    if shape[0] < 2:
        raise ParameterError(f"{name} has {shape[0]} channel: an affine coupling splits the channels in two, use a tap with "
                             f"at least 2")


def check_spread(features: Tensor, name: str) -> None:
    """Refuse training features (n, C, h, w) without any variation: their likelihood has no maximum.

    The features are read image by image, so that a memory-mapped tensor stays on disk.

    Raises:
        DataError: every channel is constant over all images and cells.
    """
    low = torch.full((features.shape[1],), math.inf)
    high = -low
    for image in features:
        values = image.float().flatten(1)
        low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
        if bool((high > low).any()):
            return
    raise DataError(f"features of {name} are constant over all {len(features)} training images: a flow has no density "
                    f"to learn (are the images empty?)")


def channel_moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all images and cells: (n, C, h, w) -> (C,), (C,) float32.

    One pass, image by image, because the tensor may be larger than memory. A constant channel gets a deviation of 1.
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
    """|z|^2 / 2 in each cell, the negative log-likelihood under N(0, 1) without its constant: (B, C, h, w) -> (B, h, w)."""
    return 0.5 * z.square().sum(1)


def nll(z: Tensor, log_det: Tensor) -> Tensor:
    """-log p(x) of each image without the constant of the Gaussian: (B, C, h, w), (B,) -> (B,)."""
    return energy(z).sum((1, 2)) - log_det
