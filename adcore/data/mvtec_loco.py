"""MVTec LOCO (Bergmann et al., "Beyond dents and scratches: logical constraints in unsupervised anomaly detection and
localization", IJCV 2022).

    <root>/<category>/train/good/*.png
    <root>/<category>/validation/good/*.png                    normal too, not used here
    <root>/<category>/test/<kind>/*.png                        good, structural_anomalies, logical_anomalies
    <root>/<category>/ground_truth/<kind>/<stem>/*.png         one or more masks for each anomalous image

Each mask file marks one anomaly; an image's mask is their union. (A logical anomaly may have several possible places. The data
set's own metric treats each file separately for that reason; that metric is not implemented here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adcore.data.mvtec import category_folders, list_images
from adcore.data.sample import Dataset, Sample, read_mask
from adcore.data.source import Source
from adcore.errors import DataError


@dataclass(frozen=True)
class ManyMasksSample(Sample):
    """One image whose mask is stored in several files.

    more_masks  files beside `mask_path`
    """

    more_masks: tuple[Path, ...] = ()

    @property
    def mask_files(self) -> tuple[Path, ...]:
        return (*super().mask_files, *self.more_masks)

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, True where any of the files is above zero; None without `mask_path`."""
        mask = super().mask
        if mask is None or self.mask_path is None:
            return mask
        for path in self.more_masks:
            mask = mask | read_mask(path, mask.shape, self.nonzero)
        return mask


def load_mvtec_loco(root: Path, categories: Sequence[str] | None = None, *, logical: bool = False) -> Dataset:
    """List MVTec LOCO with its structural anomalies, as in the DS2 supplement (Sec. 4).

    logical  include the logical anomalies too

    Raises:
        DataError: no category at all, a folder of one without images, or an anomalous image without mask.
    """
    root = Path(root)
    there = category_folders(root)
    if not there:
        raise DataError(f"{root} holds no data set in MVTec LOCO's layout: expected <category>/train/good/*.png below it")
    train: list[Sample] = []
    test: list[Sample] = []
    for category, folder in there.items():
        train += [Sample(path, category, 0) for path in _images(folder / "train" / "good", root)]
        test += [Sample(path, category, 0) for path in _images(folder / "test" / "good", root)]
        for kind in ("logical_anomalies", "structural_anomalies") if logical else ("structural_anomalies",):
            for path in _images(folder / "test" / kind, root):
                first, *others = _masks(path, folder / "ground_truth" / kind / path.stem, root)
                test.append(ManyMasksSample(path, category, 1, kind, first, tuple(others), nonzero=True))
    return Dataset("mvtec_loco", tuple(train), tuple(test)).only(categories)


def _images(folder: Path, root: Path) -> list[Path]:
    images = list_images(folder)
    if not images:
        raise DataError(f"{folder.relative_to(root)} in {root} holds no image: unpack MVTec LOCO there as published")
    return images


def _masks(path: Path, folder: Path, root: Path) -> list[Path]:
    masks = list_images(folder)
    if not masks:
        raise DataError(f"{path.relative_to(root)} has no mask: expected {folder.relative_to(root)}/000.png")
    return masks


# What the archive with the manifest's checksum contains, as several public inventories count it. The paper's table has 354
# training images of splicing_connectors, six fewer; all other numbers agree.
SOURCE = Source("mvtec_loco", load_mvtec_loco, folders=("mvtec_loco", "mvtec_loco_anomaly_detection"), options=("logical",),
                whole={"logical": True}, counts={
    "breakfast_box": (351, 275), "juice_bottle": (335, 330), "pushpins": (372, 310), "screw_bag": (360, 341),
    "splicing_connectors": (360, 312)})
