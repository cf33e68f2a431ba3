"""Scores of patches spread over the pixels that each patch has seen (receptive upsampling).

Liznerski et al., "Explainable Deep One-Class Classification", ICLR 2021, Sec. 3; the evaluation of DS2 and CutPaste uses it.

    scores (B, h, w) --transposed convolution with a Gaussian the size of a patch--> map (B, H, W)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.errors import ParameterError


def receptive_kernel(k: int) -> Tensor:
    """How a patch's score spreads over its k x k pixels: (k, k) float64, the outer product of a Gaussian with itself.

    Its deviation is 10 from k = 32, below that log10(0.45 k + 1) + 0.25. An even k has no middle pixel: a window of length
    k - 1 is taken, its middle doubled and the whole halved, so that the four middle values are 1/4 (for an odd k the one is 1).

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
    """Map of pixels from scores of patches: (B, h, w) -> (B, (h - 1) * stride + patch, (w - 1) * stride + patch).

    normalized  False adds up what reaches a pixel, as published, and so the border, under fewer patches, comes out lower;
                True takes the mean instead, weighted by the kernel

    Raises:
        ParameterError: scores of another shape, or patches that leave pixels between them.
    """
    if scores.ndim != 3 or not 1 <= stride <= patch:
        raise ParameterError(f"scores {tuple(scores.shape)} of patches of {patch} pixels, one every {stride}: expected "
                             f"(B, h, w) and a stride of 1 to {patch}")
    kernel = receptive_kernel(patch).to(scores)[None, None]
    spread = F.conv_transpose2d(scores[:, None], kernel, stride=stride)[:, 0]
    if not normalized:
        return spread
    return spread / F.conv_transpose2d(torch.ones_like(scores[:1, None]), kernel, stride=stride)[:, 0]
