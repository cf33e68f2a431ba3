"""CutPaste (3-way): an encoder learns to tell normal crops from pasted ones, then a Gaussian density of its patch features.

Li et al., "CutPaste: Self-supervised learning for anomaly detection and localization", CVPR 2021, as the DS2 supplement
(Sec. 3) re-implements it. What the supplement leaves out follows the code to which it points (pytorch-cutpaste).

Stage 1: normal images of all categories -> `pretrain_cutpaste` -> ResNet-18.

    images (B, 3, H, W) -> color jitter on half of them -> crop 64 x 64 -> normal | CutPaste | CutPaste-Scar
                        -> ResNet-18 -> average pooling -> classifier -> three-way cross-entropy

    CutPaste        a rectangle of the crop is color-jittered and pasted elsewhere in the crop
    CutPaste-Scar   a thin rectangle, which is also rotated before it is pasted

Stage 2: normal images of one category -> `localization.PatchDensity` -> map, score; the same as DS2's.

All random numbers come from torch's random state on the CPU, so a seed gives the same crops on any device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Config
from adcore.errors import ParameterError
from adcore.papers.ds2 import photometric
from adcore.papers.ds2.localization import ALIGNED_FOR_CUTPASTE, PretrainedConfig, PretrainedDetector
from adcore.papers.ds2.resnet_encoder import CHANNELS, ResNetEncoder
from adcore.papers.ds2.views import standardized
from adcore.settings import IMAGE_SIDE, Range
from adcore.training import Run, full_precision, resolve_device, seeded, train

WAYS = ("normal", "CutPaste", "scar")
SIDE = 64                                                # of a crop, in pixels
AREA = (0.02, 0.15)                                      # of a CutPaste rectangle, as a fraction of the crop
ASPECT = (0.3, 1 / 0.3)                                  # its width divided by its height
SCAR_WIDTH, SCAR_HEIGHT = (1.0, 4.0), (5.0, 6.0)         # of a scar, in pixels
ANGLE = 45.0                                             # largest rotation of a scar, in degrees
JITTER = 0.1                                             # of brightness, contrast, saturation and hue


# The three classes of the proxy task.

class Rectangles(NamedTuple):
    """One rectangle per image, in pixels: (B,) int64 each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def mask(self, h: int, w: int, device: torch.device) -> Tensor:
        """(B, 1, h, w) bool, True inside."""
        rows, columns = ((start[:, None] <= side) & (side < (start + length)[:, None]) for start, length, side in (
            (self.top, self.height, torch.arange(h)), (self.left, self.width, torch.arange(w))))
        return (rows.to(device)[:, :, None] & columns.to(device)[:, None])[:, None]


@full_precision
def three_ways(images: Tensor, side: int = SIDE, jitter: float = JITTER) -> Tensor:
    """One crop of each image: unchanged, with CutPaste and with CutPaste-Scar. (B, 3, H, W) -> (3, B, 3, side, side).

    Images are in [0, 1] and stay there. Each image is color-jittered before the crop with probability 0.5.

    Raises:
        ParameterError: images smaller than the crop, or a crop too small for a scar.
    """
    h, w = _checked_size(images, side)
    chosen = (torch.rand(len(images)) < 0.5).nonzero()[:, 0].to(images.device)
    some = images[chosen]
    images = images.index_copy(0, chosen, jitter_colors(some, torch.ones_like(some[:, :1], dtype=torch.bool), jitter))
    top, left = _integers(len(images), h - side), _integers(len(images), w - side)
    crops = _shifted(images, top, left)[..., :side, :side]
    return torch.stack([crops, cutpaste(crops, jitter=jitter), cutpaste_scar(crops, jitter=jitter)])


def cutpaste(images: Tensor, area: tuple[float, float] = AREA, aspect: tuple[float, float] = ASPECT,
             jitter: float = JITTER) -> Tensor:
    """CutPaste: a rectangle of each image, color-jittered, pasted elsewhere in it. (B, 3, H, W) -> (B, 3, H, W).

    area    range of the rectangle's area as a fraction of the image's, uniform
    aspect  range of width / height, uniform in the logarithm
    """
    h, w = _checked_size(images)
    pixels = h * w * _uniform(len(images), *area)
    ratio = _uniform(len(images), math.log(aspect[0]), math.log(aspect[1])).exp()
    width, height = (square.sqrt().round().long().clamp(1, most) for square, most in ((pixels * ratio, w), (pixels / ratio, h)))
    source, target = (Rectangles(_integers(len(images), h - height), _integers(len(images), w - width), height, width)
                      for _ in range(2))
    patches = jitter_colors(images, source.mask(h, w, images.device), jitter)
    shifted = _shifted(patches, source.top - target.top, source.left - target.left)
    return torch.where(target.mask(h, w, images.device), shifted, images)


