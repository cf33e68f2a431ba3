"""The identical shortcut, measured: does a reconstruction copy an anomaly or repair it? (uniad2022, Sec. 1, S E.2, Fig. S2)

Two numbers per image, over the cells of the feature grid that its mask covers:

    error    |f_rec - f_org| / |f_org|                       small where the anomaly is reconstructed; needs a mask
    copied   <f_rec - f_clean, f_org - f_clean>              1 when the whole defect is reconstructed, 0 when the normal image
             ----------------------------------              is reconstructed in its place; needs the same image without its
                    |f_org - f_clean|^2                      defect, which exists for drawn data only

`shortcut_row` compares networks on one category: the two numbers above, and

    own patch         fraction of a defect's cells that a collage draws with their own patch of pixels
    error on normal   relative error over all cells of normal images
    pixel AUROC       of the anomaly maps, over all test images

A network that copies has a small error and finds its own patches. `mean_feature` is the baseline for these numbers: it knows
the category and nothing about the image.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View, read_images, read_masks
from adcore.data.mini import clean_counterpart, is_mini
from adcore.errors import ParameterError
from adcore.metrics import auroc
from adcore.papers.uniad2022.collage import collage
from adcore.papers.uniad2022.reconstruction import Reconstruction

MOST_IMAGES = 32  # defective ones per category, and as many normal ones: their features are in memory at once


def covered_cells(masks: Tensor, grid: tuple[int, int], fraction: float = 0.5) -> Tensor:
    """Cells of which a mask covers at least `fraction`; if there are none, the cell it covers most.

    (B, H, W) bool -> (B, h, w) bool.

    Raises:
        ParameterError: an empty mask.
    """
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ParameterError(f"mask {empty[0]} of the batch is empty: take defective images")
    cover = F.adaptive_avg_pool2d(masks.float()[:, None], grid)[:, 0]                    # (B, h, w)
    return cover >= cover.flatten(1).amax(1).clamp_max(fraction)[:, None, None]


def relative_error(before: Tensor, after: Tensor) -> Tensor:
    """Reconstruction error of each cell, relative to the length of its feature: (B, C, h, w) x 2 -> (B, h, w)."""
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)


def error_inside(before: Tensor, after: Tensor, cells: Tensor) -> Tensor:
    """Mean relative error over the covered cells of each image: (B, C, h, w) x 2, (B, h, w) -> (B,)."""
    return (relative_error(before, after) * cells).sum((1, 2)) / cells.sum((1, 2))


def copied(before: Tensor, after: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
    """Fraction of the defect that is reconstructed: (B, C, h, w) x 3, (B, h, w) -> (B,).

    before, after  features of the defective image and their reconstruction
    clean          features of the same image without its defect
    """
    defect = (before - clean) * cells[:, None]                                          # (B, C, h, w)
    return ((after - clean) * defect).sum((1, 2, 3)) / defect.square().sum((1, 2, 3)).clamp_min(1e-12)


def clean_images(samples: Sequence[Sample], view: View) -> Tensor:
    """Defective images of `mini` as drawn without their defects: (B, 3, H, W) in [0, 1]."""
    return torch.stack([view.image(clean_counterpart(sample)) for sample in samples])


def shortcut_measures(detector: Reconstruction, samples: Sequence[Sample]) -> pd.DataFrame:
    """Error and copied of defective samples, one row per sample: category, defect, error, copied (for `mini` only).

    Raises:
        ParameterError: a sample without a mask, or with an empty one.
    """
    cells = covered_cells(_masks(samples, detector.view), detector.grid).to(detector.device)
    before, after = detector.rebuild(torch.stack([detector.view.image(sample.image) for sample in samples]))
    columns = {"category": [sample.category for sample in samples], "defect": [sample.defect for sample in samples],
               "error": error_inside(before, after, cells).tolist()}
    if all(is_mini(sample) for sample in samples):
        clean, _ = detector.rebuild(clean_images(samples, detector.view))
        columns["copied"] = copied(before, after, clean, cells).tolist()
    return pd.DataFrame(columns)


def diagnose(detector: Reconstruction, samples: Sequence[Sample]) -> dict[str, float]:
    """How far a network takes the identical shortcut on the test images of one category; {} without masks or normal images.

    error_inside  mean error inside the masks of at most `MOST_IMAGES` defective images, taken from each kind in turn
    error_normal  mean relative error over as many normal images
    copied        mean fraction of the defects that is reconstructed, for `mini` only
    """
    normal = [sample for sample in samples if not sample.label][:MOST_IMAGES]
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.label and sample.mask_path is not None:
            kinds.setdefault(sample.defect, []).append(sample)
    in_turn = [sample for turn in itertools.zip_longest(*kinds.values()) for sample in turn if sample is not None]
    # A small defect may have no pixel left at the size of the view.
    marked = (sample for sample in in_turn if (mask := sample.mask) is not None and bool(detector.view.mask(mask).any()))
    defective = list(itertools.islice(marked, MOST_IMAGES))
    if not defective or not normal:
        return {}
    table = shortcut_measures(detector, defective)
    errors = torch.cat([relative_error(*detector.rebuild(images)) for images in read_images(normal, detector.view)])
    measures = {"error_inside": float(table["error"].mean()), "error_normal": float(errors.mean())}
    return measures | ({"copied": float(table["copied"].mean())} if "copied" in table else {})


def shortcut_row(detector: Reconstruction, samples: Sequence[Sample], known: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The five numbers above of one network on the test images of one category; without `copied` outside `mini`.

    known  features and images whose patches a collage may use, as `Reconstruction.extract` gives them; those of the samples
           must be among them

    Raises:
        ParameterError: no normal or no defective image, or one without a mask.
    """
    normal, defective = ([sample for sample in samples if sample.label == label][:MOST_IMAGES] for label in (0, 1))
    if not normal or not defective:
        raise ParameterError(f"{len(normal)} normal and {len(defective)} defective images: give some of each")
    measures = shortcut_measures(detector, defective)
    images = torch.cat(list(read_images(defective, detector.view)))
    cells = covered_cells(_masks(defective, detector.view), detector.grid)
    own = own_patch(detector.rebuild(images)[1].cpu(), images, known)[cells]
    errors = relative_error(*detector.rebuild(torch.cat(list(read_images(normal, detector.view)))))
    row = {"error inside": measures["error"].mean()} | ({"copied": measures["copied"].mean()} if "copied" in measures else {})
    row |= {"own patch": own.float().mean(), "error on normal": errors.mean(), "pixel AUROC": pixel_auroc(detector, samples)}
    return {name: float(value) for name, value in row.items()}


