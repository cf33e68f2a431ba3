"""CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009), some classes against the others.

    cifar-10-batches-py/data_batch_1 ... data_batch_5    50,000 training images
    cifar-10-batches-py/test_batch                       10,000 test images

A file is a Python pickle of a dictionary: `data`, (n, 3072) uint8, one row per image of 32x32 pixels as a red, a green and a
blue plane, and `labels`, a list of digits. A pickle can run any code, so this reader permits arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adcore.data.classes import many_versus_many
from adcore.data.manifest import entry
from adcore.data.packed import Pack, PackedSample, open_pack
from adcore.data.sample import Dataset
from adcore.data.source import Source
from adcore.errors import DataError
from adcore.files import digest_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)

_REBUILD = np.empty(0).__reduce__()[0]  # numpy's private _reconstruct, which moved with numpy 2
_ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _REBUILD, ("numpy._core.multiarray", "_reconstruct"): _REBUILD}


def load_cifar10(root: Path, normal: str | Sequence[str] | None = None) -> Dataset:
    """CIFAR-10 with the classes in `normal` as one normal pseudo-class; labels for whole images only.

    Test images are all 1,000 of each normal class and as many anomalous ones: with five normal classes, all 10,000. Nine
    normal classes (many-versus-one) are tested with 9,000 normal and 1,000 anomalous images; one normal class with 1,000 of
    each, the anomalous ones drawn from nine classes with a fixed seed.

    root    the folder that holds cifar-10-batches-py, or that folder itself
    normal  digits of the normal classes, '01234' by default

    Raises:
        ParameterError: `normal` is not several different digits, or leaves no class to be anomalous.
        DataError: a file that is missing, cut off, not in the format, or that would do more than build arrays.
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
        DataError: the file is cut off, not in CIFAR-10's format, or asks for more than arrays.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise EOFError, UnpicklingError, KeyError, MemoryError, ...
        raise DataError(f"{path} cannot be read as a batch of CIFAR-10 ({error}): unpack the archive again") from error
    fields = _by_name(batch) if isinstance(batch, dict) else {}
    data: Any = fields.get("data")
    labels: Any = fields.get("labels")
    flaw = _flaw(data, labels)
    if flaw:
        raise DataError(f"{path} is not a batch of CIFAR-10 ({flaw}): unpack the archive again")
    return Pack(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, int))


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain values, and refuses every other name before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _ALLOWED[module, name]


def _by_name(batch: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionary with keys as text: Python 2 wrote them as bytes."""
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}


def _flaw(data: Any, labels: Any) -> str:
    """What is wrong with the data and labels of a file, '' if nothing."""
    if data is None or labels is None:
        return "it has no data and labels"
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        return f"its data are {what} where uint8 (n, 3072) is expected"
    if not isinstance(labels, list) or len(labels) != len(data):
        return f"its labels are not a list of {len(data)}, one per image"
    for label in labels:
        if type(label) is not int or not 0 <= label <= 9:
            return f"it has a label {label!r} where 0 to 9 are expected"
    return ""


def check_digests(root: Path) -> None:
    """Compare CIFAR-10's files with the checksums that torchvision has of them, before any is unpickled.

    Raises:
        DataError: a file that is missing or different.
    """
    from torchvision.datasets import CIFAR10  # slow to import
    folder, url = batches_folder(root), entry("cifar10").url
    for name, expected in CIFAR10.train_list + CIFAR10.test_list:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is not there: fetch CIFAR-10 again from {url}")
        found = digest_file(path, "md5")
        if found != expected:
            raise DataError(f"{path} is not CIFAR-10's: expected md5 {expected}, found {found}; fetch it again from {url}")


SOURCE = Source("cifar10", load_cifar10, folders=("cifar10", FOLDER), check=check_digests)
