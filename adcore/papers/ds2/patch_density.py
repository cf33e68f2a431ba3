"""Localization by the Gaussian density of patches: what DS2, CutPaste and the features they are compared with share.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining" (DS2), WACV 2024, by
its published evaluation.

    image 256 x 256 -> patches 32 x 32, one every 4 pixels -> encoder, averaged, unit length (57 * 57, 512)
                    -> PCA and Gaussian -> Mahalanobis distance of each patch -> spread over its pixels (256, 256)

The score of an image is its largest patch distance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View, read_images
from adcore.data.split import draw
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features.patches import patch_features, patch_grid
from adcore.papers.ds2.alignment import ALIGNED, published_images
from adcore.papers.ds2.gaussian import GaussianDensity
from adcore.papers.ds2.upsampling import receptive_upsample
from adcore.progress import progress_bar

IN_MEMORY = 4 * 2**30  # bytes of patch features; more are encoded twice instead, where one Gaussian serves all positions


@dataclass(frozen=True, kw_only=True)
class PatchDensityConfig(Config):
    """Settings of the localization; defaults are those of DS2's published evaluation.

    image_size       side in pixels, or (H, W); patches must end where the image does
    patch, stride    in pixels
    density_images   training images drawn for the density; 0 takes `alignment.published_images`
    layout           'published' goes by the category's name (see `alignment`), 'aligned' and 'pooled' are for all
    dims             numbers kept of a patch; 0 takes `papers.ds2.gaussian.published_dims`, or as many as the patches span
    official_masks   masks as that evaluation resizes them: only pixels count that lie wholly inside. The default takes
                     the nearest pixel
    """

    image_size: Size = 256
    patch: int = 32
    stride: int = 4
    density_images: int = 0
    layout: str = "published"
    dims: int = 0
    official_masks: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"layout": ("published", "aligned", "pooled")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.density_images, self.dims) < 0:
            raise ParameterError(f"{type(self).__qualname__}: density_images and dims must be at least 0, which means as "
                                 f"published")
        h, w = as_size(self.image_size)
        patch_grid((h, w), self.patch, self.stride)
        if (h - self.patch) % self.stride or (w - self.patch) % self.stride:
            raise ParameterError(f"{type(self).__qualname__}: patches of {self.patch} pixels, one every {self.stride}, do not "
                                 f"end where images of {h}x{w} do: change image_size or stride")


class PatchDensity(Detector):
    """Some encoder of patches, and the density of what it says of normal ones.

    Time: the encoder passes over (patch / stride)^2 times the pixels of each image. Memory: 4 n N D bytes while the density is
    fitted (2.3 GB for 350 images of 57 x 57 patches of 512 numbers); see `GaussianDensity` for what is kept.
    """

    paper: ClassVar[str] = "ds2"
    aligned: ClassVar[frozenset[str]] = ALIGNED

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.density: GaussianDensity | None = None

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """(b, 3, p, p), prepared -> (b, D, h, w), in eval mode on the device."""

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the encoder wants them: (B, 3, H, W) in [0, 1] -> (B, 3, H, W)."""
        return images

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size), whole_masks=self.config.official_masks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.view.shape, self.config.patch, self.config.stride)

    def lies_still(self, category: str) -> bool:
        """True where every position gets a Gaussian of its own."""
        layout = self.config.layout
        return category in self.aligned if layout == "published" else layout == "aligned"

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> PatchDensity:
        """Fit the density to normal images of one category.

        Raises:
            DataError: no image, or images of several categories.
            ParameterError: too few of them for `dims`.
        """
        categories = {sample.category for sample in samples}
        if len(categories) != 1:
            raise DataError(f"a density of patches is of one category, not of {', '.join(sorted(categories)) or 'none'}")
        category = categories.pop()
        chosen = draw(samples, self.config.density_images or published_images(category))[0]
        aligned = self.lies_still(category)
        self.density = GaussianDensity(self.config.dims or None, aligned=aligned).to(self.device)
        first = next(self._encoded(chosen[:1], False))
        too_many = len(chosen) * first.nbytes > IN_MEMORY
        self.density.fit((lambda: self._encoded(chosen, progress)) if too_many and not aligned else
                         torch.cat(list(self._encoded(chosen, progress))))
        return self

    def _encoded(self, samples: Sequence[Sample], progress: bool | None) -> Iterator[Tensor]:
        with progress_bar(total=len(samples), desc="patches", enabled=progress) as bar:
            for images in read_images(samples, self.view, 4):
                yield self.patch_features(images.to(self.device))
                bar.update(len(images))

    def patch_features(self, images: Tensor) -> Tensor:
        """Unit features of all patches, row by row: (B, 3, *view) -> (B, N, D)."""
        prepared = self.prepared(images).contiguous(memory_format=torch.channels_last)
        return patch_features(self.encoder, prepared, self.config.patch, self.config.stride, batch=512)

    def distances(self, images: Tensor) -> Tensor:
        """Mahalanobis distance of each patch: (B, 3, H, W) in [0, 1] -> (B, h, w).

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.density is None:
            raise AdcoreError(f"{type(self).__name__} has no density yet: call fit before predict")
        return self.density.score(self.patch_features(self.own_size(images))).unflatten(1, self.grid)

    def predict(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W).

        Raises:
            AdcoreError: called before `fit`.
        """
        distances = self.distances(images)
        maps = receptive_upsample(distances, self.config.patch, self.config.stride)
        if maps.shape[-2:] != images.shape[-2:]:
            maps = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", antialias=True)[:, 0]
        return Prediction(distances.flatten(1).amax(1), maps)

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """sameness: length of the mean of all normal patches' unit features, 1 where the encoder says one thing of all."""
        if self.density is None:
            return {}
        return {"sameness": float(self.density.mean.double().mean(0).norm())}
