"""The identical shortcut, measured: does a reconstruction copy an anomaly or repair it? (uniad2022, Sec. 1 and Fig. S2)

Two numbers an image, both over the cells of the feature grid that its mask covers:

    error    |f_rec - f_org| / |f_org|                       small where the anomaly is rebuilt; needs an image and its mask
    copied   <f_rec - f_clean, f_org - f_clean>              1 when the defect comes back whole, 0 when what stands in its
             ----------------------------------              place is the normal image; needs the same image without its
                    |f_org - f_clean|^2                      defect, which only drawn data have
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.data import Sample, View, read_masks
from adcore.data.mini import clean_counterpart, is_mini
from adcore.errors import ParameterError


class Rebuilds(Protocol):
    """What is asked of a detector here; a `papers.uniad2022.reconstruction.Reconstruction` has it."""

    grid: tuple[int, int]
    device: torch.device

    @property
    def view(self) -> View: ...

    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) at the view's size -> features before and after, both (B, C, h, w)."""


def covered_cells(masks: Tensor, grid: tuple[int, int], share: float = 0.5) -> Tensor:
    """Cells that a mask covers by at least `share`, or, when it is smaller than that, the cell it covers most.

    (B, H, W) bool -> (B, h, w) bool.

    Raises:
        ParameterError: an empty mask.
    """
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ParameterError(f"mask {empty[0]} of the batch is empty: take defective images")
    cover = F.adaptive_avg_pool2d(masks.float()[:, None], grid)[:, 0]                    # (B, h, w)
    return cover >= cover.flatten(1).amax(1).clamp_max(share)[:, None, None]


def relative_error(before: Tensor, after: Tensor) -> Tensor:
    """Reconstruction error of each cell in units of its feature's length: (B, C, h, w) x 2 -> (B, h, w)."""
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)


def error_inside(before: Tensor, after: Tensor, cells: Tensor) -> Tensor:
    """Relative reconstruction error over an image's covered cells: (B, C, h, w) x 2, (B, h, w) -> (B,)."""
    return (relative_error(before, after) * cells).sum((1, 2)) / cells.sum((1, 2))


def copied(before: Tensor, after: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
    """How much of the defect comes back: (B, C, h, w) x 3, (B, h, w) -> (B,).

    before, after  features of the defective image and their reconstruction
    clean          features of the same image without its defect
    """
    defect = (before - clean) * cells[:, None]                                          # (B, C, h, w)
    back = (after - clean) * defect
    return back.sum((1, 2, 3)) / defect.square().sum((1, 2, 3)).clamp_min(1e-12)


def clean_images(samples: Sequence[Sample], view: View) -> Tensor:
    """Defective images of `mini` as they would be without their defects: (B, 3, H, W) in [0, 1]."""
    return torch.stack([view.image(clean_counterpart(sample)) for sample in samples])


def shortcut_measures(detector: Rebuilds, samples: Sequence[Sample]) -> pd.DataFrame:
    """Both numbers for defective samples with masks, one row each: category, defect, error, copied (NaN outside `mini`).

    Raises:
        ParameterError: a sample without a mask.
    """
    masks = read_masks(samples, detector.view)
    unmasked = [sample.path for sample, mask in zip(samples, masks, strict=True) if mask is None]
    if unmasked:
        raise ParameterError(f"{unmasked[0]} has no mask: take defective images of a data set with masks")
    images = torch.stack([detector.view.image(sample.image) for sample in samples])
    cells = covered_cells(torch.stack([mask for mask in masks if mask is not None]), detector.grid).to(detector.device)
    before, after = detector.rebuild(images)
    columns = {"category": [sample.category for sample in samples], "defect": [sample.defect for sample in samples],
               "error": error_inside(before, after, cells).tolist()}
    if all(is_mini(sample) for sample in samples):
        clean, _ = detector.rebuild(clean_images(samples, detector.view))
        columns["copied"] = copied(before, after, clean, cells).tolist()
    return pd.DataFrame(columns)
