"""Images that lie packed in one file, as those of CIFAR-10 do.

A reader makes of a file its images and their classes. A file is read once and kept while the last few are in use, so
that a sample is as light as one with a file of its own.
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
    """What a file holds: images (n, H, W, 3) or (n, H, W) uint8, and the class of each, (n,) int."""

    images: np.ndarray
    classes: np.ndarray


Reader = Callable[[Path], Pack]
_READING = threading.Lock()  # two threads that want the same file: one reads, the other finds it read


def open_pack(path: Path, reader: Reader) -> Pack:
    """The contents of a file, read again only when the file has changed.

    Raises:
        DataError: the file is not there, or the reader refuses it.
    """
    try:
        stat = path.stat()
    except OSError:
        raise DataError(f"{path} is not there: restore the file") from None
    with _READING:
        return _read(path, reader, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)  # CIFAR-10 has six files of 30 MB
def _read(path: Path, reader: Reader, size: int, modified: int) -> Pack:
    return reader(path)


@dataclass(frozen=True)
class PackedSample(Sample):
    """One image of several in a file.

    index   its number in the file, from 0
    reader  what makes images of the file
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
        """None: nobody drew masks for packed images."""
        return None

    @property
    def name(self) -> str:
        """'file/index', as in 'data_batch_1/00042'."""
        return f"{self.path.name}/{self.index:05}"

    @property
    def place(self) -> str:
        """'#index'."""
        return f"#{self.index}"
