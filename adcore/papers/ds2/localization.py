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

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adcore.data import Sample, View, read_images
from adcore.data.registry import DATASETS
from adcore.data.split import draw
from adcore.data.transforms import OPENCV, Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError
from adcore.features import FeatureExtractor
from adcore.features.patches import patch_features, patch_grid
from adcore.features.weights import weights_digest
from adcore.papers.ds2.encoder_cache import EncoderTraining, cached_encoder, read_encoder
from adcore.papers.ds2.gaussian import GaussianDensity
from adcore.papers.ds2.resnet_encoder import ResNetEncoder
from adcore.papers.ds2.upsampling import receptive_upsample
from adcore.papers.ds2.views import standardized
from adcore.progress import progress_bar
from adcore.settings import IMAGE_SIDE, Range
from adcore.training import float64_device

# Rules for categories hold in the data set that they are published for, and in resized copies of it, not wherever a category
# has the same name.

# Categories of MVTec AD by kind; Table 1 prints a mean over each.
TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})
OBJECTS = frozenset({"bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor",
                     "zipper"})

# Aligned categories show the object in one pose, so each patch position gets a Gaussian of its own. All others (textures,
# objects in any pose, surfaces) share one Gaussian between all positions.
Aligned = Mapping[str, frozenset[str]]                                          # data set -> its aligned categories
ALIGNED: Aligned = {
    "mvtec_ad": OBJECTS,
    "mvtec_loco": frozenset({"breakfast_box", "juice_bottle", "pushpins"}),     # not screw_bag, splicing_connectors
    "mini": frozenset({"chip"}),                                                # the other objects turn or move
}
ALIGNED_FOR_CUTPASTE: Aligned = {**ALIGNED, "mvtec_ad": OBJECTS - {"hazelnut", "screw"}}

PUBLISHED_IMAGES = {"mvtec_ad": 350, "mvtec_loco": 350, "mini": 350}            # at most so many images fit a density
OTHER_IMAGES = 1000                                                             # of KolektorSDD2, MTD and any other data set

IN_MEMORY = 4 * 2**30  # bytes of patch features; above that a shared Gaussian is fitted in two passes over the images


def published_name(dataset: str) -> str:
    """The published data set that a folder holds at some size; any other name stays as it is.

    >>> published_name("mvtec_384"), published_name("mvtec_anomaly_detection"), published_name("mine")
    ('mvtec_ad', 'mvtec_ad', 'mine')
    """
    folder = re.sub(r"_\d+$", "", dataset)
    return next((source.name for source in DATASETS.values() if folder in (source.name, *source.folders)), dataset)


def published_images(dataset: str) -> int:
    """Largest number of training images of a category that DS2's evaluation fits the density to.

    >>> published_images("mvtec_ad"), published_images("ksdd2"), published_images("mine")
    (350, 1000, 1000)
    """
    return PUBLISHED_IMAGES.get(published_name(dataset), OTHER_IMAGES)


