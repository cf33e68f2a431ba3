"""DRA: four heads on one backbone, for seen anomalies, pseudo anomalies, and deviations from normal images.

Ding et al., "Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection", CVPR 2022; the paper's Table 2
compares ATAC-Net with it.

    image at full and half size -> backbone -> features (B, C, h, w) -> four heads -> scores (B,), each the mean of both sizes

    head        computed from the features as
    holistic    mean over cells -> two linear layers -> absolute value
    seen        anomaly mapping -> mean of the top 10 % of cells
    pseudo      anomaly mapping -> mean of the top 10 % of cells
    composite   features of reference images minus features -> convolution -> anomaly mapping -> mean of the top 10 % of cells

Which images each head learns from, and with which labels, is in the table `HEADS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from adcore.detector import Prediction
from adcore.papers.atacnet.cutmix import in_image
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, top_mean
from adcore.papers.atacnet.devnet import DevNetConfig, mean_map, pyramid, pyramid_sizes
from adcore.papers.atacnet.few_shot import QUICK, FewShot, rotated
from adcore.settings import Range
from adcore.training import Scheduler, epoch_seed, seeded

# Labels in a training batch: normal images, labeled anomalies, and pseudo anomalies, which CutMix makes from normal images.
NORMAL, SEEN, PSEUDO = 0, 1, 2


class Head(NamedTuple):
    """How a head is trained and how its score counts.

    sees      labels of the training images that it learns from
    deviates  those among them whose scores should deviate: label 1 of the deviation loss, all others have label 0
    sign      of its score in the score of the image
    """

    sees: tuple[int, ...]
    deviates: tuple[int, ...]
    sign: int


HEADS = {
    "holistic": Head(sees=(NORMAL, SEEN, PSEUDO), deviates=(NORMAL,), sign=-1),  # reversed labels, so its score is subtracted
    "seen": Head(sees=(NORMAL, SEEN), deviates=(SEEN,), sign=1),
    "pseudo": Head(sees=(NORMAL, PSEUDO), deviates=(PSEUDO,), sign=1),
    "composite": Head(sees=(NORMAL, SEEN, PSEUDO), deviates=(SEEN, PSEUDO), sign=1),
}


@dataclass(frozen=True, kw_only=True)
class DRAConfig(DevNetConfig):
    """Settings of DRA; the defaults are those of the published code, except `at_test`.

    references  number of normal training images; the composite head compares an image with their mean features
    at_test     references of a test image: 'fixed' takes the same images, without rotation, for all test images; 'drawn' draws
                and rotates others for every batch, as in training and in the published code, so that an image's score depends
                on the batch and on the number of batches before it
    hidden      width of the holistic head
    heads       heads that are trained and whose scores are added
    """

    epochs: int = 30
    references: int = 5
    at_test: str = "fixed"
    hidden: int = 256
    heads: tuple[str, ...] = tuple(HEADS)

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"at_test": ("fixed", "drawn")}
    ranges: ClassVar[dict[str, Range]] = {"references": Range(least=1, most=2**10)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads or set(self.heads) - set(HEADS):
            raise self.refused(f"heads={self.heads} must be some of {', '.join(HEADS)}")


class Holistic(nn.Module):
    """Score from the mean over all cells: (B, C, h, w) -> (B,)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean(dim=(2, 3)))[:, 0].abs()


