"""Magnetic tile defects (Huang et al., "Surface defect saliency of magnetic tile", The Visual Computer 2020).

    MT_Free/Imgs/*.jpg            normal
    MT_<Defect>/Imgs/*.jpg, *.png image and mask of Blowhole, Break, Crack, Fray, Uneven

Images vary in size. Masks have soft edges, for which no threshold is published: every pixel above zero is marked. A fifth of
the normal images, drawn once with a fixed seed, is kept for testing, as in the DS2 supplement (Sec. 4). The published code of
DS2 has a list of its own, so ours holds out other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adcore.data.mvtec import list_images
from adcore.data.sample import Dataset, Sample
from adcore.data.source import Source
from adcore.data.split import hold_out
from adcore.errors import DataError

CATEGORY = "magnetic_tile"
DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")


def load_mtd(root: Path, categories: Sequence[str] | None = None, *, train_fraction: float = 0.8) -> Dataset:
    """List MTD as one category with masks.

    Raises:
        DataError: a folder that is missing or empty, or a defective image without mask.
    """
    root = Path(root)
    normal = [Sample(path, CATEGORY, 0) for path in _photographs(root, "Free")]
    train, held_out = hold_out(normal, train_fraction)
    defective = [Sample(path, CATEGORY, 1, defect.lower(), _mask_of(path, root), nonzero=True)
                 for defect in DEFECTS for path in _photographs(root, defect)]
    return Dataset("mtd", tuple(train), tuple(held_out + defective)).only(categories)


def _photographs(root: Path, kind: str) -> list[Path]:
    folder = root / f"MT_{kind}" / "Imgs"
    photographs = [path for path in list_images(folder) if path.suffix.lower() == ".jpg"]
    if not photographs:
        raise DataError(f"{folder} holds no .jpg image: put the magnetic tile data set there as published")
    return photographs


def _mask_of(path: Path, root: Path) -> Path:
    mask = path.with_suffix(".png")
    if not mask.is_file():
        raise DataError(f"{path.relative_to(root)} has no mask: expected {mask.relative_to(root)}")
    return mask


# Of 952 normal images, 761 are trained on; the other 191 and 392 defective images are tested on.
SOURCE = Source("mtd", load_mtd, folders=("mtd", "Magnetic-tile-defect-datasets."), counts={CATEGORY: (761, 191 + 392)})
