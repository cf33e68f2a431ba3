"""CutPaste (3-way): an encoder learns to tell normal crops from two kinds of pasted ones.

Li et al., "CutPaste: Self-supervised learning for anomaly detection and localization", CVPR 2021, as the DS2 supplement
(Sec. 3) rebuilds it to compare with.

    image 256 x 256 -> crop 64 x 64 as it is | CutPaste | scar -> ResNet-18 -> mean over cells -> head -> one of three

One network serves all categories. Only `encoder` is used afterwards, as DS2's is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Config
from adcore.errors import ParameterError
from adcore.papers.ds2.cutpaste_patches import JITTER, SIDE, three_ways
from adcore.papers.ds2.resnet_encoder import CHANNELS, ResNetEncoder
from adcore.papers.ds2.views import standardized
from adcore.training import Run, resolve_device, seeded, train

WAYS = ("normal", "CutPaste", "scar")


@dataclass(frozen=True, kw_only=True)
class CutPastePretrainingConfig(Config):
    """Settings of the proxy task; defaults are the supplement's.

    side        of a crop in pixels
    head        widths of the two hidden layers behind the encoder
    steps       an epoch
    batch_size  images, each of which gives three crops; whether the printed 96 counts images or crops is not stated, the code
                of DS2 reads 96 images
    lr, lr_end  at the first step and at the last, half a cosine between
    jitter      of colors, of images before and of what is pasted
    amp         network in bfloat16, the paper's is not; crops and loss stay as they are
    """

    side: int = SIDE
    head: tuple[int, ...] = (512, 128)
    epochs: int = 256
    steps: int = 256
    batch_size: int = 96
    lr: float = 0.03
    lr_end: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 3e-5
    jitter: float = JITTER
    amp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.side, self.epochs, self.steps, self.batch_size) < 1 or not self.head:
            raise ParameterError(f"{type(self).__qualname__}: side, epochs, steps and batch_size must be at least 1, and head "
                                 f"at least one layer")


class CutPasteNetwork(nn.Module):
    """Encoder and head, drawn from torch's random state.

    losses  mean of each epoch, after `pretrain_cutpaste`
    """

    def __init__(self, config: CutPastePretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ResNetEncoder(("c5",))
        widths = [CHANNELS["c5"], *config.head]
        hidden = [layer for a, b in itertools.pairwise(widths)
                  for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(inplace=True))]
        self.head = nn.Sequential(*hidden, nn.Linear(widths[-1], len(WAYS)))
        self.losses: list[float] = []

    def forward(self, crops: Tensor) -> Tensor:
        """Which of the three: (B, 3, s, s) in [0, 1] -> logits (B, 3)."""
        return self.head(self.encoder(standardized(crops))["c5"].mean((2, 3)))

    def loss(self, images: Tensor) -> Tensor:
        """Cross-entropy of the three crops of each image: (B, 3, H, W), uint8 -> scalar."""
        with torch.no_grad():
            crops = three_ways(images.float() / 255, self.config.side, self.config.jitter)     # (3, B, 3, s, s)
        labels = torch.arange(len(WAYS), device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(self(crops.flatten(0, 1)).float(), labels)


def pretrain_cutpaste(config: CutPastePretrainingConfig, images: Tensor, *, checkpoint: Path | None = None,
                      progress: bool | None = None, seed: int = 0, device: str | torch.device = "cpu") -> CutPasteNetwork:
    """Train on normal images of all categories: (n, 3, H, W) uint8, the paper's 256 x 256 -> the network, in eval mode.

    Several processes (`adcore.distributed`) share each batch and draw for their shares from streams of their own: as good as
    one, but other numbers.

    checkpoint  from which an interrupted training goes on to the same weights

    Raises:
        ParameterError: images of another shape or dtype, none, or smaller than a crop.
    """
    c, device = config, resolve_device(device)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ParameterError(f"images must be (n, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    with seeded(seed):
        network = CutPasteNetwork(c).to(device)

    def batches() -> Iterator[tuple[Tensor]]:
        for _ in range(c.steps):
            # Without an image twice, where there are enough.
            drawn = torch.randperm(len(images))[:c.batch_size] if len(images) >= c.batch_size else torch.randint(
                len(images), (c.batch_size,))
            yield (images[drawn.to(images.device)].to(device, non_blocking=True),)

    optimizer = torch.optim.SGD(network.parameters(), c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * c.steps, eta_min=c.lr_end)
    network.losses = train(network, network.loss, batches, optimizer, scheduler, epochs=c.epochs, each_step=True, seed=seed,
                           amp=c.amp, data_parallel=True, run=Run(checkpoint=checkpoint, progress=progress, desc="cutpaste"))
    return network