@dataclass(frozen=True, kw_only=True)
class PatchDensityConfig(Config):
    """Settings of the localization; defaults are those of DS2's published evaluation.

    image_size       side in pixels, or (H, W); the last patch must end at the image's border
    patch, stride    side of a patch and distance between patches, in pixels
    density_images   number of training images drawn for the density; 0 means `published_images`: at most 350 of MVTec AD,
                     MVTec LOCO and `mini`, at most 1000 of any other data set
    layout           'aligned' fits a Gaussian at each position, 'pooled' one for all positions. 'published' decides by data set
                     and category (`ALIGNED`); in a data set without published rules, such as your own, it is 'pooled'
    dims             PCA dimensions kept per patch; 0 means `gaussian.published_dims`, or fewer if the patches span fewer
    official_masks   resize masks as the published evaluation does, by OpenCV's bilinear rule: a pixel counts only if the two by
                     two pixels that it is a mean of are all masked. The default takes the nearest pixel
    """

    image_size: Size = 256
    patch: int = 32
    stride: int = 4
    density_images: int = 0
    layout: str = "published"
    dims: int = 0
    official_masks: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"layout": ("published", "aligned", "pooled")}
    ranges: ClassVar[dict[str, Range]] = {
        "patch": Range(least=1), "stride": Range(least=1), "density_images": Range(least=0), "dims": Range(least=0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        h, w = as_size(self.image_size)
        patch_grid((h, w), self.patch, self.stride)
        if (h - self.patch) % self.stride or (w - self.patch) % self.stride:
            raise self.refused(f"patches of {self.patch} pixels, one every {self.stride}, do not end at the border of images "
                               f"of {h}x{w}: change image_size or stride")


class PatchDensity(Detector):
    """Mahalanobis distances of patch features to the Gaussian of normal ones. Subclasses provide the encoder.

    Time: the encoder processes (patch / stride)^2 times the pixels of each image. Memory while the density is fitted:
    4 n N D bytes for n images of N patches and D features (2.3 GB for 350 images of 57 x 57 patches and 512 features);
    `GaussianDensity` says what is kept.
    """

    paper: ClassVar[str] = "ds2"
    aligned_categories: ClassVar[Aligned] = ALIGNED

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

    def is_aligned(self, dataset: str, category: str) -> bool:
        """True if each patch position gets a Gaussian of its own."""
        layout = self.config.layout
        if layout != "published":
            return layout == "aligned"
        # In a joined data set a category may be called 'mini/chip'.
        return category.rpartition("/")[2] in self.aligned_categories.get(published_name(dataset), ())

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> PatchDensity:
        """Fit the density to normal images of one category.

        Raises:
            DataError: no image, or images of several categories.
            ParameterError: too few images for `dims`.
        """
        categories = {sample.category for sample in samples}
        if len(categories) != 1:
            raise DataError(f"a density of patches is of one category, not of {', '.join(sorted(categories)) or 'none'}")
        dataset, category = samples[0].dataset, samples[0].category
        chosen = draw(samples, self.config.density_images or published_images(dataset))[0]
        aligned = self.is_aligned(dataset, category)
        self.density = GaussianDensity(self.config.dims or None, aligned=aligned).to(float64_device(self.device))
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

    def _predict(self, images: Tensor) -> Prediction:
        """Receptive upsampling of the Mahalanobis distances.

        Raises:
            AdcoreError: called before `fit`.
        """
        distances = self.distances(images)
        return Prediction(distances.flatten(1).amax(1), receptive_upsample(distances, self.config.patch, self.config.stride))

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
    official_preprocessing   evaluate on BGR images, resized by OpenCV's bilinear rule and not standardized, as the published
                             code does although it pretrains on standardized RGB images
    """

    pretraining: str = "dataset"
    pretraining_size: int = 512
    official_preprocessing: bool = False

    ranges: ClassVar[dict[str, Range]] = {"pretraining_size": IMAGE_SIDE}


class PretrainedDetector(PatchDensity):
    """An encoder pretrained on normal images of many categories, then the density of one category.

        pretrain(images of all categories) -> encoder    once, kept in the cache (`encoder_cache`)
        fit(images of one category)        -> density    for each category

    Pretraining            config class of the settings that decide the encoder's weights
    pretraining_resample   how the images of the pretraining are resized, see `View`
    losses                 mean loss of each epoch of the pretraining
    """

    pretrains: ClassVar[bool] = True
    Pretraining: ClassVar[type[Config]]
    pretraining_resample: ClassVar[str] = "bilinear"

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self._encoder: nn.Module | None = None
        self._path: Path | None = None
        self.losses: list[float] = []

    @abstractmethod
    def _train(self, images: Tensor, categories: Tensor, checkpoint: Path,
               progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        """Pretrain: (n, 3, H, W) uint8 and the numbers of their categories (n,) -> encoder and the mean loss of each epoch."""

    @property
    def encoder(self) -> nn.Module:
        if self._encoder is None:
            raise AdcoreError(f"{type(self).__name__} has no encoder yet: call pretrain before fit")
        return self._encoder

    @property
    def weights_digest(self) -> str:
        return weights_digest(self._path) if self._path else ""

    @property
    def view(self) -> View:
        return replace(super().view, resample=OPENCV) if self.config.official_preprocessing else super().view

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
        known = {field.name for field in fields(self.Pretraining)}
        settings = {name: value for name, value in asdict(self.config).items() if name in known}
        training = EncoderTraining(self.name, settings, self.config.pretraining_size, self.seed, self.pretraining_resample)
        names = list(dict.fromkeys(sample.category for sample in samples))
        categories = torch.tensor([names.index(sample.category) for sample in samples])
        self._path = cached_encoder(training, samples, lambda images, checkpoint: self._train(images, categories, checkpoint,
                                                                                              progress))
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
        return super().diagnose(samples) | ({"pretraining_loss": self.losses[-1]} if self.losses else {})


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

    ranges: ClassVar[dict[str, Range]] = {"tap": Range(least=1)}


class GDE(PatchDensity):
    """Gaussian density estimation on a frozen backbone: the same localization without DS2's or CutPaste's pretraining.

    Raises:
        ParameterError: an unknown backbone or tap, or patches smaller than the tap's stride.
        WeightsError: the weights are not on this machine or do not fit.
    """

    name: ClassVar[str] = "gde"
    Config: ClassVar[type[Any]] = GDEConfig
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "tap": 5}  # stride 32
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
