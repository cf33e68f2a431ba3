"""Scores that deviate: how DevNet, DRA and ATAC-Net turn a feature map into one number and train it.

Pang et al., "Explainable Deep Few-shot Anomaly Detection with Deviation Networks", 2021.

    maps (B, C, h, w) -> 1x1 convolution -> |.| (B, h, w) -> mean of the largest tenth -> score (B,)

Scores of normal images should look like draws from N(0, 1), those of anomalies lie k deviations above.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFERENCE_DRAWS = 5000
MARGIN = 5.0  # k, in standard deviations


def deviations(scores: Tensor) -> Tensor:
    """Scores in standard deviations from the mean of 5,000 draws from N(0, 1), drawn anew: (B,) -> (B,)."""
    reference = torch.randn(REFERENCE_DRAWS).to(scores.device)
    return (scores - reference.mean()) / reference.std()


def deviation_loss(scores: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """(1 - y) |dev| + y max(0, k - dev), averaged: the loss of the published code, never below zero.

    scores  (B,)
    labels  (B,), 1 or True for anomalous; any number of them may be so
    """
    apart = deviations(scores)
    return torch.where(labels.bool(), F.relu(margin - apart), apart.abs()).mean()


def deviation_loss_printed(scores: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """(1 - y) |dev| + y (k - |dev|): Algorithm 2 of atacnet as printed. Without a bound: it falls for ever as the score of
    an anomaly grows, in either direction."""
    apart = deviations(scores).abs()
    return torch.where(labels.bool(), margin - apart, apart).mean()


def top_mean(maps: Tensor, share: float = 0.1) -> Tensor:
    """Mean of the largest `share` of the cells, of one at least: (B, h, w) -> (B,)."""
    cells = maps.flatten(1)
    return cells.topk(max(int(share * cells.shape[1]), 1), dim=1).values.mean(1)


class AnomalyMapping(nn.Module):
    """Each cell's anomaly, the size of a learned combination of its channels: (B, C, h, w) -> (B, h, w), never negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.combine = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x)[:, 0].abs()


def he_initialized(module: nn.Module) -> nn.Module:
    """Convolutions and linear layers drawn anew as He et al. do for ReLU networks (ICCV 2015), biases 0; in place."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
