"""DRA: seen anomalies, made-up ones and the distance to normal references, each with a head of its own.

Ding et al., "Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection", CVPR 2022; what atacnet compares with.

    image, and at half its size -> backbone -> features (B, C, h, w)
        seen       |1x1 convolution|, top tenth                              normal against labeled anomalies
        pseudo     the same                                                  normal against CutMix of normal
        composite  references minus features -> convolution -> the same     normal against both
        holistic   mean over cells -> two linear layers -> |.|               labels reversed: normal images deviate
    score = seen + pseudo + composite - holistic
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adcore.detector import Prediction
from adcore.errors import ParameterError
from adcore.papers.atacnet.cutmix import in_image
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, top_mean
from adcore.papers.atacnet.devnet import DevNetConfig, pyramid, smallest, upsampled
from adcore.papers.atacnet.few_shot import QUICK, FewShot, rotated

HEADS = ("holistic", "seen", "pseudo", "composite")
NORMAL, SEEN, PSEUDO = 0, 1, 2  # labels in a training batch


@dataclass(frozen=True, kw_only=True)
class DRAConfig(DevNetConfig):
    """Settings of DRA; defaults are those of the published code.

    references  normal training images whose mean feature an image is compared with
    hidden      width of the holistic head
    heads       those that are trained and counted
    """

    epochs: int = 30
    references: int = 5
    hidden: int = 256
    heads: tuple[str, ...] = HEADS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads or set(self.heads) - set(HEADS) or self.references < 1:
            raise ParameterError(f"DRAConfig: heads={self.heads} must be some of {', '.join(HEADS)}, and "
                                 f"references={self.references} at least 1")


class Holistic(nn.Module):
    """(B, C, h, w) -> (B,)"""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean(dim=(2, 3)))[:, 0].abs()


class Composite(nn.Module):
    """What the mean of the references has and the image has not: (B, C, h, w), (R, C, h, w) -> (B, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.mapping = AnomalyMapping(channels)

    def forward(self, x: Tensor, references: Tensor) -> Tensor:
        return self.mapping(self.convolution(references.mean(0) - x))


class DRA(FewShot):
    """DRA as a detector; one network a category."""

    name: ClassVar[str] = "dra"
    Config: ClassVar[type[Any]] = DRAConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "batch_size": 18}

    def build(self) -> nn.Module:
        c, channels = self.config, self.extractor.channels[0]
        self.extractor.shapes(smallest(self.view.shape, c.scales))  # which refuses images that are too small
        heads = {"holistic": lambda: Holistic(channels, c.hidden), "seen": lambda: AnomalyMapping(channels),
                 "pseudo": lambda: AnomalyMapping(channels), "composite": lambda: Composite(channels)}
        network = nn.ModuleDict({"extractor": self.extractor, **{name: heads[name]() for name in c.heads}})
        h, w = self.view.shape
        # Kept with the weights: a resumed or reloaded model compares with the images that it was trained to compare with.
        network.register_buffer("references", torch.zeros(c.references, 3, h, w))
        return network

    def batch(self) -> tuple[Tensor, Tensor]:
        """Two thirds normal images, of which half become pseudo anomalies, one third anomalies."""
        third = self.config.batch_size // 3
        pseudo = in_image(self.pick(self.normal, third))
        images = torch.cat([self.pick(self.normal, third), self.pick(self.anomalous, third), pseudo])
        return rotated(images, self.config.rotation), torch.arange(3, device=self.device).repeat_interleave(third)

    def fit(self, samples: Any, *, checkpoint: Any = None, progress: Any = None) -> DRA:
        """As `FewShot.fit`; then the references of testing are drawn from the normal training images, always the same."""
        super().fit(samples, checkpoint=checkpoint, progress=progress)
        order = torch.randperm(len(self.normal), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[torch.arange(self.config.references) % len(order)]
        self.network.references.copy_(self.normal[chosen].float() / 255)                       # type: ignore[operator]
        return self

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The deviation losses of the heads, summed; the images that normal ones are compared with are drawn anew."""
        references = rotated(self.pick(self.normal, self.config.references), self.config.rotation)
        heads = self.heads(images, references)
        anomalous, total = labels != NORMAL, images.new_zeros(())
        # The head of the seen anomalies never sees made-up ones, and the other way round.
        kept = {"seen": labels != PSEUDO, "pseudo": labels != SEEN}
        for name, (scores, _) in heads.items():
            targets = ~anomalous if name == "holistic" else anomalous
            mine = kept.get(name, torch.ones_like(anomalous))
            total = total + deviation_loss(scores[mine], targets[mine], self.config.margin)
        return total

    def heads(self, images: Tensor, references: Tensor) -> dict[str, tuple[Tensor, list[Tensor]]]:
        """Scores (B,) of each head, means over the sizes of an image, and the maps [(B, h_s, w_s)] that they come from."""
        c, net = self.config, self.network
        scales = [self.extractor(torch.cat([references, x]))[0].split([len(references), len(images)])
                  for references, x in zip(pyramid(references, c.scales), pyramid(images, c.scales), strict=True)]
        found: dict[str, tuple[Tensor, list[Tensor]]] = {}
        for name in c.heads:
            head = net[name]                                                                    # type: ignore[index]
            out = [head(x, r) if name == "composite" else head(x) for r, x in scales]
            maps = [] if name == "holistic" else out
            scores = out if name == "holistic" else [top_mean(m, c.top_share) for m in out]
            found[name] = torch.stack(scores).mean(0), maps
        return found

    def score(self, images: Tensor) -> Prediction:
        heads = self.heads(images, self.network.references)                                    # type: ignore[arg-type]
        total = torch.stack([-scores if name == "holistic" else scores for name, (scores, _) in heads.items()]).sum(0)
        maps = [m for _, found in heads.values() for m in found]
        return Prediction(total, upsampled(maps, (images.shape[-2], images.shape[-1])) if maps else None)
