"""Networks beside each other on the defects of a category: the numbers below Fig. S2 (uniad2022, Sec. E.2).

    error inside      relative error over the cells of a defect, see papers.uniad2022.shortcut
    copied            how much of the defect comes back, see papers.uniad2022.shortcut; of drawn data only
    own patch         share of a defect's cells that a collage draws with their own patch of pixels
    error on normal   relative error over all cells of normal images
    pixel AUROC       of the anomaly maps, over all test images

A network that copies has a small error and finds its own patches. `mean_feature` makes the yardstick for the others: it knows
the category and nothing of the image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, read_images, read_masks
from adcore.errors import ParameterError
from adcore.metrics import auroc
from adcore.papers.uniad2022.feature_decoder import collage
from adcore.papers.uniad2022.reconstruction import Reconstruction
from adcore.papers.uniad2022.shortcut import covered_cells, relative_error, shortcut_measures

MOST = 32  # defective images, and as many normal ones: their features are held at once


def shortcut_row(detector: Reconstruction, samples: Sequence[Sample], known: tuple[Tensor, Tensor]) -> dict[str, float]:
    """All the numbers above for one network on the test images of one category; without `copied` outside `mini`.

    known  features and images that may lend patches, as `feature_decoder.seen` gives them; the samples' own are among them

    Raises:
        ParameterError: no normal or no defective image, or one without a mask.
    """
    normal, defective = ([sample for sample in samples if sample.label == label][:MOST] for label in (0, 1))
    if not normal or not defective:
        raise ParameterError(f"{len(normal)} normal and {len(defective)} defective images: give some of each")
    measures = shortcut_measures(detector, defective)
    images = torch.cat(list(read_images(defective, detector.view)))
    own = own_patch(detector.rebuild(images)[1].cpu(), images, known)[covered_cells(_masks(detector, defective), detector.grid)]
    errors = relative_error(*detector.rebuild(torch.cat(list(read_images(normal, detector.view)))))
    row = {"error inside": measures["error"].mean()} | ({"copied": measures["copied"].mean()} if "copied" in measures else {})
    row |= {"own patch": own.float().mean(), "error on normal": errors.mean(), "pixel AUROC": pixel_auroc(detector, samples)}
    return {name: float(value) for name, value in row.items()}


def own_patch(features: Tensor, images: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    """Cells whose nearest known feature has, to the pixel, the patch that the image has there.

    features  rebuilt, (B, C, h, w)
    images    what they were rebuilt from, (B, 3, 16h, 16w)
    known     (n, C, h, w) and (n, 3, 16h, 16w)

    Returns (B, h, w) bool.
    """
    differs = (collage(features, *known) - images).abs().amax(1, keepdim=True)          # (B, 1, 16h, 16w)
    return F.adaptive_max_pool2d(differs, features.shape[-2:])[:, 0] == 0


def pixel_auroc(detector: Reconstruction, samples: Sequence[Sample]) -> float:
    """AUROC over all pixels of all samples, at the size of the detector's view.

    Raises:
        ParameterError: a sample without a mask.
    """
    masks = _masks(detector, samples)
    maps = torch.cat([_map(detector, images) for images in read_images(samples, detector.view)])     # (n, H, W)
    return auroc(masks.flatten().numpy(), maps.flatten().numpy())


def _map(detector: Reconstruction, images: Tensor) -> Tensor:
    found = detector.predict(images).map
    assert found is not None, "a reconstruction always has a map"
    return found.cpu()


def _masks(detector: Reconstruction, samples: Sequence[Sample]) -> Tensor:
    """(n, H, W) bool."""
    masks = read_masks(samples, detector.view)
    for sample, mask in zip(samples, masks, strict=True):
        if mask is None:
            raise ParameterError(f"{sample.path} has no mask: take a data set with masks")
    return torch.stack([mask for mask in masks if mask is not None])


class Constant(nn.Module):
    """Answers with the same tokens (N, C), whatever it is shown: (B, N, C) -> (B, N, C)."""

    answer: Tensor

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.answer.expand_as(tokens)


def mean_feature(detector: Reconstruction, features: Tensor) -> Reconstruction:
    """A detector that answers every image with the mean, place by place, of features (n, C, h, w) of normal images.

    The one given stays as it is; backbone and view are shared with it.
    """
    yardstick = copy.copy(detector)
    yardstick.network = Constant(features.mean(0).flatten(1).T).to(detector.device)       # (N, C)
    return yardstick
