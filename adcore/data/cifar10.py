"""CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009), some classes against the others.

    cifar-10-batches-py/data_batch_1 ... data_batch_5    50,000 training images
    cifar-10-batches-py/test_batch                       10,000 test images

A file is a Python pickle of a dictionary: `data`, (n, 3072) uint8, one row per image of 32x32 pixels as a red, a green and a
blue plane, and `labels`, a list of digits. A pickle can run any code, and even a crafted array of numpy can read or write at
any address. So only the published files are read, and no code of numpy takes part: the array is made from its bytes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adcore.data.classes import many_versus_many
from adcore.data.manifest import entry
from adcore.data.packed import Pack, PackedSample, open_pack
from adcore.data.sample import Dataset
from adcore.data.source import Source
from adcore.errors import DataError
from adcore.files import open_plain

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
MD5 = {"data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
       "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
       "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e"}
LARGEST = 1 << 26  # bytes that are read; the published files have half as many

_NAMES = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
          ("numpy._core.multiarray", "_reconstruct")}  # all that the pickle of an array asks for


def load_cifar10(root: Path, normal: str | Sequence[str] | None = None) -> Dataset:
    """CIFAR-10 with the classes in `normal` as one normal pseudo-class; labels for whole images only.

    Test images are all 1,000 of each normal class and as many anomalous ones: with five normal classes, all 10,000. Nine
    normal classes (many-versus-one) are tested with 9,000 normal and 1,000 anomalous images; one normal class with 1,000 of
    each, the anomalous ones drawn from nine classes with a fixed seed.

    root    the folder that holds cifar-10-batches-py, or that folder itself
    normal  digits of the normal classes, '01234' by default

    Raises:
        ParameterError: `normal` is not several different digits, or leaves no class to be anomalous.
        DataError: a file that is missing or not as published.
    """
    folder = batches_folder(root)
    train, test = ([PackedSample(path, str(kind), 0, index=i, reader=read_batch)
                    for path in (folder / file for file in files)
                    for i, kind in enumerate(open_pack(path, read_batch).classes)] for files in (TRAIN_FILES, TEST_FILES))
    return many_versus_many("cifar10", train, test, CLASSES, normal)


def batches_folder(root: Path) -> Path:
    """The folder of the files, `root` or a folder in it. Raises DataError when there are none."""
    for folder in (Path(root) / FOLDER, Path(root)):
        if (folder / TRAIN_FILES[0]).is_file():
            return folder
    raise DataError(f"{root} holds no CIFAR-10: expected {Path(root) / FOLDER / TRAIN_FILES[0]}, as the archive "
                    f"cifar-10-python.tar.gz unpacks it")


def read_batch(path: Path) -> Pack:
    """Images (n, 32, 32, 3) and classes (n,) in one of the files.

    Raises:
        DataError: the file is not as published, or holds something else than the images and labels of CIFAR-10.
    """
    try:
        with open_plain(path) as file:
            content = file.read(LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): unpack the archive again") from error
    expected, found = MD5.get(path.name), hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(f"{path} is not CIFAR-10's: expected md5 {expected}, found {found}; fetch it again from "
                        f"{entry('cifar10').url}")
    try:
        batch = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise EOFError, UnpicklingError, KeyError, MemoryError, ...
        raise DataError(f"{path} cannot be read as a batch of CIFAR-10 ({error}): unpack the archive again") from error
    fields = _by_name(batch) if isinstance(batch, dict) else {}
    data, labels = _array(fields.get("data")), fields.get("labels")
    flaw = "its data are not uint8 (n, 3072)" if data is None else _flaw(labels, len(data))
    if data is None or flaw:
        raise DataError(f"{path} is not a batch of CIFAR-10 ({flaw}): unpack the archive again")
    return Pack(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, int))


@dataclass
class _Inert:
    """Takes the place of a name that a pickle asks for: keeps how it is called and what state it gets, and does nothing."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> _Inert:
        return _Inert(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads plain values, and numpy's arrays as `_Inert`; refuses every other name before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _Inert(name)


def _array(value: Any) -> np.ndarray | None:
    """The array (n, 3072) uint8 that a pickle describes, None for anything else."""
    match value:
        case _Inert("_reconstruct", _, (_, (int(n), 3072), _Inert("dtype", ("u1" | b"u1", *_)), bool(by_column), bytes(raw))):
            if len(raw) == n * 3072:
                return np.frombuffer(raw, np.uint8).reshape(n, 3072, order="F" if by_column else "C")
    return None


def _by_name(batch: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionary with keys as text: Python 2 wrote them as bytes."""
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}


def _flaw(labels: Any, images: int) -> str:
    """What is wrong with the labels of a file, '' if nothing."""
    if not isinstance(labels, list) or len(labels) != images:
        return f"its labels are not a list of {images}, one per image"
    for label in labels:
        if type(label) is not int or not 0 <= label <= 9:
            return f"it has a label {label!r} where 0 to 9 are expected"
    return ""


SOURCE = Source("cifar10", load_cifar10, folders=("cifar10", FOLDER))
