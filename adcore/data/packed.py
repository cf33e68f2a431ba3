"""Many images in one file, as in CIFAR-10.

A reader returns the images of a file and their classes. The last few files are kept in memory, so that reading one sample
after another does not read the file again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from adcore.data.sample import Sample
from adcore.errors import DataError


class Pack(NamedTuple):
    """The contents of a file: images (n, H, W, 3) or (n, H, W) uint8, and the class of each, (n,) int."""

    images: np.ndarray
    classes: np.ndarray


Reader = Callable[[Path], Pack]
_READING = threading.Lock()  # of two threads that ask for the same file, one reads it


def open_pack(path: Path, reader: Reader) -> Pack:
    """The contents of a file, read again only when the file has changed.

    Raises:
        DataError: the file is not there, or the reader refuses it.

    >>> from adcore.data.digits import FILE, digits_folder, read_digits
    >>> pack = open_pack(digits_folder() / FILE, read_digits)
    >>> pack.images.shape, pack.classes.shape
    ((1797, 8, 8), (1797,))
    """
    try:
        stat = path.stat()
    except OSError:
        raise DataError(f"{path} is not there: restore the file") from None
    with _READING:
        return _read(path, reader, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@functools.lru_cache(maxsize=8)  # CIFAR-10 has six files of 30 MB
def _read(path: Path, reader: Reader, state: tuple[int, int, int]) -> Pack:
    return reader(path)


@dataclass(frozen=True)
class PackedSample(Sample):
    """One image of a file that holds several.

    index   its number in the file, from 0
    reader  function that reads the file
    """

    index: int = field(kw_only=True)
    reader: Reader = field(kw_only=True, repr=False)

    @property
    def image(self) -> Image.Image:
        """The image as RGB. Raises DataError when the file cannot be read or has no such image."""
        images = open_pack(self.path, self.reader).images
        if not 0 <= self.index < len(images):
            raise DataError(f"{self.path} has {len(images)} images and none of number {self.index}: restore the file")
        return Image.fromarray(np.ascontiguousarray(images[self.index])).convert("RGB")

    @property
    def mask(self) -> None:
        """None: data sets of packed images have no masks."""
        return None

    @property
    def name(self) -> str:
        """'file/index', as in 'data_batch_1/00042'."""
        return f"{self.path.name}/{self.index:05}"

    @property
    def place(self) -> str:
        """'#index'."""
        return f"#{self.index}"