def cutpaste_scar(images: Tensor, width: tuple[float, float] = SCAR_WIDTH, height: tuple[float, float] = SCAR_HEIGHT,
                  angle: float = ANGLE, jitter: float = JITTER) -> Tensor:
    """CutPaste-Scar: a thin, color-jittered, rotated rectangle pasted elsewhere. (B, 3, H, W) -> (B, 3, H, W).

    width, height  ranges in pixels, uniform, then rounded
    angle          largest rotation to either side, in degrees

    Raises:
        ParameterError: images too small for a scar.
    """
    h, w = _checked_size(images, math.ceil(math.hypot(width[1], height[1])))
    wide, high = (_uniform(len(images), *size).round().long() for size in (width, height))
    source = Rectangles(_integers(len(images), h - high), _integers(len(images), w - wide), high, wide)
    rotation = _uniform(len(images), -angle, angle) * math.pi / 180
    # The upright bounding box of the rotated rectangle goes anywhere in the image, but not beyond its border.
    cos, sin = rotation.cos().abs(), rotation.sin().abs()
    box_h, box_w = ((a * cos + b * sin).ceil().long() for a, b in ((high, wide), (wide, high)))
    center = torch.stack([_integers(len(images), most - box) + (box - 1) / 2 for most, box in ((h, box_h), (w, box_w))], 1)
    return paste_rotated(jitter_colors(images, source.mask(h, w, images.device), jitter), images, source, rotation, center)


