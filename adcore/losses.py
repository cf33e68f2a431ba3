"""Losses between original and reconstructed features, each with the anomaly map that belongs to it.

You et al. (UniAD), supplement Sec. D.3. Tokens are (B, N, C).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean squared error over batch, tokens and channels.

    Eq. (S1) divides by H*W alone, which is C times as much; the published code divides by C too, and gradient clipping
    at 0.1 makes the two train differently. This is the code's form.
    """
    return F.mse_loss(reconstructed, original)


def mse_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """L2 norm of the difference, token by token: (B, N, C), (B, N, C) -> (B, N)."""
    return (original - reconstructed).norm(dim=-1)
