"""Localization with a Gaussian density of patch features: what DS2, CutPaste and the frozen baseline GDE have in common.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining" (DS2), WACV 2024. The
supplement does not describe the localization; this follows the published evaluation.

    image 256 x 256 -> patches 32 x 32, one every 4 pixels -> encoder, mean over the map, unit length (57 * 57, 512)
                    -> PCA and Gaussian -> Mahalanobis distance of each patch (57, 57)
                    -> receptive upsampling -> anomaly map (256, 256)

The image score is the largest patch distance. `gaussian.py` holds the density, `upsampling.py` the receptive upsampling.

    PatchDensity         the localization, for any encoder
    PretrainedDetector   an encoder that was pretrained on normal images first: `ds2.DS2`, `cutpaste.CutPaste`
    GDE                  an encoder with ImageNet weights or random weights, to compare with
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
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
from adcore.features import FeatureExtractor
from adcore.features.patches import patch_features, patch_grid
from adcore.features.weights import weights_digest
from adcore.papers.ds2.encoder_cache import EncoderTraining, cached_encoder, read_encoder
from adcore.papers.ds2.gaussian import GaussianDensity
from adcore.papers.ds2.resnet_encoder import ResNetEncoder
from adcore.papers.ds2.upsampling import receptive_upsample
from adcore.papers.ds2.views import standardized
from adcore.progress import progress_bar

# Categories of MVTec AD by kind; Table 1 prints a mean over each.
TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})
OBJECTS = frozenset({"bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor",
                     "zipper"})

# Aligned categories show the object in one pose, so each patch position gets a Gaussian of its own. All others (textures,
# objects in any pose, surfaces) share one Gaussian between all positions.
LOCO_ALIGNED = frozenset({"breakfast_box", "juice_bottle", "pushpins"})         # not screw_bag, splicing_connectors
MINI_ALIGNED = frozenset({"chip"})                                              # the other objects of `mini` turn or move
ALIGNED = OBJECTS | LOCO_ALIGNED | MINI_ALIGNED
ALIGNED_FOR_CUTPASTE = ALIGNED - {"hazelnut", "screw"}

IN_MEMORY = 4 * 2**30  # bytes of patch features; above that a shared Gaussian is fitted in two passes over the images


def published_images(category: str) -> int:
    """Largest number of training images that DS2's evaluation fits the density of a category to."""
    return 1000 if category in {"ksdd2", "magnetic_tile"} else 350


