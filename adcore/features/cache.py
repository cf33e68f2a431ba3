"""Cache of features on disk, because a frozen backbone gives the same features in every epoch and every run.

The key of an entry depends on the contents of the images, the view, the backbone, the taps, the weights and the name of the
function that combines the maps. An entry is one memory-mapped array (n, ...), optionally in half precision.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adcore.cache import describe, entry
from adcore.data.sample import Sample
from adcore.data.transforms import View, read_images
from adcore.digests import file_digests
from adcore.distributed import rank_zero_first
from adcore.errors import DataError
from adcore.features.extractor import FeatureExtractor
from adcore.files import atomic, digest_text
from adcore.memory import kept_memory
from adcore.paths import cache_room
from adcore.progress import progress_bar


def images_digest(samples: Sequence[Sample]) -> str:
    """16 hexadecimal digits that change if an image or the order of the images changes.

    >>> import tempfile
    >>> from PIL import Image
    >>> path = Path(tempfile.mkdtemp()) / "0.png"
    >>> Image.new("RGB", (4, 4), "gray").save(path)
    >>> first = images_digest([Sample(path, "demo", 0)])
    >>> Image.new("RGB", (4, 4), "red").save(path)
    >>> len(first), first == images_digest([Sample(path, "demo", 0)])
    (16, False)

    Raises:
        DataError: an image file does not exist.
    """
    try:
        digests = file_digests(sample.path for sample in samples)
    except OSError as error:
        raise DataError(f"{error.filename} is not there: restore the file or remove it from the data set") from None
    return digest_text("\n".join(digest + sample.place for digest, sample in zip(digests, samples, strict=True)))


def cached_features(samples: Sequence[Sample], view: View, extractor: FeatureExtractor,
                    assemble: Callable[[list[Tensor]], Tensor], name: str, *, half: bool = False, batch_size: int = 16,
                    device: str | torch.device = "cpu", folder: Path | None = None, progress: bool | None = None) -> Tensor:
    """`assemble(extractor(images))` for all samples as one (n, ...) tensor, memory-mapped from the cache.

    assemble  combines the taps' maps of a batch into one tensor (B, ...); its `name` is part of the key
    half      store float16 (half the size; relative error 5e-4)

    A run that is killed leaves no entry. Two runs at the same time both write the entry; the second write replaces the first.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (40, 40), "gray").save(folder / "0.png")
    >>> extractor = FeatureExtractor("resnet18", (1,), "random")
    >>> cached_features([Sample(folder / "0.png", "demo", 0)], View(32), extractor, lambda maps: maps[0], "layer1",
    ...                 folder=folder).shape
    torch.Size([1, 64, 8, 8])

    Raises:
        DataError: no sample, an image that cannot be read, or a feature that is not finite.
        StoreError: the cache cannot be written, or the entry belongs to another user.
    """
    key = digest_text("|".join([images_digest(samples), repr(view), extractor.key, name, "half" if half else "single"]), 24)
    if not samples:
        raise DataError("there are no images to compute features of")
    path = (folder or cache_room("features")) / f"{key}.npy"
    with rank_zero_first():
        if not _whole(path, len(samples), half):
            digest = _compute(path, samples, view, extractor, assemble, half, batch_size, device, progress)
            describe(path, {"features": extractor.key, "view": repr(view), "what": name, "images": len(samples)}, digest)
    stored = np.load(path, mmap_mode="c")
    return torch.from_numpy(stored)


def _whole(path: Path, images: int, half: bool) -> bool:
    """Whether an entry exists, is the one that was written, and has a row for each image."""
    if entry(path) is None:
        return False
    stored = np.load(path, mmap_mode="r")
    return len(stored) == images and stored.dtype == (np.float16 if half else np.float32)


@kept_memory()
def _compute(path: Path, samples: Sequence[Sample], view: View, extractor: FeatureExtractor,
             assemble: Callable[[list[Tensor]], Tensor], half: bool, batch_size: int, device: str | torch.device,
             progress: bool | None) -> str:
    """Write the entry and return its digest. A thread writes a batch and digests it while the network computes the next one."""
    extractor, digest = extractor.to(device), hashlib.blake2b()
    # Written as a file, not through a memory map: on a full disk a map kills the process, a write raises an error.
    with atomic(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(1) as writer:
        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        written: Future[None] | None = None
        title = f"features {extractor.backbone.name}"
        with progress_bar(total=len(samples), desc=title, enabled=progress) as bar:
            for images in read_images(samples, view, batch_size):
                features = assemble(extractor(images.to(device))).cpu()
                rows = np.ascontiguousarray((features.half() if half else features.float()).numpy())
                if written is None:
                    written = writer.submit(write, _header((len(samples), *features.shape[1:]), rows.dtype))
                written.result()
                written = writer.submit(write, rows.data)
                bar.update(len(features))
        if written is not None:
            written.result()
    return digest.hexdigest()[:32]


def _header(shape: tuple[int, ...], number: np.dtype) -> bytes:
    """What an npy file begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": number.str, "fortran_order": False, "shape": shape})
    return header.getvalue()
