"""Losses between original and reconstructed features, each with the anomaly map that belongs to it.

You et al. (UniAD), supplement Sec. D.3. Tokens are (B, N, C).

    paper   loss             map
    S1      mse              length of the difference
    S1      mse_printed      the same; C times the loss, as the equation is printed
    S2      normalized_mse   length of the difference of unit vectors
    S3      cosine           1 - cos; printed as the mean of cos itself, which training would drive to -1
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean squared error over batch, tokens and channels.

    Eq. (S1) divides by H*W alone, which is C times as much; the published code divides by C too, and gradient clipping
    at 0.1 makes the two train differently. This is the code's form.
    """
    return F.mse_loss(reconstructed, original)


def mse_printed(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Squared length of the difference, averaged over tokens: eq. (S1) as printed."""
    return mse(original, reconstructed) * original.shape[-1]


def mse_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """L2 norm of the difference, token by token: (B, N, C), (B, N, C) -> (B, N)."""
    return (original - reconstructed).norm(dim=-1)


def normalized_mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Squared distance of unit vectors, averaged over tokens: eq. (S2). Between 0 and 4."""
    return mse_printed(F.normalize(original, dim=-1), F.normalize(reconstructed, dim=-1))


def normalized_mse_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Distance of unit vectors, token by token: (B, N, C), (B, N, C) -> (B, N)."""
    return mse_map(F.normalize(original, dim=-1), F.normalize(reconstructed, dim=-1))


def cosine(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Cosine distance averaged over tokens: eq. (S3) with the distance, 1 - cos, that its name promises.

    Half of `normalized_mse`, because |a - b|^2 = 2 - 2 cos for unit vectors.
    """
    return cosine_map(original, reconstructed).mean()


def cosine_map(original: Tensor, reconstructed: Tensor) -> Tensor:
    """1 - cos, token by token: (B, N, C), (B, N, C) -> (B, N)."""
    return 1 - F.cosine_similarity(original, reconstructed, dim=-1)


def cosine_printed(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Eq. (S3) as printed: a similarity called a distance. Minimizing it turns features round; kept to show that."""
    return F.cosine_similarity(original, reconstructed, dim=-1).mean()


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "mse": (mse, mse_map),
    "mse_printed": (mse_printed, mse_map),
    "normalized_mse": (normalized_mse, normalized_mse_map),
    "cosine": (cosine, cosine_map),
    "cosine_printed": (cosine_printed, cosine_map),
}
