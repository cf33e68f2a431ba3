"""Pixel propagation and the dense loss: each position of one view predicts its positive pairs in the other view.

Xie et al. (PixPro), CVPR 2021, Sec. 3.2; He et al. (DS2), supplement and published code, which add several scales.

    map c_s (B, c, h, w) -> projector_s -> x (B, d, h, w) --query--> propagation -> y --+
                            (EMA copy)  -> z              --key----------------------- +--> loss over positive pairs

    paper   code         shape           meaning
    A_ij    similarity   (B, N, N)       max(cos(x_i, x_j), 0)^2, between positions of the same view
    g       value        (B, d, N)       transformed features at unit length; one 1 x 1 layer for all scales
    y       predicted    (B, d, h, w)    unit vectors, the output of the propagation
    z       key          (B, d, h, w)    unit vectors, the target from the other view
    M_ij    mask         (B, N, N)       1 where positions i and j are a positive pair
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adcore.training import full_precision


class Projector(nn.Sequential):
    """Two 1 x 1 layers, with 4096 and 256 channels in the published code: (B, channels, h, w) -> (B, dim, h, w)."""

    def __init__(self, channels: int, hidden: int = 4096, dim: int = 256) -> None:
        super().__init__(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
                         nn.Conv2d(hidden, dim, 1))


class Propagation(nn.Module):
    """Weighted sum over similar positions of the same view: (B, dim, h, w) -> unit vectors of that shape.

    y_i = sum_j A_ij g_j, then scaled to unit length. There is no softmax over the weights A_ij.
    """

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.value = nn.Conv2d(dim, dim, 1)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        unit, value = F.normalize(x, dim=1).flatten(2), F.normalize(self.value(x), dim=1).flatten(2)
        similarity = (unit.mT @ unit).clamp(min=0) ** 2                                    # (B, N, N), symmetric
        return F.normalize((value @ similarity).view_as(x), dim=1)


@full_precision
def pair_loss(predicted: Tensor, key: Tensor, positive: Tensor) -> Tensor:
    """l(q, k) = -2 sum_ij M_ij <y_i, z_j> / (sum_ij M_ij + 1e-6), averaged over images; 0 for images without a pair.

    Predictions y (B, d, h, w), keys z (B, d, h, w), positive pairs (B, N, N) bool -> scalar between -2 and 2.
    """
    mask = positive.detach().to(predicted)
    agreement = predicted.flatten(2).mT @ key.flatten(2)                                   # (B, N, N)
    return -2 * ((mask * agreement).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)).mean()


def scale_loss(predicted: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], positive: tuple[Tensor, Tensor]) -> Tensor:
    """L_s = (l(1 -> 2) + l(2 -> 1)) / 2 of one scale, -2 at best; DS2's loss is the sum over scales.

    predicted, keys  y and z of view 1 and view 2
    positive         pairs from view 1 to view 2, and from view 2 to view 1
    """
    return (pair_loss(predicted[0], keys[1], positive[0]) + pair_loss(predicted[1], keys[0], positive[1])) / 2
