"""From features back to a picture: the decoder with which UniAD's supplement shows a reconstruction (S C.3, Fig. S2, S3).

    features (B, C, h, w) -> a reversed ResNet-34 -> picture (B, 3, 16h, 16w)

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022. For pictures only: the decoder is trained on test
images, anomalous ones included, so no measured number may depend on it.

Where the supplement and the published code differ, or both say nothing:
- The supplement upsamples by transposed convolution, the published code bilinearly: `upsample` chooses, default bilinear.
- The kernel of the transposed convolution is not stated: we take 2x2 at stride 2, without overlap, so without checkerboard.
- Bilinear upsampling does not align corners: the published code uses torch's default there. The resizing of the features
  before the network does align them.
- The last stage has 128 channels, as in the published code, where a reversed ResNet-34 would have 64.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample
from adcore.detector import Config
from adcore.features import images_digest
from adcore.features.backbones import IMAGENET
from adcore.files import digest_text
from adcore.papers.uniad2022.collage import check_sizes
from adcore.papers.uniad2022.reconstruction import Reconstruction
from adcore.settings import Range
from adcore.training import Run, resolve_device, seeded, train

VERSION = 2                  # raised when the code changes what a decoder of the same settings draws; 2: corners not aligned
FACTORS = (1, 2, 2, 1)       # by how much each stage enlarges its map; the head doubles it twice more, 16 in all


@dataclass(frozen=True, kw_only=True)
class FeatureDecoderConfig(Config):
    """Settings of the decoder. Defaults are those of the published code.

    upsample  'bilinear' as in the published code, or 'transposed' as in the supplement
    widths    channels of each of the four stages, deepest first
    blocks    residual blocks of each stage
    """

    upsample: str = "bilinear"
    widths: tuple[int, ...] = (512, 256, 128, 128)
    blocks: tuple[int, ...] = (3, 6, 4, 3)
    epochs: int = 1000
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 1e-4
    lr_drop: int = 801              # epochs at the full learning rate, see `ReconstructionConfig`
    clip_norm: float = 0.1

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"upsample": ("bilinear", "transposed")}
    ranges: ClassVar[dict[str, Range]] = {
        "widths": Range(least=1, most=2**16, items=(len(FACTORS),) * 2),
        "blocks": Range(least=1, most=2**10, items=(len(FACTORS),) * 2)}


def _double(channels: int, upsample: str) -> nn.Module:
    """Twice the height and width: (B, C, h, w) -> (B, C, 2h, 2w)."""
    if upsample == "transposed":
        return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


class UpBlock(nn.Module):
    """ResNet's basic block with upsampling in place of stride: (B, c, h, w) -> (B, d, factor * h, factor * w)."""

    def __init__(self, c: int, d: int, factor: int, upsample: str) -> None:
        super().__init__()

        def larger() -> list[nn.Module]:
            return [_double(d, upsample)] if factor == 2 else []

        self.body = nn.Sequential(nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU(), *larger(),
                                  nn.Conv2d(d, d, 3, padding=1, bias=False), nn.BatchNorm2d(d))
        self.shortcut = nn.Identity() if (c, factor) == (d, 1) else nn.Sequential(
            nn.Conv2d(c, d, 1, bias=False), *larger(), nn.BatchNorm2d(d))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class FeatureDecoder(nn.Module):
    """Decoder from features to the picture they came from, normalized as ImageNet: (B, C, h, w) -> (B, 3, 16h, 16w)."""

    def __init__(self, channels: int, config: FeatureDecoderConfig | None = None) -> None:
        super().__init__()
        c = config or FeatureDecoderConfig()
        stages: list[nn.Module] = []
        for (before, width), count, factor in zip(itertools.pairwise((channels, *c.widths)), c.blocks, FACTORS, strict=True):
            stages += [UpBlock(before, width, factor, c.upsample), *(UpBlock(width, width, 1, c.upsample)
                                                                     for _ in range(count - 1))]
        self.stages = nn.Sequential(*stages)                                                    # (B, D, 4h, 4w)
        last = c.widths[-1]
        self.head = nn.Sequential(
            _double(last, c.upsample), nn.Conv2d(last, last, 7, padding=3, bias=False), nn.BatchNorm2d(last), nn.ReLU(),
            _double(last, c.upsample), nn.Conv2d(last, 3, 1, bias=False))                       # (B, 3, 16h, 16w)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.01)
        self.losses: list[float] = []   # of each epoch of its training

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.stages(features))


def _normalizer(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation, (3, 1, 1) each."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in IMAGENET)
    return mean, std


def train_decoder(features: Tensor, images: Tensor, config: FeatureDecoderConfig | None = None, *, seed: int = 0,
                  device: str | torch.device = "cpu", progress: bool | None = None,
                  checkpoint: Path | None = None) -> FeatureDecoder:
    """Train a decoder by mean squared error on pixels normalized as ImageNet.

    features    (n, C, h, w), unjittered; may be memory-mapped and in half precision
    images      (n, 3, 16h, 16w) in [0, 1], those the features come from; the paper uses one category's test images,
                normal and anomalous
    checkpoint  file to resume an interrupted training from, and to save to; None saves nothing

    Raises:
        ParameterError: the sizes of features and images do not fit together.
    """
    check_sizes(features, images)
    c = config or FeatureDecoderConfig()
    device = resolve_device(device)
    with seeded(seed):
        decoder = FeatureDecoder(features.shape[1], c).to(device)
    mean, std = _normalizer(device)

    def loss_of(batch: Tensor, pictures: Tensor) -> Tensor:
        return F.mse_loss(decoder(batch), (pictures - mean) / std)

    optimizer = torch.optim.AdamW(decoder.parameters(), c.lr, weight_decay=c.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, c.lr_drop)
    decoder.losses = train(decoder, loss_of, (features, images), optimizer, scheduler, epochs=c.epochs,
                           batch_size=c.batch_size, seed=seed, clip_norm=c.clip_norm,
                           run=Run(checkpoint=checkpoint, progress=progress, desc="feature decoder"))
    return decoder


def decoder_for(detector: Reconstruction, samples: Sequence[Sample], config: FeatureDecoderConfig | None = None, *,
                folder: Path, seed: int = 0, progress: bool | None = None) -> FeatureDecoder:
    """Decoder of a detector's features, trained on samples; the paper takes one category's test images.

    The checkpoint stays in `folder`, named by settings, seed and images: an equal call loads it instead of training.
    """
    c = config or FeatureDecoderConfig()
    made_from = [seed, repr(detector.view), detector.extractor.key, images_digest(samples)]
    key = digest_text(json.dumps([VERSION, c.values(), *made_from]))
    features, images = detector.extract(samples)
    return train_decoder(features, images, c, seed=seed, device=detector.device, progress=progress, checkpoint=folder / key)


@torch.no_grad()
def render(decoder: FeatureDecoder, features: Tensor) -> Tensor:
    """Pictures of original or reconstructed features: (B, C, h, w) -> (B, 3, 16h, 16w) in [0, 1] on the CPU.

    The decoder is left in evaluation mode, in which a picture does not depend on the rest of its batch.
    """
    device = next(decoder.parameters()).device
    mean, std = _normalizer(device)
    pictures = decoder.eval()(features.to(device).float())
    return (pictures * std + mean).clamp(0, 1).cpu()