@dataclass(frozen=True, kw_only=True)
class PatchDensityConfig(Config):
    """Settings of the localization; defaults are those of DS2's published evaluation.

    image_size       side in pixels, or (H, W); the last patch must end at the image's border
    patch, stride    side of a patch and distance between patches, in pixels
    density_images   number of training images drawn for the density; 0 means `published_images`
    layout           'aligned' fits a Gaussian at each position, 'pooled' one for all positions, 'published' decides by the
                     category's name (`ALIGNED`)
    dims             PCA dimensions kept per patch; 0 means `gaussian.published_dims`, or fewer if the patches span fewer
    official_masks   resize masks as the published evaluation does: a pixel counts only if it lies wholly inside the mask. The
                     default takes the nearest pixel
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
                                 f"end at the border of images of {h}x{w}: change image_size or stride")


class PatchDensity(Detector):
    """Mahalanobis distances of patch features to the Gaussian of normal ones. Subclasses provide the encoder.

    Time: the encoder processes (patch / stride)^2 times the pixels of each image. Memory while the density is fitted:
    4 n N D bytes for n images of N patches and D features (2.3 GB for 350 images of 57 x 57 patches and 512 features);
    `GaussianDensity` says what is kept.
    """

    paper: ClassVar[str] = "ds2"
    aligned_categories: ClassVar[frozenset[str]] = ALIGNED

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.density: GaussianDensity | None = None

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """(b, 3, p, p), prepared by `prepared` -> (b, D, h, w), in eval mode on the device."""

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the encoder expects them: (B, 3, H, W) in [0, 1] -> (B, 3, H, W)."""
        return images

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size), whole_masks=self.config.official_masks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.view.shape, self.config.patch, self.config.stride)

    def is_aligned(self, category: str) -> bool:
        """True if each patch position gets a Gaussian of its own."""
        layout = self.config.layout
        return category in self.aligned_categories if layout == "published" else layout == "aligned"

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> PatchDensity:
        """Fit the density to normal images of one category.

        Raises:
            DataError: no image, or images of several categories.
            ParameterError: too few images for `dims`.
        """
        categories = {sample.category for sample in samples}
        if len(categories) != 1:
            raise DataError(f"a density of patches is of one category, not of {', '.join(sorted(categories)) or 'none'}")
        category = categories.pop()
        chosen = draw(samples, self.config.density_images or published_images(category))[0]
        aligned = self.is_aligned(category)
        self.density = GaussianDensity(self.config.dims or None, aligned=aligned).to(self.device)
        one_image = next(self._encoded(chosen[:1], False))
        too_many = len(chosen) * one_image.nbytes > IN_MEMORY
        self.density.fit((lambda: self._encoded(chosen, progress)) if too_many and not aligned else
                         torch.cat(list(self._encoded(chosen, progress))))
        return self

    def _encoded(self, samples: Sequence[Sample], progress: bool | None) -> Iterator[Tensor]:
        with progress_bar(total=len(samples), desc="patches", enabled=progress) as bar:
            for images in read_images(samples, self.view, 4):
                yield self.encode_patches(images.to(self.device))
                bar.update(len(images))

    def encode_patches(self, images: Tensor) -> Tensor:
        """Unit feature vectors of all patches, row by row: (B, 3, *view) in [0, 1] -> (B, N, D)."""
        prepared = self.prepared(images).contiguous(memory_format=torch.channels_last)
        return patch_features(self.encoder, prepared, self.config.patch, self.config.stride, batch=512)

    def distances(self, images: Tensor) -> Tensor:
        """Mahalanobis distance of each patch: (B, 3, H, W) in [0, 1] -> (B, h, w).

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.density is None:
            raise AdcoreError(f"{type(self).__name__} has no density yet: call fit before predict")
        return self.density.score(self.encode_patches(self.own_size(images))).unflatten(1, self.grid)

    def predict(self, images: Tensor) -> Prediction:
        """Receptive upsampling of the Mahalanobis distances: (B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W).

        Raises:
            AdcoreError: called before `fit`.
        """
        distances = self.distances(images)
        maps = receptive_upsample(distances, self.config.patch, self.config.stride)
        if maps.shape[-2:] != images.shape[-2:]:
            maps = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", antialias=True)[:, 0]
        return Prediction(distances.flatten(1).amax(1), maps)

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """sameness: length of the mean of all normal patches' unit features; 1 means that the features have collapsed."""
        if self.density is None:
            return {}
        return {"sameness": float(self.density.mean.double().mean(0).norm())}


class OneMap(nn.Module):
    """One of several maps of a network: (B, 3, H, W) -> (B, C, h, w).

    key  name or index of the map in the network's output
    """

    def __init__(self, network: nn.Module, key: str | int) -> None:
        super().__init__()
        self.network, self.key = network, key

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[self.key]


# Encoders that are pretrained first.

@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(PatchDensityConfig):
    """Settings of a pretrained detector, beside those of its pretraining.

    pretraining              images that the encoder learns from: 'dataset' (training images of all categories), 'category'
                             (those of the tested category only), or another data set, 'NAME' or 'NAME:CATEGORY+CATEGORY'
    pretraining_size         side in pixels at which these images are held in memory
    official_preprocessing   evaluate on BGR images that are not standardized, as the published code does although it
                             pretrains on standardized RGB images
    """

    pretraining: str = "dataset"
    pretraining_size: int = 512
    official_preprocessing: bool = False


