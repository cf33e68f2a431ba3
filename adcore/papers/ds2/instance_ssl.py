"""Instance branches: what DS2's encoder may learn from whole images, beside the dense loss (Table 1 (b)).

He et al. (DS2), supplement Table 1 (b) and the published code. As published, the branches do not run together with two scales,
so we attach them to c5, the coarsest map.

    branch    source                              task                                      head, on c5
    byol      Grill et al. (BYOL), NeurIPS 2020   predict the vector of the other view      1 x 1 layers, mean over positions
    mocov2    Chen et al. (MoCo v2), 2020         find the image in a queue of others       the same, without a predictor
    rotnet    RotNet with an MLP head             predict the rotation of a copy            view and rotated copy, concatenated
    distaug   Chen et al. (SimCLR), ICML 2020,    find the image among those of the batch   mean over positions, eight layers
              each rotation an image of its own

Every loss here describes a whole image by one vector, while the dense loss has a vector at each position. Heads, augmentations
and temperatures are those of the published code of DS2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.distributed import all_gather
from adcore.papers.ds2.momentum import follow, target_of
from adcore.papers.ds2.pixel_propagation import Projector
from adcore.papers.ds2.resnet_encoder import CHANNELS
from adcore.papers.ds2.views import AUGMENTATIONS, Recipe, change_colors, standardized
from adcore.training import full_precision

TEMPERATURE = 0.2
UNKNOWN = -1  # category of a key whose category is not known, and of the random keys with which the queue begins
C5 = CHANNELS["c5"]
Pair = tuple[Tensor, Tensor]


# Losses of unit vectors (B, d).

@full_precision
def byol_loss(predicted: Pair, keys: Pair) -> Tensor:
    """-2 mean <p1, z2> - 2 mean <p2, z1>, -4 at best: predictions and keys of both views -> scalar."""
    (p1, p2), (z1, z2) = predicted, keys
    return -2 * (p1 * z2).sum(1).mean() - 2 * (p2 * z1).sum(1).mean()


@full_precision
def info_nce(query: Tensor, key: Tensor, negatives: Tensor, removed: Tensor | None = None,
             temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of choosing a query's own key among the negatives: (B, d), (B, d), negatives (K, d) -> scalar.

    removed  (B, K) bool, True for the negatives that a query is not compared with
    """
    own, others = (query * key).sum(1, keepdim=True), query @ negatives.mT                 # (B, 1), (B, K)
    if removed is not None:
        others = others.masked_fill(removed, float("-inf"))
    logits = torch.cat([own, others], 1) / temperature                                     # (B, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


@full_precision
def simclr_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of choosing the other view of the same image among all views of the batch: (B, d), (B, d) -> scalar."""
    views, count = torch.cat([first, second]), len(first)
    logits = (views @ views.mT / temperature).fill_diagonal_(float("-inf"))                # (2B, 2B)
    return F.cross_entropy(logits, torch.arange(2 * count, device=first.device).roll(count))


@full_precision
def rotation_loss(outputs: Tensor, quarters: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of the number of quarter turns by which an image was rotated: (B, 4), (B,) -> scalar.

    Outputs are normalized to unit length first.
    """
    return F.cross_entropy(F.normalize(outputs, dim=1) / temperature, quarters)


# Branches.

class Batch(NamedTuple):
    """What a branch may need to know of a batch, beside its maps.

    crops       both views (B, 3, S, S) in [0, 1], before their colors were changed
    categories  (B,) int64, numbers of the images' categories; None if they are not known
    quarters    (B, 2) int64 on the CPU, quarter turns of the rotated copy of each view. An image keeps them for the whole
                training
    """

    crops: Pair
    categories: Tensor | None
    quarters: Tensor


