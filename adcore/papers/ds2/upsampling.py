"""Receptive upsampling: each patch score is spread over the pixels of its patch.

Liznerski et al., "Explainable Deep One-Class Classification", ICLR 2021, Sec. 3; used in the evaluation of DS2 and CutPaste.

    scores (B, h, w) --transposed convolution with a Gaussian kernel as large as a patch--> map (B, H, W)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.errors import ParameterError


def receptive_kernel(k: int) -> Tensor:
    """Kernel of receptive upsampling for patches of k x k pixels: (k, k) float64, the outer product of a Gaussian with itself.

    Its standard deviation is 10 for k >= 32, and log10(0.45 k + 1) + 0.25 below. An even k has no central pixel: the Gaussian
    of length k - 1 gets its center twice and is halved, so the four central values are 1/4 (for an odd k the central value is
    1).

    Raises:
        ParameterError: k below 1.
    """
    if k < 1:
        raise ParameterError(f"a receptive kernel of {k} pixels: take at least 1")
    deviation = math.log10(0.45 * k + 1) + 0.25 if k < 32 else 10.0
    distance = torch.arange(k, dtype=torch.float64) - (k - 1) // 2                  # of an even k: ..., -1, 0, 1, ...
    if k % 2 == 0:
        distance -= (distance > 0).double()                                         # ..., -1, 0, 0, 1, ...
    window = torch.exp(-(distance / deviation)**2 / 2) / (2 - k % 2)
    return torch.outer(window, window)


def receptive_upsample(scores: Tensor, patch: int = 32, stride: int = 4, *, normalized: bool = False) -> Tensor:
    """Receptive upsampling of patch scores: (B, h, w) -> (B, (h - 1) * stride + patch, (w - 1) * stride + patch).

    normalized  False sums the scores that reach a pixel, as published; the border is lower because fewer patches cover it.
                True takes the mean instead, weighted by the kernel

    Raises:
        ParameterError: scores of another shape, or a stride larger than the patch.
    """
    if scores.ndim != 3 or not 1 <= stride <= patch:
        raise ParameterError(f"scores {tuple(scores.shape)} of patches of {patch} pixels, one every {stride}: expected "
                             f"(B, h, w) and a stride of 1 to {patch}")
    kernel = receptive_kernel(patch).to(scores.dtype).to(scores.device)[None, None]
    spread = F.conv_transpose2d(scores[:, None], kernel, stride=stride)[:, 0]
    if not normalized:
        return spread
    return spread / F.conv_transpose2d(torch.ones_like(scores[:1, None]), kernel, stride=stride)[:, 0]
