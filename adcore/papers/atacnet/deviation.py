"""The deviation loss and the score that it is computed from, as DevNet, DRA and ATAC-Net use them.

Pang et al., "Explainable Deep Few-shot Anomaly Detection with Deviation Networks", 2021; ATAC-Net's supplement, Algorithm 2.

    maps (B, C, h, w) -> 1x1 convolution, absolute value (B, h, w) -> mean of the top 10 % of cells -> score (B,)

The loss pulls scores of normal images to the mean of N(0, 1) and pushes scores of anomalies k standard deviations above it.

    paper    code             shape       meaning
    tau      AnomalyMapping   (B, h, w)   anomaly mapping layer: one value per cell
    dev      deviations       (B,)        scores in standard deviations from the mean of a sample of N(0, 1)
    y        labels           (B,)        1 for an anomaly, 0 for a normal image
    k        margin           scalar      deviation that an anomaly should reach, 5
    L_dev    deviation_loss   scalar      mean over the batch
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFERENCE_DRAWS = 5000
MARGIN = 5.0  # k, in standard deviations


def deviations(scores: Tensor) -> Tensor:
    """Scores in standard deviations from the mean of 5,000 random numbers of N(0, 1): (B,) -> (B,).

    (score - mu_R) / sigma_R, Algorithm 2, line 10. Each call draws new random numbers.
    """
    reference = torch.randn(REFERENCE_DRAWS).to(scores.device)
    return (scores - reference.mean()) / reference.std()


def deviation_loss(scores: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """The deviation loss of the published code, (1 - y) |dev| + y max(0, k - dev), averaged over the batch; never negative.

    scores  (B,)
    labels  (B,), 1 or True for an anomaly; all labels may be equal
    """
    dev = deviations(scores)
    return torch.where(labels.bool(), F.relu(margin - dev), dev.abs()).mean()


def deviation_loss_printed(scores: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """The deviation loss as printed in Algorithm 2, line 11: (1 - y) |dev| + y (k - |dev|).

    It has no lower bound: it keeps falling as the score of an anomaly moves away from 0, in either direction.
    """
    dev = deviations(scores).abs()
    return torch.where(labels.bool(), margin - dev, dev).mean()


def top_mean(maps: Tensor, fraction: float = 0.1) -> Tensor:
    """The top-k score: mean of the largest `fraction` of the cells, at least of one cell. (B, h, w) -> (B,)."""
    cells = maps.flatten(1)
    return cells.topk(max(int(fraction * cells.shape[1]), 1), dim=1).values.mean(1)


class AnomalyMapping(nn.Module):
    """The anomaly mapping layer: absolute value of a 1x1 convolution to one channel. (B, C, h, w) -> (B, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.combine = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x)[:, 0].abs()


def he_initialized(module: nn.Module) -> nn.Module:
    """He initialization (He et al., ICCV 2015) of all convolutions and linear layers, in place; biases become 0."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
