"""Folders in the layout of MVTec AD (Bergmann et al., CVPR 2019).

    <root>/<category>/train/good/*.png
    <root>/<category>/test/<defect>/*.png                      defect 'good' is normal
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adcore.data.sample import Dataset, Sample
from adcore.data.source import Source
from adcore.errors import DataError, ParameterError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder, sorted by name; an empty list when the folder is not there.

    >>> from adcore.data import load_dataset
    >>> folder = load_dataset("mini", ["brick"]).train[0].path.parent
    >>> [path.name for path in list_images(folder)[:3]]
    ['000.png', '001.png', '002.png']
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
                  and not path.name.startswith("."))


def categories_in(root: Path) -> list[str]:
    """Names of the folders below `root` that have a folder train/good.

    >>> from adcore.data import load_dataset
    >>> root = load_dataset("mini", ["brick"]).train[0].path.parents[3]
    >>> "brick" in categories_in(root)
    True
    """
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if (folder / "train" / "good").is_dir())


def load_mvtec(root: Path, name: str, categories: Sequence[str] | None = None) -> Dataset:
    """List the images of a data set in MVTec layout. Pixels are read later, image by image.

    name  of the data set, for the result and for messages

    Raises:
        ParameterError: an unknown category; the message lists those that are there.
        DataError: no category, a category without training or test images, a defective image without mask.

    >>> from adcore.data import load_dataset
    >>> root = load_dataset("mini", ["brick"]).train[0].path.parents[3]
    >>> load_mvtec(root, "my own data", ["brick"]).categories
    ('brick',)
    """
    root = Path(root)
    there = categories_in(root)
    if not there:
        raise DataError(f"{root} holds no data set in MVTec layout: expected <category>/train/good/*.png below it")
    for category in categories or ():
        if category not in there:
            raise ParameterError(f"unknown category '{category}' in data set '{name}'; it has {', '.join(there)}")
    train: list[Sample] = []
    test: list[Sample] = []
    for category in categories or there:
        folder = root / category
        train += [Sample(path, category, 0) for path in _images_or_complain(folder / "train" / "good", root)]
        defects = sorted(path.name for path in (folder / "test").iterdir()) if (folder / "test").is_dir() else []
        before = len(test)
        for defect in defects:
            for path in list_images(folder / "test" / defect):
                test.append(Sample(path, category, 0) if defect == "good"
                            else Sample(path, category, 1, defect, _mask_of(path, defect, folder, root)))
        if len(test) == before:
            raise DataError(f"category '{category}' has no test images: expected {folder / 'test'}/<defect>/*.png")
    return Dataset(name, tuple(train), tuple(test))


def _images_or_complain(folder: Path, root: Path) -> list[Path]:
    images = list_images(folder)
    if not images:
        raise DataError(f"{folder.relative_to(root)} in {root} holds no image: a category needs at least one to train on")
    return images


def _mask_of(path: Path, defect: str, folder: Path, root: Path) -> Path:
    mask = folder / "ground_truth" / defect / f"{path.stem}_mask.png"
    if not mask.is_file():
        raise DataError(f"{path.relative_to(root)} has no mask: expected {mask.relative_to(root)}")
    return mask


def _load_mvtec_ad(root: Path, categories: Sequence[str] | None = None) -> Dataset:
    return load_mvtec(root, "mvtec_ad", categories)


SOURCE = Source("mvtec_ad", _load_mvtec_ad, folders=("mvtec_ad", "mvtec_anomaly_detection", "mvtec"), counts={
    "bottle": (209, 83), "cable": (224, 150), "capsule": (219, 132), "carpet": (280, 117), "grid": (264, 78),
    "hazelnut": (391, 110), "leather": (245, 124), "metal_nut": (220, 115), "pill": (267, 167), "screw": (320, 160),
    "tile": (230, 117), "toothbrush": (60, 42), "transistor": (213, 100), "wood": (247, 79), "zipper": (240, 151)})
