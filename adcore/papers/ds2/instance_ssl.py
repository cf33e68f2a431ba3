"""Instance branches beside DS2's dense loss: what else the encoder may learn from the same two views.

He et al. (DS2), supplement Table 1 (b); the published code. Its branches do not run beside two scales as they were published,
so they are attached here to c5, the coarsest map.

    branch    what it asks of an image                  head, on c5
    byol      predict the other view's vector           1 x 1 layers, then the mean over positions
    mocov2    find it among vectors of a queue          the same without a predictor
    rotnet    by how much was it rotated                positions of the view and its rotated copy, joined
    distaug   find it among the batch's, rotated ones   mean over positions, eight layers
              being images of their own

Each has a loss of both views, and may ask for views of its own making.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.distributed import all_gather
from adcore.papers.ds2.instance_losses import byol_loss, info_nce, rotation_loss, simclr_loss
from adcore.papers.ds2.momentum import follow, target_of
from adcore.papers.ds2.pixel_propagation import Projector
from adcore.papers.ds2.views import AUGMENTATIONS, Recipe, recolored, standardized, unstandardized
from adcore.training import full_precision

CHANNELS = 512  # of c5
Pair = tuple[Tensor, Tensor]


class Branch(nn.Module, ABC):
    """A loss beside the dense one.

    recipes  of both views, where the branch has its own
    turns    quarter turns of an image that count as images of their own, 1 or 4
    """

    recipes: ClassVar[tuple[Recipe, Recipe] | None] = None
    turns: ClassVar[int] = 1

    def follow(self, momentum: float) -> None:
        """Key networks, where there are any, follow by one step."""

    @abstractmethod
    def forward(self, views: Pair, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Scalar.

        views       (B, 3, S, S), standardized
        query, key  maps c5 of both networks, (B, 512, h, w)
        encode      images -> c5 of the trained network
        """


class BYOL(Branch):
    recipes = AUGMENTATIONS["cj+gb+gs+so"]

    def __init__(self, hidden: int = 4096, dim: int = 256) -> None:
        super().__init__()
        self.projector, self.predictor = Projector(CHANNELS, hidden, dim), Projector(dim, hidden, dim)
        self.key_projector = target_of(self.projector)

    def follow(self, momentum: float) -> None:
        follow(self.key_projector, self.projector, momentum)

    def forward(self, views: Pair, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        p1, p2 = (pooled(self.predictor(self.projector(x))) for x in query)
        with torch.no_grad():
            z1, z2 = (pooled(self.key_projector(x)) for x in key)
        return byol_loss((p1, p2), (z1, z2))


class MoCoV2(Branch):
    """All keys of the queue are negatives. The published code can leave out those of the image's own category, by labels."""

    recipes = (Recipe(jitter_range=(0.4, 0.4, 0.4, 0.1), grayscale=0.2, blur=0.5),) * 2
    queue: Tensor

    def __init__(self, hidden: int = 4096, dim: int = 256, length: int = 4096) -> None:
        super().__init__()
        self.projector = Projector(CHANNELS, hidden, dim)
        self.key_projector = target_of(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(length, dim), dim=1))

    def follow(self, momentum: float) -> None:
        follow(self.key_projector, self.projector, momentum)

    def forward(self, views: Pair, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        q1, q2 = (pooled(self.projector(x)) for x in query)
        with torch.no_grad():
            k1, k2 = (pooled(self.key_projector(x)) for x in key)
        loss = info_nce(q1, k2, self.queue) + info_nce(q2, k1, self.queue)
        if self.training:
            # The newest come first, and the oldest fall off the end. A new tensor: the loss still holds the old one.
            self.queue = torch.cat([all_gather(k1), all_gather(k2), self.queue])[:len(self.queue)]
        return loss


class RotNet(Branch):
    """With the MLP head, which sees a view and its rotated copy at once."""

    changed: ClassVar[Recipe] = Recipe(jitter=0.0, grayscale=0.2, blur=0.5, solarize=0.3)  # on top of the view's own

    def __init__(self, view_size: int = 224) -> None:
        super().__init__()
        self.reduce = Projector(CHANNELS, 256, 64)
        self.head = nn.Sequential(nn.Linear(2 * 64 * math.ceil(view_size / 32) ** 2, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
                                  nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.ReLU(),
                                  nn.Linear(512, 512), nn.Linear(512, 4))

    def forward(self, views: Pair, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        return self._of(views[0], query[0], encode) + self._of(views[1], query[1], encode)

    def _of(self, view: Tensor, seen: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        quarters = torch.randint(4, (len(view),))
        rotated = standardized(recolored(turned(unstandardized(view), quarters), self.changed))
        both = torch.cat([self.reduce(seen).flatten(1), self.reduce(encode(rotated)).flatten(1)], 1)
        return rotation_loss(self.head(both), quarters.to(view.device))


class DistAug(Branch):
    recipes = (Recipe(scale=(0.5, 1.0), jitter_range=(0.4, 0.4, 0.4, 0.4), grayscale=0.2, blur=0.5),) * 2
    turns = 4

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(7) for layer in (nn.Linear(CHANNELS, 512), nn.BatchNorm1d(512), nn.ReLU())]
        self.head = nn.Sequential(*layers, nn.Linear(512, 128))

    def forward(self, views: Pair, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        z1, z2 = (F.normalize(self.head(x.mean((2, 3))).float(), dim=1) for x in query)
        return simclr_loss(all_gather(z1), all_gather(z2))


BRANCHES = ("none", "byol", "mocov2", "rotnet", "distaug")  # the names of Table 1 (b)


def branch(name: str, *, hidden: int = 4096, dim: int = 256, view_size: int = 224) -> Branch | None:
    """A branch by its name, drawn from torch's random state; None for 'none'. Widths are those of the dense projectors."""
    build: dict[str, Callable[[], Branch]] = {"byol": lambda: BYOL(hidden, dim), "mocov2": lambda: MoCoV2(hidden, dim),
                                              "rotnet": lambda: RotNet(view_size), "distaug": DistAug}
    return None if name == "none" else build[name]()


@full_precision
def pooled(maps: Tensor) -> Tensor:
    """Mean over positions, at unit length: (B, d, h, w) -> (B, d)."""
    return F.normalize(maps.mean((2, 3)), dim=1)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image rotated counterclockwise by its own number of quarter turns: (B, C, S, S), (B,) on the CPU -> (B, C, S, S)."""
    result = images.clone()
    for turn in (1, 2, 3):
        mine = (quarters == turn).nonzero()[:, 0].to(images.device)
        result[mine] = images[mine].rot90(turn, (2, 3))
    return result
