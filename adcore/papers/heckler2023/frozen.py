"""Base class of PatchCore, FastFlow and AsymST: a detector on frozen features of a pretrained network.

    image -> resized to the view -> backbone -> maps at the taps [(B, C_j, h_j, w_j)]

The paper compares the methods with one tap at a time. Each method takes one or several taps and any image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adcore.data import Sample, View
from adcore.data.transforms import as_size
from adcore.detector import Detector
from adcore.features import FeatureExtractor, cached_features


class FrozenTaps(Detector):
    """A detector whose config has `backbone`, `taps`, `weights` and `image_size`.

    Raises:
        ParameterError: an unknown backbone or tap, or images smaller than a tap's stride.
        WeightsError: the checkpoint is not here or does not fit.
    """

    paper: ClassVar[str] = "heckler2023"

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed).to(self.device)
        self.shapes = self.extractor.shapes(self.view.shape)        # [(C_j, h_j, w_j)]

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size))

    def cached_maps(self, samples: Sequence[Sample], progress: bool | None = None) -> list[Tensor]:
        """The taps' maps of all samples, computed in one pass, cached and memory-mapped: [(n, C_j, h_j, w_j)] float16.

        Training reads them, prediction computes float32: float16 takes half the space on disk, and the published code has
        float32 in both. With equal seeds the AUROC changed by less, on average over the seeds, than its standard deviation
        over the seeds (image and pixel AUROC, short trainings of FastFlow and AsymST on real images, commit 494c79f).
        """
        stored = cached_features(samples, self.view, self.extractor, lambda maps: torch.cat([m.flatten(1) for m in maps], 1),
                                 "maps", half=True, device=self.device, progress=progress)      # (n, sum C_j h_j w_j)
        parts = stored.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]
