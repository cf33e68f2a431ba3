"""Dense prediction of one view's projections from the other's: PixPro's propagation, over several scales.

He et al. (DS2), supplement; Xie et al. (PixPro), CVPR 2021, Sec. 3.2; the published code of both.

    map c_s (B, c, h, w) -> projector_s -> x (B, d, h, w) --query--> propagation -> y --+
                            (EMA copy)  -> z              --key----------------------- +--> loss over positive pairs

    paper   code         shape           meaning
    A_ij    similarity   (B, N, N)       max(cos(x_i, x_j), 0)^2, of positions of the same view
    g       value        1 x 1           transform of what is propagated, one for all scales
    y, z                 (B, d, h, w)    unit vectors at every position
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adcore.training import full_precision


class Projector(nn.Sequential):
    """Two layers at every position, the published code's 4096 and 256 wide: (B, channels, h, w) -> (B, dim, h, w)."""

    def __init__(self, channels: int, hidden: int = 4096, dim: int = 256) -> None:
        super().__init__(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
                         nn.Conv2d(hidden, dim, 1))


class Propagation(nn.Module):
    """Each position takes up what similar ones of its view hold, no softmax: (B, dim, h, w) -> unit vectors of that shape.

    y_i = sum_j A_ij g_j with g the transformed vectors at unit length; then y is brought to unit length, too.
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

    (B, d, h, w) unit vectors, the same of the key, pairs (B, N, N) bool -> scalar between -2 and 2
    """
    mask = positive.detach().to(predicted)
    agreement = predicted.flatten(2).mT @ key.flatten(2)                                   # (B, N, N)
    return -2 * ((mask * agreement).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)).mean()


def scale_loss(predicted: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], positive: tuple[Tensor, Tensor]) -> Tensor:
    """L_s = (l(1 -> 2) + l(2 -> 1)) / 2 of one scale, -2 at best; the loss of the method is the sum over scales.

    predicted, keys  of view 1 and view 2
    positive         pairs from view 1 to view 2, and from view 2 to view 1
    """
    return (pair_loss(predicted[0], keys[1], positive[0]) + pair_loss(predicted[1], keys[0], positive[1])) / 2
