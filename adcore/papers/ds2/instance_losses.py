"""Losses that know an image again among others, each image being one vector.

Vectors are unit ones, (B, d). BYOL: Grill et al., NeurIPS 2020; MoCo v2: Chen et al., 2020; SimCLR: Chen et al., ICML 2020;
weights and temperatures as in the published code of DS2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.training import full_precision

TEMPERATURE = 0.2


@full_precision
def byol_loss(predicted: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Tensor:
    """-2 mean <p1, z2> - 2 mean <p2, z1>, -4 at best: predictions and keys of both views -> scalar."""
    (p1, p2), (z1, z2) = predicted, keys
    return -2 * (p1 * z2).sum(1).mean() - 2 * (p2 * z1).sum(1).mean()


@full_precision
def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of finding a query's own key among others': (B, d), (B, d), negatives (K, d) -> scalar."""
    own = (query * key).sum(1, keepdim=True)                                               # (B, 1)
    logits = torch.cat([own, query @ negatives.mT], 1) / temperature                       # (B, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


@full_precision
def simclr_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of finding, among all other views of a batch, that of the same image: (B, d), (B, d) -> scalar."""
    views, count = torch.cat([first, second]), len(first)
    logits = (views @ views.mT / temperature).fill_diagonal_(float("-inf"))                # (2B, 2B)
    return F.cross_entropy(logits, torch.arange(2 * count, device=first.device).roll(count))


@full_precision
def rotation_loss(outputs: Tensor, quarters: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of telling by how many quarter turns an image was rotated: (B, 4), (B,) -> scalar.

    Outputs are brought to unit length first.
    """
    return F.cross_entropy(F.normalize(outputs, dim=1) / temperature, quarters)