def paste_rotated(sources: Tensor, images: Tensor, rectangles: Rectangles, rotation: Tensor, center: Tensor) -> Tensor:
    """Images with a rotated rectangle of `sources` pasted in: both (B, C, H, W) -> (B, C, H, W).

    Each pixel takes the nearest one of the rectangle, as Pillow's rotation does.

    rotation  (B,) radians, counterclockwise
    center    (B, 2) y, x in pixels where the rectangle's center goes; 0 is the center of the first pixel
    """
    h, w = images.shape[-2:]
    half, side = images.new_tensor([w / 2, h / 2]), images.new_tensor([(w - 1) / 2, (h - 1) / 2])           # x before y
    corner, extent = (torch.stack(pair, 1).to(images) for pair in ((rectangles.left, rectangles.top),
                                                                   (rectangles.width, rectangles.height)))
    cos, sin = rotation.cos().to(images), rotation.sin().to(images)
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)                        # (B, 2, 2)
    to, source = (center.to(images).flip(1) - side) / half, (corner + (extent - 1) / 2 - side) / half
    back = back * half / half[:, None]                                   # in units of half the image, as affine_grid wants
    theta = torch.cat([back, (source - (back @ to[:, :, None])[:, :, 0])[:, :, None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)                                    # (B, H, W, 2)
    source, extent = source[:, None, None], extent[:, None, None]
    offset = (grid - source) * half                                      # from the rectangle's center, in pixels
    inside = ((offset >= -extent / 2) & (offset < extent / 2)).all(3)
    offset = offset.clamp((1 - extent) / 2, (extent - 1) / 2)            # to the centers of the rectangle's own pixels
    found = F.grid_sample(sources, source + offset / half, mode="nearest", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], found, images)


def jitter_colors(images: Tensor, where: Tensor, jitter: float) -> Tensor:
    """Color jitter: brightness, contrast, saturation and hue, in an order drawn for each image. (B, 3, H, W) -> (B, 3, H, W).

    where   (B, 1, H, W) bool, the pixels whose mean gray is the reference for contrast
    jitter  largest change of each
    """
    order = torch.rand(len(images), 4).argsort(1)
    strength = 1 + _uniform((4, len(images)), -jitter, jitter)
    strength[3] -= 1                                                     # hue is shifted, the others are multiplied
    return photometric.color_jitter(images, order, strength, where)


def _checked_size(images: Tensor, least: int = 1) -> tuple[int, int]:
    if images.ndim != 4 or min(images.shape[2:]) < least:
        raise ParameterError(f"images {tuple(images.shape)} to cut and paste in: expected (B, 3, H, W) of at least "
                             f"{least}x{least} pixels")
    return images.shape[2], images.shape[3]


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pixel (y, x) of the result is pixel (y + down, x + right) of the image, or the nearest one inside the image."""
    h, w = images.shape[-2:]
    rows, columns = ((torch.arange(n) + by[:, None]).clamp(0, n - 1).to(images.device) for n, by in ((h, down), (w, right)))
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _integers(count: int, most: int | Tensor) -> Tensor:
    """(count,) int64, uniform from 0 to `most` inclusive; `most` is one number or (count,)."""
    return torch.minimum((torch.rand(count) * (most + 1)).long(), torch.as_tensor(most))


def _uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape).uniform_(low, high)


# Stage 1: the proxy task.

@dataclass(frozen=True, kw_only=True)
class CutPastePretrainingConfig(Config):
    """Settings of the proxy task; defaults are the supplement's.

    side        of a crop in pixels
    head        widths of the two hidden layers of the classifier
    steps       number of steps per epoch
    batch_size  images per step, each of which gives three crops. The supplement does not say whether its 96 counts images or
                crops; DS2's code reads 96 images
    lr, lr_end  learning rate at the first and the last step, half a cosine between
    jitter      largest color jitter, of whole images and of pasted patches
    amp         run the network in bfloat16; the paper does not. Crops and loss stay in float32
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

    ranges: ClassVar[dict[str, Range]] = {
        "side": IMAGE_SIDE, "head": Range(least=1, most=2**16, items=(1, math.inf)), "epochs": Range(least=1),
        "steps": Range(least=1), "lr_end": Range(least=0), "jitter": Range(least=0, most=1)}


class CutPasteNetwork(nn.Module):
    """Encoder and classifier, initialized from torch's random state. Only the encoder is used after the pretraining.

    losses  mean loss of each epoch, filled by `pretrain_cutpaste`
    """

    def __init__(self, config: CutPastePretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ResNetEncoder(("c5",), zero_residual=False)
        widths = [CHANNELS["c5"], *config.head]
        hidden = [layer for a, b in itertools.pairwise(widths)
                  for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(inplace=True))]
        self.head = nn.Sequential(*hidden, nn.Linear(widths[-1], len(WAYS)))
        self.losses: list[float] = []

    def forward(self, crops: Tensor) -> Tensor:
        """Logits of the three classes: (B, 3, s, s) in [0, 1] -> (B, 3)."""
        return self.head(self.encoder(standardized(crops))["c5"].mean((2, 3)))

    def loss(self, images: Tensor) -> Tensor:
        """Three-way cross-entropy over the three crops of each image: (B, 3, H, W) uint8 -> scalar."""
        with torch.no_grad():
            crops = three_ways(images.float() / 255, self.config.side, self.config.jitter)     # (3, B, 3, s, s)
        labels = torch.arange(len(WAYS), device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(self(crops.flatten(0, 1)).float(), labels)


def pretrain_cutpaste(config: CutPastePretrainingConfig, images: Tensor, *, checkpoint: Path | None = None,
                      progress: bool | None = None, seed: int = 0, device: str | torch.device = "cpu") -> CutPasteNetwork:
    """Train on normal images of all categories: (n, 3, H, W) uint8, 256 x 256 in the paper -> the network, in eval mode.

    Several processes (`adcore.distributed`) split each batch and draw their own random numbers, so the weights differ from
    those of one process.

    checkpoint  file from which an interrupted training resumes to the same weights

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
            # Without repetition where there are enough images.
            drawn = torch.randperm(len(images))[:c.batch_size] if len(images) >= c.batch_size else torch.randint(
                len(images), (c.batch_size,))
            yield (images[drawn.to(images.device)].to(device, non_blocking=True),)

    optimizer = torch.optim.SGD(network.parameters(), c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * c.steps, eta_min=c.lr_end)
    network.losses = train(network, network.loss, batches, optimizer, scheduler, epochs=c.epochs, each_step=True, seed=seed,
                           amp=c.amp, data_parallel=True, run=Run(checkpoint=checkpoint, progress=progress, desc="cutpaste"))
    return network


# Both stages.

@dataclass(frozen=True, kw_only=True)
class CutPasteConfig(PretrainedConfig, CutPastePretrainingConfig):
    """Settings of both stages: `CutPastePretrainingConfig`, and `PretrainedConfig` with `PatchDensityConfig`."""

    pretraining_size: int = 256


class CutPaste(PretrainedDetector):
    """CutPaste (3-way) as a detector. Unlike with DS2, hazelnut and screw share one Gaussian between all positions, and the
    images of the pretraining are resized bicubically; both as in DS2's code.

    Raises:
        ParameterError: settings that do not fit together, see the configs.
    """

    name: ClassVar[str] = "cutpaste"
    version: ClassVar[int] = 2  # 2: plain initialization and bicubic images, 1: zero residual weights and bilinear images
    aligned_categories = ALIGNED_FOR_CUTPASTE
    pretraining_resample: ClassVar[str] = "bicubic"
    Config: ClassVar[type[Any]] = CutPasteConfig
    Pretraining = CutPastePretrainingConfig
    quick: ClassVar[dict[str, Any]] = {
        "pretraining_size": 128, "epochs": 4, "steps": 10, "batch_size": 8, "image_size": 128, "stride": 16,
        "density_images": 24}

    def _train(self, images: Tensor, categories: Tensor, checkpoint: Path,
               progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        network = pretrain_cutpaste(self.config, images, checkpoint=checkpoint, progress=progress, seed=self.seed,
                                    device=self.device)
        return network.encoder, network.losses
