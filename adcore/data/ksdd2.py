"""Surfaces of production items, KolektorSDD2 (Bozic et al., "Mixed supervision for surface-defect detection", Computers in
Industry 2021).

    train/NNNNN.png, train/NNNNN_GT.png    an image and its mask, which is black for a normal one
    test/NNNNN.png, test/NNNNN_GT.png

No folder says which images are normal: the masks do, and each is read to list the data set. Only normal images are trained on,
as in the DS2 supplement (Sec. 4), 2,085 of them; all of `test` is tested on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adcore.data.mvtec import list_images
from adcore.data.sample import Dataset, Sample
from adcore.errors import DataError

CATEGORY = "ksdd2"


def load_ksdd2(root: Path, name: str = "ksdd2") -> Dataset:
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
    return Dataset(name, tuple(train), tuple(_labeled(root, "test")))


def _labeled(root: Path, part: str) -> list[Sample]:
    # A mask lies beside its image and is a .png like it: an image is what has a number for a name.
    paths = [path for path in list_images(root / part) if path.suffix.lower() == ".png" and path.stem.isdecimal()]
    if not paths:
        raise DataError(f"{root / part} holds no image NNNNN.png: put KolektorSDD2 there as published")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: _sample(path, root), paths))


def _sample(path: Path, root: Path) -> Sample:
    mask = path.with_name(f"{path.stem}_GT.png")
    if not mask.is_file():
        raise DataError(f"{path.relative_to(root)} has no mask: expected {mask.relative_to(root)}")
    defective = Sample(path, CATEGORY, 1, "defective", mask)
    pixels = defective.mask
    return defective if pixels is not None and pixels.any() else Sample(path, CATEGORY, 0)
