"""One image with its label and mask, and a data set as lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from adcore.data.pixels import image_size, read_image, read_mask
from adcore.errors import DataError, ParameterError

__all__ = ["Dataset", "Sample", "map_name", "read_image", "read_mask"]


@dataclass(frozen=True)
class Sample:
    """One image on disk.

    path       image file
    category   the kind of object or texture ('screw')
    label      0 normal, 1 anomalous
    defect     'good' or the kind of defect
    mask_path  pixel mask of the defect; None for a normal image, or when the image has no mask
    dataset    name of the data set; `Dataset` fills it in where it is empty
    called     a name to use instead of 'folder/file', where that is not unique
    nonzero    every pixel of the mask above zero is marked, whatever its values (see `read_mask`)
    """

    path: Path
    category: str
    label: int
    defect: str = "good"
    mask_path: Path | None = None
    dataset: str = field(default="", compare=False, kw_only=True)
    called: str = field(default="", compare=False, kw_only=True)
    nonzero: bool = field(default=False, compare=False, kw_only=True)

    @property
    def name(self) -> str:
        """'folder/file', unique among the test images of its category."""
        return self.called or f"{self.path.parent.name}/{self.path.name}"

    @property
    def place(self) -> str:
        """Position of the image in its file; '' for a file with one image."""
        return ""

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """The files from which `mask` is read."""
        return () if self.mask_path is None else (self.mask_path,)

    @property
    def image(self) -> Image.Image:
        """The image as RGB. Raises DataError when the file cannot be read."""
        return read_image(self.path)

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, True where anomalous; all False for a normal image; None for an anomalous image without a mask."""
        if self.label == 0 or self.mask_path is not None:
            size = image_size(self.path)
            return np.zeros(size, bool) if self.mask_path is None else read_mask(self.mask_path, size, self.nonzero)
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

    Raises:
        DataError: a label that is neither 0 nor 1.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            for sample in getattr(self, part):
                if sample.label not in (0, 1):
                    raise DataError(f"{sample.path} has label {sample.label!r}: 0 (normal) or 1 (anomalous) is expected")
            named = tuple(s if s.dataset else replace(s, dataset=self.name) for s in getattr(self, part))
            object.__setattr__(self, part, named)

    @property
    def has_masks(self) -> bool:
        """True when the mask of any anomalous test image is known."""
        return any(sample.label == 1 and sample.mask_files for sample in self.test)

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
        """Both data sets as one, for a model of all categories.

        A category that several of the data sets have is renamed to 'dataset/category' in each: they are different things.

        >>> bolts, screws = (Dataset(name, (Sample(Path("0.png"), "part", 0),), ()) for name in ("bolts", "screws"))
        >>> (bolts + screws).categories
        ('bolts/part', 'screws/part')
        """
        owners: dict[str, set[str]] = {}
        for sample in (*self.train, *self.test, *other.train, *other.test):
            owners.setdefault(_plain(sample), set()).add(sample.dataset)

        def renamed(samples: Sequence[Sample]) -> tuple[Sample, ...]:
            return tuple(replace(sample, category=f"{sample.dataset}/{_plain(sample)}") if len(owners[_plain(sample)]) > 1
                         else sample for sample in samples)

        return Dataset(f"{self.name}+{other.name}", renamed(self.train + other.train), renamed(self.test + other.test))


def _plain(sample: Sample) -> str:
    """The category without the name of the data set, which a joined data set may have put before it."""
    return sample.category.removeprefix(f"{sample.dataset}/")