def own_patch(features: Tensor, images: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    """Cells whose nearest known feature has exactly the patch of pixels that the image has there.

    features  reconstructed, (B, C, h, w)
    images    from which they were reconstructed, (B, 3, 16h, 16w)
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
    masks = _masks(samples, detector.view)
    predictions = [detector.predict(images) for images in read_images(samples, detector.view)]
    maps = torch.cat([prediction.map.cpu() for prediction in predictions if prediction.map is not None])     # (n, H, W)
    return auroc(masks.flatten().numpy(), maps.flatten().numpy())


def _masks(samples: Sequence[Sample], view: View) -> Tensor:
    """(n, H, W) bool."""
    masks = []
    for sample, mask in zip(samples, read_masks(samples, view), strict=True):
        if mask is None:
            raise ParameterError(f"{sample.path} has no mask: take a data set with masks")
        masks.append(mask)
    return torch.stack(masks)


class Constant(nn.Module):
    """A network with the same output (N, C) for every input: (B, N, C) -> (B, N, C)."""

    output: Tensor

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.register_buffer("output", output)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output.expand_as(tokens)


def mean_feature(detector: Reconstruction, features: Tensor) -> Reconstruction:
    """A detector that reconstructs every image as the mean of `features` (n, C, h, w) of normal images, cell by cell.

    It shares backbone and view with `detector`, which stays as it is.
    """
    constant = copy.copy(detector)
    constant.network = Constant(features.mean(0).flatten(1).T).to(detector.device)       # (N, C)
    return constant