class PretrainedDetector(PatchDensity):
    """An encoder pretrained on normal images of many categories, then the density of one category.

        pretrain(images of all categories) -> encoder    once, kept in the cache (`encoder_cache`)
        fit(images of one category)        -> density    for each category

    Pretraining  config class of the settings that decide the encoder's weights
    losses       mean loss of each epoch of the pretraining
    """

    pretrains: ClassVar[bool] = True
    Pretraining: ClassVar[type[Config]]

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self._encoder: nn.Module | None = None
        self._path: Path | None = None
        self.losses: list[float] = []

    @abstractmethod
    def _train(self, images: Tensor, checkpoint: Path, progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        """Pretrain: (n, 3, H, W) uint8 -> encoder and the mean loss of each epoch."""

    @property
    def encoder(self) -> nn.Module:
        if self._encoder is None:
            raise AdcoreError(f"{type(self).__name__} has no encoder yet: call pretrain before fit")
        return self._encoder

    @property
    def weights_digest(self) -> str:
        return weights_digest(self._path) if self._path else ""

    def prepared(self, images: Tensor) -> Tensor:
        return images.flip(1) if self.config.official_preprocessing else standardized(images)

    def pretrain(self, samples: Sequence[Sample], *, progress: bool | None = None) -> None:
        """Pretrain the encoder on normal images, or read it from the cache; see `encoder_cache.cached_encoder`.

        Raises:
            DataError: no image, an anomalous one, or one that cannot be read.
            ParameterError: fewer images than a batch.
            StoreError: the cache cannot be written.
        """
        anomalous = next((sample for sample in samples if sample.label), None)
        if not samples or anomalous is not None:
            raise DataError(f"{type(self).__name__} is pretrained on normal images" + (
                f", and {anomalous.name} is anomalous" if anomalous else ", and there is none"))
        names = {field.name for field in fields(self.Pretraining)}
        settings = {name: value for name, value in asdict(self.config).items() if name in names}
        training = EncoderTraining(self.name, settings, self.config.pretraining_size, self.seed)
        self._path = cached_encoder(training, samples, lambda images, checkpoint: self._train(images, checkpoint, progress))
        encoder, self.losses = read_encoder(self._path)
        self._encoder = OneMap(encoder, "c5").to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None,
            progress: bool | None = None) -> PretrainedDetector:
        """Fit the density to normal images of one category. Without `pretrain` before, the encoder learns from them first."""
        if self._encoder is None:
            self.pretrain(samples, progress=progress)
        super().fit(samples, progress=progress)
        return self

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """`sameness`, and pretraining_loss of the last epoch."""
        return super().diagnose(samples) | {"pretraining_loss": self.losses[-1]}


# Frozen encoders.

@dataclass(frozen=True, kw_only=True)
class GDEConfig(PatchDensityConfig):
    """Settings of the frozen baseline. The supplement has no such row; we chose the network that DS2 trains.

    backbone, weights   see `adcore.features`
    tap                 stage whose map is averaged; 4 is a ResNet's last
    """

    backbone: str = "resnet18"
    tap: int = 4
    weights: str = "default"


class GDE(PatchDensity):
    """Gaussian density estimation on a frozen backbone: the same localization without DS2's or CutPaste's pretraining.

    Raises:
        ParameterError: an unknown backbone or tap, or patches smaller than the tap's stride.
        WeightsError: the weights are not on this machine or do not fit.
    """

    name: ClassVar[str] = "gde"
    Config: ClassVar[type[Any]] = GDEConfig
    quick: ClassVar[dict[str, Any]] = {
        "backbone": "efficientnet_lite0", "tap": 5, "image_size": 128, "stride": 16, "density_images": 24}

    def __init__(self, config: GDEConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        self._extractor = FeatureExtractor(c.backbone, (c.tap,), c.weights, seed)
        self._encoder = OneMap(self._extractor, 0).to(self.device).eval()
        self._extractor.shapes((c.patch, c.patch))  # raises if a patch is smaller than the tap's stride

    @property
    def encoder(self) -> nn.Module:
        return self._encoder

    @property
    def weights_digest(self) -> str:
        return self._extractor.digest
