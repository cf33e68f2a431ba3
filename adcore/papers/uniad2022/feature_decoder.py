"""From features back to a picture: the decoder with which UniAD's supplement shows what a reconstruction looks like.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022, supplement Sec. C.3 and Fig. S2, S3.

    features (B, C, h, w) -> a ResNet-34 read backwards -> picture (B, 3, 16h, 16w)

For pictures only. It is trained on test images, anomalous ones included, so nothing that is measured may come from it.

`collage` draws the same features without any training, by patches of images it knows: sharper where a decoder has had
little time to learn, and cut along the cells.

Where the text and the published code differ, and where both are silent:
- The text upsamples by transposed convolution, the published code bilinearly: `upsample` chooses, bilinear is the default.
- The transposed convolution's kernel is nowhere stated: 2x2 at stride 2, whose steps do not overlap into a chequerboard.
- Bilinear upsampling aligns corners, as the features' own resizing does.
- The last stage has 128 channels, as in the published code, where a mirrored ResNet-34 would have 64.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, read_images
from adcore.detector import Config
from adcore.errors import ParameterError
from adcore.features import images_digest
from adcore.features.backbones import IMAGENET
from adcore.files import digest_text
from adcore.training import Run, resolve_device, seeded, train

if TYPE_CHECKING:
    from adcore.papers.uniad2022.reconstruction import Reconstruction

STRIDE = 16                  # pixels a token
FACTORS = (1, 2, 2, 1)       # how many times larger each stage makes its map; two more doublings follow in the head


@dataclass(frozen=True, kw_only=True)
class FeatureDecoderConfig(Config):
    """Settings of the decoder; defaults are those of the published code.

    upsample  'bilinear', the published code, or 'transposed', the supplement's words
    widths    channels of each stage, deepest first
    blocks    residual blocks of each stage
    """

    upsample: str = "bilinear"
    widths: tuple[int, ...] = (512, 256, 128, 128)
    blocks: tuple[int, ...] = (3, 6, 4, 3)
    epochs: int = 1000
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 1e-4
    lr_drop: int = 800              # epoch from which the learning rate is a tenth
    clip_norm: float = 0.1

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"upsample": ("bilinear", "transposed")}


def _double(channels: int, upsample: str) -> nn.Module:
    """Twice the height and width: (B, C, h, w) -> (B, C, 2h, 2w)."""
    if upsample == "transposed":
        return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


class UpBlock(nn.Module):
    """ResNet's basic block with the stride turned round: (B, c, h, w) -> (B, d, factor * h, factor * w)."""

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
    """Features of a backbone to the picture they came from, normalized as ImageNet: (B, C, h, w) -> (B, 3, 16h, 16w).

    Raises:
        ParameterError: not four stages.
    """

    def __init__(self, channels: int, config: FeatureDecoderConfig | None = None) -> None:
        super().__init__()
        c = config or FeatureDecoderConfig()
        if not len(c.widths) == len(c.blocks) == len(FACTORS):
            raise ParameterError(f"widths {c.widths} and blocks {c.blocks} must have {len(FACTORS)} numbers each, one a stage")
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
    """Learn to draw images from their features, by mean squared error on pixels normalized as ImageNet.

    features    (n, C, h, w), unjittered; may be memory-mapped and in half precision
    images      (n, 3, 16h, 16w) in [0, 1], those the features came from; the paper uses one category's test images,
                normal and anomalous
    checkpoint  file from which an interrupted training goes on, and to which it saves; None keeps nothing

    Raises:
        ParameterError: images and features that do not belong together.
    """
    _check(features, images)
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


@torch.no_grad()
def seen(detector: Reconstruction, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """What a detector's backbone sees of images, and the images, both on the CPU: (n, C, h, w) and (n, 3, H, W) in [0, 1]."""
    pairs = [(detector.features(detector.extractor(images.to(detector.device))).cpu(), images)
             for images in read_images(samples, detector.view)]
    features, images = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(images)


def decoder_for(detector: Reconstruction, samples: Sequence[Sample], config: FeatureDecoderConfig | None = None, *,
                folder: Path, seed: int = 0, progress: bool | None = None) -> FeatureDecoder:
    """The decoder of a detector's features, trained on samples, the paper's being one category's test images.

    Its last checkpoint stays in `folder`, named by what determines it, so that asking again costs no training.
    """
    c = config or FeatureDecoderConfig()
    key = digest_text(json.dumps([c.values(), seed, repr(detector.view), detector.extractor.key, images_digest(samples)]))
    features, images = seen(detector, samples)
    return train_decoder(features, images, c, seed=seed, device=detector.device, progress=progress, checkpoint=folder / key)


def _check(features: Tensor, images: Tensor) -> None:
    n, (h, w) = len(features), features.shape[-2:]
    wanted = (n, 3, STRIDE * h, STRIDE * w)
    if tuple(images.shape) != wanted:
        raise ParameterError(f"features of {n} images on a {h}x{w} grid are drawn at {STRIDE} pixels a cell: images must be "
                             f"{wanted}, not {tuple(images.shape)}")


@torch.no_grad()
def render(decoder: FeatureDecoder, features: Tensor) -> Tensor:
    """What features look like: (B, C, h, w), original or reconstructed -> (B, 3, 16h, 16w) in [0, 1] on the CPU.

    The decoder is left in evaluation mode, in which a picture does not depend on its neighbors in the batch.
    """
    device = next(decoder.parameters()).device
    mean, std = _normalizer(device)
    pictures = decoder.eval()(features.to(device).float())
    return (pictures * std + mean).clamp(0, 1).cpu()


def collage(features: Tensor, known: Tensor, images: Tensor) -> Tensor:
    """Features drawn without training: each cell becomes the patch of pixels whose own feature is nearest.

    features  what to draw, (B, C, h, w)
    known     features of images that may lend a patch, (n, C, h, w)
    images    those images, (n, 3, 16h, 16w)

    Returns (B, 3, 16h, 16w). With an anomalous image among those known, its defect is drawn wherever the features have it.
    """
    _check(known, images)
    cells = known.flatten(2).transpose(1, 2).flatten(0, 1).float()                              # (n * N, C)
    patches = F.unfold(images, STRIDE, stride=STRIDE).transpose(1, 2).flatten(0, 1)             # (n * N, 3 * 16 * 16)
    nearest = [torch.cdist(one.flatten(1).T.float(), cells).argmin(1) for one in features]      # (N,) each
    drawn = patches[torch.stack(nearest)].transpose(1, 2)                                       # (B, 3 * 16 * 16, N)
    h, w = features.shape[-2:]
    return F.fold(drawn, (STRIDE * h, STRIDE * w), STRIDE, stride=STRIDE)
