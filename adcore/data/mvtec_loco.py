"""MVTec LOCO (Bergmann et al., "Beyond dents and scratches: logical constraints in unsupervised anomaly detection and
localization", IJCV 2022).

    <root>/<category>/train/good/*.png
    <root>/<category>/validation/good/*.png                    normal too; neither trained nor tested on here
    <root>/<category>/test/<kind>/*.png                        good, structural_anomalies, logical_anomalies
    <root>/<category>/ground_truth/<kind>/<stem>/*.png         one mask or more for each anomalous image

A mask file marks what one anomaly covers, and they are united. (For a logical anomaly, of which the place may be ambiguous, the
data set's own metric weighs each file by itself; it is not here.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adcore.data.mvtec import categories_in, list_images
from adcore.data.sample import Dataset, Sample, read_mask
from adcore.errors import DataError


@dataclass(frozen=True)
class ManyMasksSample(Sample):
    """One image whose mask is drawn in several files.

    more_masks  files beside `mask_path`
    """

    more_masks: tuple[Path, ...] = ()

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, True where any of the files is; None without `mask_path`."""
        mask = super().mask
        if mask is None or self.mask_path is None:
            return mask
        for path in self.more_masks:
            mask = mask | read_mask(path, mask.shape)
        return mask


def load_mvtec_loco(root: Path, name: str = "mvtec_loco", *, logical: bool = False) -> Dataset:
    """List MVTec LOCO, of whose anomalies the structural ones alone unless `logical`, as in the DS2 supplement (Sec. 4).

    Raises:
        DataError: no category at all, a folder of one without images, or an anomalous image without mask.
    """
    root = Path(root)
    categories = categories_in(root)
    if not categories:
        raise DataError(f"{root} holds no data set in MVTec LOCO's layout: expected <category>/train/good/*.png below it")
    train: list[Sample] = []
    test: list[Sample] = []
    for category in categories:
        folder = root / category
        train += [Sample(path, category, 0) for path in _images(folder / "train" / "good", root)]
        test += [Sample(path, category, 0) for path in _images(folder / "test" / "good", root)]
        for kind in ("logical_anomalies", "structural_anomalies") if logical else ("structural_anomalies",):
            for path in _images(folder / "test" / kind, root):
                first, *others = _masks(path, folder / "ground_truth" / kind / path.stem, root)
                test.append(ManyMasksSample(path, category, 1, kind, first, tuple(others)))
    return Dataset(name, tuple(train), tuple(test))


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
