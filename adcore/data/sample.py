"""One image with its label and mask, and a data set as lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from adcore.errors import DataError, ParameterError


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB; one channel becomes three equal ones.

    Raises:
        DataError: the file is missing, truncated or no image.

    >>> from adcore.data import load_dataset
    >>> sample = load_dataset("mini", ["brick"]).train[0]
    >>> read_image(sample.path).size
    (256, 256)
    """
    return _decode(path).convert("RGB")


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask file as (H, W) bool, True where any channel except alpha is above zero: these pixels are anomalous.

    size  (H, W) of the image that the mask belongs to

    Raises:
        DataError: the file is missing, truncated, no image, or of another size than its image.

    >>> from adcore.data import load_dataset
    >>> sample = load_dataset("mini", ["brick"]).test[-1]
    >>> mask = read_mask(sample.mask_path, (256, 256))
    >>> mask.shape, mask.dtype, bool(mask.any())
    ((256, 256), dtype('bool'), True)
    """
    image = _decode(path)
    if image.mode not in ("1", "L", "F", "RGB") and not image.mode.startswith("I"):
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")  # without a palette or alpha
    marked = np.asarray(image) > 0  # in color: a dark blue would become black in gray
    mask: np.ndarray = np.any(marked, axis=2) if marked.ndim == 3 else marked
    if mask.shape != size:
        raise DataError(f"mask {path} is {mask.shape[0]}x{mask.shape[1]} but its image is {size[0]}x{size[1]}: "
                        f"make them the same height and width")
    return mask


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header alone."""
    try:
        with Image.open(path) as header:
            return header.height, header.width
    except Exception:
        image = read_image(path)  # raises an error that names the file and the reason
        return image.height, image.width


def _decode(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise DataError(f"{path} is not there: restore the file or remove it from the data set") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... by format
        raise DataError(f"{path} cannot be read as an image ({error}): fetch or copy it again") from error
    return image


@dataclass(frozen=True)
class Sample:
    """One image on disk.

    path       image file
    category   the kind of object or texture ('screw')
    label      0 normal, 1 anomalous
    defect     'good' or the kind of defect
    mask_path  pixel mask of the defect; None for a normal image, or when the data set has no masks
    dataset    name of the data set; `Dataset` fills it in where it is empty
    """

    path: Path
    category: str
    label: int
    defect: str = "good"
    mask_path: Path | None = None
    dataset: str = field(default="", compare=False, kw_only=True)

    @property
    def name(self) -> str:
        """'folder/file', unique within its category."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def place(self) -> str:
        """Position of the image in its file; '' for a file with one image."""
        return ""

    @property
    def image(self) -> Image.Image:
        """The image as RGB. Raises DataError when the file cannot be read."""
        return read_image(self.path)

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, True where anomalous; all False for a normal image; None for an anomalous image without a mask."""
        if self.label == 0 or self.mask_path is not None:
            size = _size(self.path)
            return np.zeros(size, bool) if self.mask_path is None else read_mask(self.mask_path, size)
        return None


def map_name(sample: Sample) -> str:
    """'category/folder/file', the name under which a sample's anomaly map is stored.

    >>> map_name(Sample(Path("mvtec_ad/screw/test/scratch_head/004.png"), "screw", 1, "scratch_head"))
    'screw/scratch_head/004.png'
    """
    return f"{sample.category}/{sample.name}"


@dataclass(frozen=True)
class Dataset:
    """Training images and test images of one or more categories. Training images are normal, except for the few
    labeled anomalies of a few-shot split (`Detector.protocol`).

    A method fits on what it is allowed to see, `train`; `test` is for `predict` alone.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    has_masks: bool = True

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            named = tuple(s if s.dataset else replace(s, dataset=self.name) for s in getattr(self, part))
            object.__setattr__(self, part, named)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories in the order of their first image."""
        return tuple(dict.fromkeys(sample.category for sample in (*self.train, *self.test)))

    def only(self, categories: str | Sequence[str] | None) -> Dataset:
        """The same data set with some of its categories, with all of them for None.

        Raises:
            ParameterError: a category that is not there; the message lists those that are.
        """
        if categories is None:
            return self
        wanted = [categories] if isinstance(categories, str) else list(categories)
        for category in wanted:
            if category not in self.categories:
                raise ParameterError(f"unknown category '{category}' in data set '{self.name}'; it has "
                                     f"{', '.join(self.categories)}")
        return replace(self, train=tuple(s for s in self.train if s.category in wanted),
                       test=tuple(s for s in self.test if s.category in wanted))

    def __add__(self, other: Dataset) -> Dataset:
        """Both data sets as one, for a model of all categories."""
        return Dataset(f"{self.name}+{other.name}", self.train + other.train, self.test + other.test,
                       self.has_masks and other.has_masks)
