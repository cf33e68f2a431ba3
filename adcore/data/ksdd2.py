"""Surfaces of production items, KolektorSDD2 (Bozic et al., "Mixed supervision for surface-defect detection", Computers in
Industry 2021).

    train/NNNNN.png, train/NNNNN_GT.png    an image and its mask, which is black for a normal image
    test/NNNNN.png, test/NNNNN_GT.png

Only the masks tell which images are normal, so each mask is read to list the data set. Methods are trained on the 2,085 normal
images of `train` only, as in the DS2 supplement (Sec. 4), and tested on all of `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adcore.data.mvtec import list_images
from adcore.data.sample import Dataset, Sample
from adcore.data.source import Source
from adcore.errors import DataError

CATEGORY = "ksdd2"


def load_ksdd2(root: Path, categories: Sequence[str] | None = None) -> Dataset:
    """List KolektorSDD2 as one category with masks.

    Raises:
        DataError: a folder without images, an image without mask, a mask that cannot be read or has another size than its
            image, or no normal image to train on.
    """
    root = Path(root)
    train = [sample for sample in _labeled(root, "train") if sample.label == 0]
    if not train:
        raise DataError(f"{root / 'train'} holds no normal image: each has a mask that marks a pixel, and there is none to "
                        f"train on")
    return Dataset("ksdd2", tuple(train), tuple(_labeled(root, "test"))).only(categories)


def _labeled(root: Path, part: str) -> list[Sample]:
    # A mask is a .png beside its image: the images are the files whose name is a number.
    paths = [path for path in list_images(root / part) if path.suffix.lower() == ".png" and path.stem.isdecimal()]
    if not paths:
        raise DataError(f"{root / part} holds no image NNNNN.png: put KolektorSDD2 there as published")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: _sample(path, root), paths))


def _sample(path: Path, root: Path) -> Sample:
    mask = path.with_name(f"{path.stem}_GT.png")
    if not mask.is_file():
        raise DataError(f"{path.relative_to(root)} has no mask: expected {mask.relative_to(root)}")
    defective = Sample(path, CATEGORY, 1, "defective", mask, nonzero=True)
    pixels = defective.mask
    return defective if pixels is not None and pixels.any() else Sample(path, CATEGORY, 0)


# Of 2,331 training images, 246 have a defect and are not trained on.
SOURCE = Source("ksdd2", load_ksdd2, folders=("ksdd2", "KolektorSDD2"), counts={CATEGORY: (2085, 1004)})
