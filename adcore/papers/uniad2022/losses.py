"""The three losses of UniAD's supplement, each with the anomaly map that belongs to it (S D.3).

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022. f_org is `original`, f_rec is `reconstructed`;
both are tokens (B, N, C).

    equation    loss             anomaly map
    Eq. (S1)    mse              L2 norm of the difference
    Eq. (S1)    mse_printed      the same; the equation as printed, C times `mse`
    Eq. (S2)    normalized_mse   L2 norm of the difference of unit vectors
    Eq. (S3)    cosine           cosine distance, 1 - cos
    Eq. (S3)    cosine_printed   the same; the equation as printed, the mean of cos itself
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean squared error over batch, tokens and channels: Eq. (S1) as in the published code.

    The printed equation divides by H * W alone, which is C times as much. The two train differently, because gradients are
    clipped at 0.1.
    """
    return F.mse_loss(reconstructed, original)


def mse_printed(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Squared length of the difference, averaged over tokens: Eq. (S1) as printed."""
    return mse(original, reconstructed) * original.shape[-1]


def mse_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """L2 norm of each token's difference: (B, N, C), (B, N, C) -> (B, N)."""
    return (original - reconstructed).norm(dim=-1)


def normalized_mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Squared distance of unit vectors, averaged over tokens: Eq. (S2). Between 0 and 4."""
    return mse_printed(F.normalize(original, dim=-1), F.normalize(reconstructed, dim=-1))


def normalized_mse_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Distance of each token's unit vectors: (B, N, C), (B, N, C) -> (B, N)."""
    return mse_map(F.normalize(original, dim=-1), F.normalize(reconstructed, dim=-1))


def cosine(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Cosine distance 1 - cos, averaged over tokens: Eq. (S3) with the "1 -" that is missing in print.

    Half of `normalized_mse`, because |a - b|^2 = 2 - 2 cos for unit vectors.
    """
    return cosine_map(original, reconstructed).mean()


def cosine_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Cosine distance 1 - cos of each token: (B, N, C), (B, N, C) -> (B, N)."""
    return 1 - F.cosine_similarity(original, reconstructed, dim=-1)


def cosine_printed(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Eq. (S3) as printed: the mean cosine similarity. Minimizing it drives the cosine to -1; kept to show that."""
    return F.cosine_similarity(original, reconstructed, dim=-1).mean()


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "mse": (mse, mse_map),
    "mse_printed": (mse_printed, mse_map),
    "normalized_mse": (normalized_mse, normalized_mse_map),
    "cosine": (cosine, cosine_map),
    "cosine_printed": (cosine_printed, cosine_map),
}