class Branch(nn.Module, ABC):
    """A loss that is added to the dense one.

    recipes  augmentations of both views; None takes those of the dense pretraining
    turns    number of rotations of an image that count as images of their own, 1 or 4
    """

    recipes: ClassVar[tuple[Recipe, Recipe] | None] = None
    turns: ClassVar[int] = 1

    def follow(self, momentum: float) -> None:
        """Move the branch's key networks, if it has any, one step towards the trained ones."""

    @abstractmethod
    def forward(self, batch: Batch, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Scalar loss.

        query, key  c5 maps of both views (B, 512, h, w), from the trained encoder and the key encoder
        encode      images -> c5 of the trained encoder
        """


class BYOL(Branch):
    recipes = AUGMENTATIONS["cj+gb+gs+so"]

    def __init__(self, hidden: int = 4096, dim: int = 256) -> None:
        super().__init__()
        self.projector, self.predictor = Projector(C5, hidden, dim), Projector(dim, hidden, dim)
        self.key_projector = target_of(self.projector)

    def follow(self, momentum: float) -> None:
        follow(self.key_projector, self.projector, momentum)

    def forward(self, batch: Batch, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        p1, p2 = (pooled(self.predictor(self.projector(x))) for x in query)
        with torch.no_grad():
            z1, z2 = (pooled(self.key_projector(x)) for x in key)
        return byol_loss((p1, p2), (z1, z2))


class MoCoV2(Branch):
    """The keys in the queue are the negatives. They are those of the first view only, as in the published code.

    Keys of an image's own category are left out if the categories are known (class-aware negatives), as that code does on
    MVTec AD.
    """

    recipes = (Recipe(jitter_range=(0.4, 0.4, 0.4, 0.1), grayscale=0.2, blur=0.5),) * 2
    queue: Tensor
    queue_categories: Tensor

    def __init__(self, hidden: int = 4096, dim: int = 256, length: int = 4096) -> None:
        super().__init__()
        self.projector = Projector(C5, hidden, dim)
        self.key_projector = target_of(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("queue_categories", torch.full((length,), UNKNOWN))

    def follow(self, momentum: float) -> None:
        follow(self.key_projector, self.projector, momentum)

    def forward(self, batch: Batch, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        q1, q2 = (pooled(self.projector(x)) for x in query)
        with torch.no_grad():
            k1, k2 = (pooled(self.key_projector(x)) for x in key)
        own = torch.full((len(q1),), UNKNOWN) if batch.categories is None else batch.categories
        own = own.to(q1.device)
        removed = (own[:, None] == self.queue_categories) & (own[:, None] != UNKNOWN)
        loss = info_nce(q1, k2, self.queue, removed) + info_nce(q2, k1, self.queue, removed)
        if self.training:
            # New keys go to the front and the oldest drop off the end. A new tensor, because the loss still needs the old one.
            self.queue = torch.cat([all_gather(k1), self.queue])[:len(self.queue)]
            self.queue_categories = torch.cat([all_gather(own), self.queue_categories])[:len(self.queue)]
        return loss


class RotNet(Branch):
    """Rotation prediction with the MLP head, which receives a view and its rotated copy together.

    The copy is made of the view's crop before its colors are changed, and gets changes of its own.
    """

    copy: ClassVar[Recipe] = Recipe(grayscale=0.2, blur=0.5, solarize=0.3)

    def __init__(self, view_size: int = 224) -> None:
        super().__init__()
        self.reduce = Projector(C5, 256, 64)
        self.head = nn.Sequential(*_block(2 * 64 * math.ceil(view_size / 32) ** 2, 1024), *_block(1024, 512),
                                  nn.Linear(512, 512), nn.Linear(512, 4))

    def forward(self, batch: Batch, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([self._of(crops, quarters, maps, encode) for crops, quarters, maps in zip(
            batch.crops, batch.quarters.T, query, strict=True)]).sum()

    def _of(self, crops: Tensor, quarters: Tensor, c5: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of one view."""
        rotated = standardized(change_colors(rotate_quarters(crops, quarters), self.copy))
        both = torch.cat([self.reduce(c5).flatten(1), self.reduce(encode(rotated)).flatten(1)], 1)
        return rotation_loss(self.head(both), quarters.to(crops.device))


class DistAug(Branch):
    recipes = (Recipe(scale=(0.5, 1.0), jitter_range=(0.4, 0.4, 0.4, 0.4), grayscale=0.2, blur=0.5),) * 2
    turns = 4

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(*(layer for _ in range(7) for layer in _block(512, 512)), nn.Linear(512, 128, bias=False))

    def forward(self, batch: Batch, query: Pair, key: Pair, encode: Callable[[Tensor], Tensor]) -> Tensor:
        z1, z2 = (F.normalize(self.head(x.mean((2, 3))).float(), dim=1) for x in query)
        return simclr_loss(all_gather(z1), all_gather(z2))


BRANCHES = ("none", "byol", "mocov2", "rotnet", "distaug")  # the names of Table 1 (b)


def branch(name: str, *, hidden: int = 4096, dim: int = 256, view_size: int = 224) -> Branch | None:
    """A branch by its name, initialized from torch's random state; None for 'none'.

    hidden, dim  widths of its projectors, as in the dense projectors
    """
    build: dict[str, Callable[[], Branch]] = {"byol": lambda: BYOL(hidden, dim), "mocov2": lambda: MoCoV2(hidden, dim),
                                              "rotnet": lambda: RotNet(view_size), "distaug": DistAug}
    return None if name == "none" else build[name]()


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A layer of a head. The batch norm has a bias, so the linear layer needs none."""
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()


@full_precision
def pooled(maps: Tensor) -> Tensor:
    """Mean over positions, at unit length: (B, d, h, w) -> (B, d)."""
    return F.normalize(maps.mean((2, 3)), dim=1)


def rotate_quarters(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image rotated counterclockwise by its own number of quarter turns: (B, C, S, S), (B,) on the CPU -> (B, C, S, S)."""
    result = images.clone()
    for turn in (1, 2, 3):
        mine = (quarters == turn).nonzero()[:, 0].to(images.device)
        result[mine] = images[mine].rot90(turn, (2, 3))
    return result
