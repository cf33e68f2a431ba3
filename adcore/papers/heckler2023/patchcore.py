"""PatchCore: the distance of each patch to the nearest patch of normal images is its anomaly score.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022; one of the three methods of heckler2023.

    image -> frozen features -> patch features -> (fit) coreset bank | (predict) nearest neighbor -> map

    paper     code        shape          meaning
    phi_j     maps        (B, C, h, w)   backbone maps at the taps j
    P         features    (B, D, h, w)   patch features, averaged over 3x3 neighborhoods
    M         bank        (m, D)         patch features of normal images, subsampled by greedy k-center
    d         distances   (B, h, w)      squared distance of each patch to the bank; the image score s* is their maximum

The paper's formulas have the distance itself (Eq. 6). The published code has its square, and so does this one by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.data import Sample, View
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Prediction
from adcore.errors import AdcoreError, ParameterError
from adcore.features import Tap, cached_features, concatenate
from adcore.files import on_disk
from adcore.kernels import kcenter, nearest
from adcore.papers.heckler2023.frozen import FrozenTaps
from adcore.settings import WIDTH, Range

PART = 2**16  # patches whose distances to all starting points are in memory together


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(Config):
    """Settings of PatchCore; defaults are those of the published code's standard run.

    embed_dim       adaptive average pooling of each tap's C x 3 x 3 neighborhood, and of the concatenated taps, to this many
                    numbers; 0 takes the mean of each channel over the neighborhood, which suits narrow backbones
    coreset         fraction of the patches that is kept, rounded down to a whole number, or their number if above 1
    projection      dimensions of the random projection before the coreset selection
    starts          random starting points of the coreset selection
    neighbors       nearest neighbors whose distances are averaged; with `squared`, the mean is one of squared distances
    squared         distances are squared, as in the published code (its search is faiss' IndexFlatL2), before the map is
                    interpolated and smoothed; False takes the distance itself, as in the paper's Eq. (6). The order of the
                    images by their scores is the same if neighbors is 1, the order of pixels is not
    sigma           standard deviation in pixels of the Gaussian that smooths the map (`smoothed`); 0 leaves it as it is
    max_bank_bytes  `fit` refuses to hold more in memory than this (see `PatchCore.memory`)
    """

    backbone: str = "wide_resnet50_2"
    taps: tuple[Tap, ...] = (2, 3)
    weights: str = "default"
    image_size: Size = 256
    crop: Size | None = 224
    embed_dim: int = 1024
    coreset: float = 0.1
    projection: int = 128
    starts: int = 10
    neighbors: int = 1
    squared: bool = True
    sigma: float = 4.0
    max_bank_bytes: int = 8 * 2**30

    ranges: ClassVar[dict[str, Range]] = {
        "embed_dim": Range(least=0, most=2**16), "coreset": Range(above=0), "projection": WIDTH, "starts": Range(least=1),
        "neighbors": Range(least=1), "sigma": Range(least=0), "max_bank_bytes": Range(least=1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coreset > 1 and self.coreset % 1:
            raise self.refused(f"coreset={self.coreset} must be a fraction up to 1 or a whole number of patches")
        if self.crop is not None and any(c > s for c, s in zip(as_size(self.crop), as_size(self.image_size), strict=True)):
            raise self.refused(f"crop={self.crop} is larger than image_size={self.image_size}")


def neighborhood_features(maps: Sequence[Tensor], embed_dim: int) -> Tensor:
    """Locally aware patch features (Sec. 3.1): [(B, C_j, h_j, w_j)] -> (B, D, h, w) on the first tap's grid.

    Each cell is averaged over its 3x3 neighborhood. D is `embed_dim`, or the sum of the channels if that is 0.
    """
    grid = maps[0].shape[-2], maps[0].shape[-1]
    if not embed_dim:
        # Zero padding is part of the mean, as in the unfolded neighborhoods below.
        return concatenate([F.avg_pool2d(m, 3, stride=1, padding=1) for m in maps], grid, align_corners=False)
    joined = concatenate([_embedded(m, embed_dim) for m in maps], grid, align_corners=False)    # (B, taps * embed_dim, h, w)
    return joined.permute(0, 2, 3, 1).unflatten(3, (embed_dim, len(maps))).mean(4).permute(0, 3, 1, 2)


def _embedded(m: Tensor, embed_dim: int) -> Tensor:
    """Adaptive average pooling of each cell's C x 3 x 3 neighborhood, in this order: (B, C, h, w) -> (B, embed_dim, h, w)."""
    channels = m.shape[1]
    if embed_dim % channels:
        patches = F.unfold(m, 3, padding=1).transpose(1, 2)                                     # (B, N, C * 9)
        return F.adaptive_avg_pool1d(patches, embed_dim).transpose(1, 2).unflatten(2, m.shape[-2:])
    # Each mean is over cells of one channel, so it is a convolution. Unfolded, a batch would take nine times its size.
    windows = F.adaptive_avg_pool1d(torch.eye(9, device=m.device, dtype=m.dtype), embed_dim // channels)    # (9, D / C)
    return F.conv2d(m, windows.T.reshape(-1, 1, 3, 3).repeat(channels, 1, 1, 1), padding=1, groups=channels)


def patch_distances(features: Tensor, bank: Tensor, neighbors: int = 1, squared: bool = True) -> Tensor:
    """Distance of each patch to the bank (Sec. 3.3): (B, D, h, w), (m, D) -> (B, h, w), the mean over the nearest neighbors."""
    b, _, h, w = features.shape
    found = nearest(features.permute(0, 2, 3, 1).flatten(0, 2), bank, neighbors)[0]             # (B * h * w, neighbors)
    return (found.square() if squared else found).mean(1).view(b, h, w)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, 1, H, W) smoothed by a Gaussian, same shape: equal to scipy.ndimage.gaussian_filter with its default settings.

    The kernel ends at int(4 sigma + 0.5) pixels. Beyond the border the map is mirrored with its last pixel repeated,
    (d c b a | a b c d | d c b a), as often as the kernel needs.
    """
    radius = int(4 * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    for _ in range(2):                          # down the rows, then, transposed, along them
        n = maps.shape[2]
        index = torch.arange(-radius, n + radius, device=maps.device) % (2 * n)
        maps = F.conv2d(maps[:, :, torch.minimum(index, 2 * n - 1 - index)], kernel).transpose(2, 3)
    return maps


class PatchCore(FrozenTaps):
    """PatchCore as a detector; one bank per category."""

    name: ClassVar[str] = "patchcore"
    version: ClassVar[int] = 2  # 2: squared distances, border and length of the blur, and bank size as in the code
    Config: ClassVar[type[Any]] = PatchCoreConfig
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (3, 4)}  # strides 8 and 16
    quick: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (2, 3), "image_size": 160, "crop": None,
                                       "embed_dim": 0, "coreset": 2000}

    def __init__(self, config: PatchCoreConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.bank: Tensor | None = None

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size), self.config.crop)

    def features(self, maps: list[Tensor]) -> Tensor:
        """(B, D, h, w) patch features on the first tap's grid."""
        return neighborhood_features(maps, self.config.embed_dim)

    def memory(self, images: int) -> dict[str, int]:
        """Bytes that `fit` needs for this number of training images, computed in advance. On a CPU the patches and their
        projections are files, which it reads part by part, and the rest is memory; on a GPU all is memory.

        patches    all patch features
        projected  their random projection for the coreset; 0 if they are narrow enough or all are kept
        distances  three numbers per patch in the selection of the coreset; 0 if all are kept
        bank       the patches that are kept
        """
        c, (_, h, w) = self.config, self.shapes[0]
        patches, width = images * h * w, c.embed_dim or sum(self.extractor.channels)
        keep = self.kept(patches)
        selected = patches if keep < patches else 0
        projected = selected * c.projection if width > c.projection else 0
        return {"patches": 4 * patches * width, "projected": 4 * projected, "distances": 12 * selected,
                "bank": 4 * keep * width}

    def kept(self, patches: int) -> int:
        """Number of patches that the bank keeps out of `patches`."""
        coreset = self.config.coreset
        return min(patches, max(1, int(coreset if coreset > 1 else coreset * patches)))

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> PatchCore:
        """Fill the bank (Sec. 3.2). Nothing is trained; `checkpoint` is not used.

        Raises:
            ParameterError: it would hold more than `max_bank_bytes` in memory.
        """
        c = self.config
        in_files = ("patches", "projected") if self.device.type == "cpu" else ()
        memory = {name: size for name, size in self.memory(len(samples)).items() if name not in in_files}
        if sum(memory.values()) > c.max_bank_bytes:
            parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in memory.items())
            raise ParameterError(f"the bank of {len(samples)} images takes {sum(memory.values()) / 2**30:.1f} GiB ({parts}), "
                                 f"over max_bank_bytes={c.max_bank_bytes / 2**30:.1f} GiB: keep fewer patches (coreset), use "
                                 f"a smaller image, a deeper tap or fewer images, or raise the limit")
        features = cached_features(samples, self.view, self.extractor, lambda maps: self.features(maps).permute(0, 2, 3, 1),
                                   f"patchcore patches {c.embed_dim}", device=self.device, progress=progress)
        patches = features.flatten(0, 2).to(self.device)                                        # (n, D), on a CPU still on disk
        self.bank = patches[self._coreset(patches, self.kept(len(patches)), progress)]          # (m, D)
        return self

    def _coreset(self, patches: Tensor, keep: int, progress: bool | None) -> Tensor:
        """Indices of the kept patches: greedy k-center after a random projection, from random starting points."""
        if keep == len(patches):
            return torch.arange(keep, device=patches.device)
        generator = torch.Generator().manual_seed(self.seed)
        d = patches.shape[1]
        points = patches
        if d > self.config.projection:
            matrix = torch.randn(d, self.config.projection, generator=generator) / self.config.projection**0.5
            points = self._projected(patches, matrix.to(patches.device))
        starts = points[torch.randperm(len(points), generator=generator)[: self.config.starts].to(points.device)]
        initial = torch.cat([torch.cdist(part, starts).mean(1) for part in points.split(PART)])
        return kcenter(points, keep, initial=initial, progress=progress)

    def _projected(self, patches: Tensor, matrix: Tensor) -> Tensor:
        """patches @ matrix: (n, D), (D, d) -> (n, d); on a CPU in a file, as the patches are."""
        if patches.device.type != "cpu":
            return patches @ matrix
        return torch.from_numpy(on_disk((part @ matrix).numpy() for part in patches.split(PART)))

    def _predict(self, images: Tensor) -> Prediction:
        """Distance to the nearest normal patch (Sec. 3.3), upsampled and smoothed; the score is the largest one of a patch.

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.bank is None:
            raise AdcoreError("PatchCore has no bank yet: call fit before predict")
        size = images.shape[-2], images.shape[-1]
        features = self.features(self.extractor(images))                                        # (B, D, h, w)
        distances = patch_distances(features, self.bank, self.config.neighbors, self.config.squared)    # (B, h, w)
        maps = F.interpolate(distances[:, None], size, mode="bilinear", align_corners=False)    # (B, 1, H, W)
        if self.config.sigma > 0:
            maps = smoothed(maps, self.config.sigma)
        return Prediction(distances.amax(dim=(1, 2)), maps[:, 0])
