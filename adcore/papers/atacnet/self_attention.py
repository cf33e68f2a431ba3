"""The self-attention convolution block that ATAC-Net puts before its anomaly mapping layer.

Zhao, Jia and Koltun, "Exploring Self-attention for Image Recognition", CVPR 2020; the equations are theirs.

    x -> batch norm, ReLU -> attention over a window -> batch norm, ReLU -> 1x1 convolution -> + x

    paper      code      shape                  meaning
    phi        query     (B, R, h, w)           1x1 convolution of the cell
    psi        key       (B, R, h, w)           1x1 convolution of its neighbors
    beta       value     (B, M, h, w)           1x1 convolution; its outputs are averaged over the window
    gamma      weigh     (B, M / share, K, N)   weights of the K neighbors of each of the N cells
    p          place     (B, 2, h, w)           1x1 convolution of the coordinates, which lie in [-1, 1]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.errors import ParameterError

KINDS = ("pairwise", "patchwise")


def neighbors(x: Tensor, window: int) -> Tensor:
    """The window around each cell, with reflection at the border: (B, C, h, w) -> (B, C, window * window, h * w)."""
    reach = window // 2
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    return F.unfold(padded, window).unflatten(1, (x.shape[1], window * window))


class SelfAttention(nn.Module):
    """Weighted mean over a window, with weights computed from the content: (B, C, h, w) -> (B, M, h, w).

    kind     'pairwise': the weight of a neighbor depends on its difference to the cell and on their positions; softmax over
             the window (Sec. 3.1, subtraction). 'patchwise': all weights are computed together from the whole window,
             without softmax (Sec. 3.2, concatenation)
    reduced  R, channels of query and key
    middle   M, channels of the value
    share    number of channels with the same weights (`share_planes` in the published code)
    window   side of the window in cells, odd

    Raises:
        ParameterError: unknown kind, an even window, or a number of channels that is not a multiple of `share`.
    """

    def __init__(self, channels: int, kind: str, reduced: int, middle: int, share: int, window: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ParameterError(f"attention is one of {', '.join(KINDS)}, not {kind!r}")
        if middle % share or not window % 2:
            raise ParameterError(f"self-attention needs an odd window and channels in whole groups, not window {window} and "
                                 f"{middle} channels in groups of {share}")
        self.kind, self.window, self.groups = kind, window, middle // share
        cells = window * window
        self.query, self.key = nn.Conv2d(channels, reduced, 1), nn.Conv2d(channels, reduced, 1)
        self.value = nn.Conv2d(channels, middle, 1)
        if kind == "pairwise":
            self.place = nn.Conv2d(2, 2, 1)
            self.weigh = nn.Sequential(
                nn.BatchNorm2d(reduced + 2), nn.ReLU(), nn.Conv2d(reduced + 2, reduced, 1, bias=False),
                nn.BatchNorm2d(reduced), nn.ReLU(), nn.Conv2d(reduced, self.groups, 1))
        else:
            self.weigh = nn.Sequential(
                nn.BatchNorm2d(reduced * (cells + 1)), nn.ReLU(), nn.Conv2d(reduced * (cells + 1), self.groups, 1, bias=False),
                nn.BatchNorm2d(self.groups), nn.ReLU(), nn.Conv2d(self.groups, cells * self.groups, 1))

    def weights(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, groups, K, N)."""
        query, keys = self.query(x), neighbors(self.key(x), self.window)                 # (B, R, h, w), (B, R, K, N)
        if self.kind == "pairwise":
            place = self.place(_coordinates(x))                                            # (1, 2, h, w)
            offsets = place.flatten(2)[:, :, None] - neighbors(place, self.window)        # (1, 2, K, N)
            differences = torch.cat([query.flatten(2)[:, :, None] - keys, offsets.expand(len(x), -1, -1, -1)], 1)
            return self.weigh(differences).softmax(dim=2)
        patches = torch.cat([query, keys.flatten(1, 2).unflatten(2, x.shape[-2:])], 1)    # (B, R (K + 1), h, w)
        return self.weigh(patches).flatten(2).unflatten(1, (self.groups, -1))

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) <= self.window // 2:
            raise ParameterError(f"a window of {self.window} cells, reflected at the border, needs a grid of at least "
                                 f"{self.window // 2 + 1} cells a side, not {x.shape[-2]}x{x.shape[-1]}: use larger images, a "
                                 f"shallower tap or a smaller window")
        values = neighbors(self.value(x), self.window).unflatten(1, (self.groups, -1))    # (B, groups, share, K, N)
        averaged = (self.weights(x)[:, :, None] * values).sum(3)                           # (B, groups, share, N)
        return averaged.flatten(1, 2).unflatten(2, x.shape[-2:])


def _coordinates(x: Tensor) -> Tensor:
    """Position of each cell, from -1 to 1 along each side: (1, 2, h, w), x before y."""
    ys, xs = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[-2:])
    return torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1])[None]


class AttentionBlock(nn.Module):
    """The residual bottleneck around the attention: (B, C, h, w) -> (B, C, h, w).

    Its widths are those of the published code: R = C / 16 and M = C / 4. M is rounded up to a multiple of `share`.
    """

    def __init__(self, channels: int, kind: str = "pairwise", window: int = 7, share: int = 8) -> None:
        super().__init__()
        middle = -(-channels // (4 * share)) * share
        self.before = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.attention = SelfAttention(channels, kind, max(1, channels // 16), middle, share, window)
        self.after = nn.Sequential(nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.attention(self.before(x)))