class Composite(nn.Module):
    """Anomaly map from the difference to the mean reference: (B, C, h, w), (R, C, h, w) -> (B, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.mapping = AnomalyMapping(channels)

    def forward(self, x: Tensor, references: Tensor) -> Tensor:
        return self.mapping(self.convolution(references.mean(0) - x))


class DRA(FewShot):
    """DRA as a detector; one network per category.

    predicted  number of batches that were predicted since the training
    """

    name: ClassVar[str] = "dra"
    version: ClassVar[int] = 2  # 2: as DevNet's, and the learning rate falls an epoch earlier
    predicted: int = 0
    Config: ClassVar[type[Any]] = DRAConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "batch_size": 18}

    def build(self) -> nn.Module:
        c, channels = self.config, self.extractor.channels[0]
        self.extractor.shapes(pyramid_sizes(self.view.shape, c.scales)[-1])  # raises if the images are too small
        network = nn.ModuleDict({"extractor": self.extractor})
        for name in c.heads:
            network[name] = (Holistic(channels, c.hidden) if name == "holistic" else
                             Composite(channels) if name == "composite" else AnomalyMapping(channels))
        h, w = self.view.shape
        # Part of the state dict: a resumed or reloaded model compares images with the same references.
        network.register_buffer("references", torch.zeros(c.references, 3, h, w))
        return network

    def batch(self) -> tuple[Tensor, Tensor]:
        """One third normal images, one third labeled anomalies, one third pseudo anomalies."""
        third = self.config.batch_size // 3
        pseudo = in_image(self.pick(self.normal, third))
        images = torch.cat([self.pick(self.normal, third), self.pick(self.anomalous, third), pseudo])
        return rotated(images, self.config.rotation), torch.arange(3, device=self.device).repeat_interleave(third)

    def fit(self, samples: Any, *, checkpoint: Any = None, progress: Any = None) -> DRA:
        """As `FewShot.fit`; then draw the reference images for testing from the normal training images, with the same seed."""
        super().fit(samples, checkpoint=checkpoint, progress=progress)
        self.predicted = 0
        order = torch.randperm(len(self.normal), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[torch.arange(self.config.references) % len(order)]
        self.network.references.copy_(self.normal[chosen].float() / 255)                       # type: ignore[operator]
        return self

    def schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        """As `FewShot.schedule`, but each fall comes one epoch earlier: the published code steps before an epoch, not after."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1 ** ((epoch + 1) // self.config.lr_every))

    def drawn_references(self) -> Tensor:
        """Reference images drawn with replacement from the normal training images and rotated: (R, 3, H, W)."""
        return rotated(self.pick(self.normal, self.config.references), self.config.rotation)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Sum of the heads' deviation losses. Each call draws new reference images."""
        total = images.new_zeros(())
        for name, (scores, _) in self.heads(images, self.drawn_references()).items():
            head = HEADS[name]
            sees = torch.isin(labels, labels.new_tensor(head.sees))                            # (B,)
            deviates = torch.isin(labels, labels.new_tensor(head.deviates))                    # (B,)
            total = total + deviation_loss(scores[sees], deviates[sees], self.config.margin)
        return total

    def heads(self, images: Tensor, references: Tensor) -> dict[str, tuple[Tensor, list[Tensor]]]:
        """Score and maps of each head: (B, 3, H, W), (R, 3, H, W) -> name: ((B,), [(B, h_s, w_s) per scale]).

        The score is the mean over the scales. The holistic head has no maps.
        """
        c, net = self.config, self.network
        features = [self.extractor(torch.cat([r, x]))[0].split([len(r), len(x)])
                    for r, x in zip(pyramid(references, c.scales), pyramid(images, c.scales), strict=True)]
        found: dict[str, tuple[Tensor, list[Tensor]]] = {}
        for name in c.heads:
            head = net[name]                                                                    # type: ignore[index]
            if name == "holistic":
                scores, maps = [head(x) for _, x in features], []
            else:
                maps = [head(x, r) if name == "composite" else head(x) for r, x in features]
                scores = [top_mean(m, c.top_share) for m in maps]
            found[name] = torch.stack(scores).mean(0), maps
        return found

    def score(self, images: Tensor) -> Prediction:
        """Signed sum of the heads' scores, mean of all heads' maps."""
        references: Any = self.network.references
        if self.config.at_test == "drawn":
            with seeded(epoch_seed(self.seed, self.predicted)):
                references = self.drawn_references()
            self.predicted += 1
        heads = self.heads(images, references)
        total = torch.stack([HEADS[name].sign * scores for name, (scores, _) in heads.items()]).sum(0)
        maps = [m for _, maps in heads.values() for m in maps]
        return Prediction(total, mean_map(maps, (images.shape[-2], images.shape[-1])) if maps else None)
