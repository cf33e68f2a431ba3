"""Features computed once and kept on disk, because a frozen backbone gives the same ones every epoch and every run.

An entry is keyed by the images' contents, the view, backbone, taps, weights and what was done with the maps; it is one
memory-mapped array (n, ...), in half precision on request.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adcore.data.sample import Sample
from adcore.data.transforms import View, read_images
from adcore.distributed import rank_zero_first
from adcore.errors import DataError
from adcore.features.extractor import FeatureExtractor
from adcore.files import atomic, digest_file, digest_text, write_json
from adcore.memory import kept_memory
from adcore.paths import cache_folder
from adcore.progress import progress_bar


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: str, size: int, modified: int) -> str:
    return digest_file(path, "blake2b")[:32]


def images_digest(samples: Sequence[Sample]) -> str:
    """16 digits that change when any image, or their order, changes.

    Raises:
        DataError: an image is not there.
    """
    digests = []
    for sample in samples:
        try:
            stat = sample.path.stat()
        except OSError:
            raise DataError(f"{sample.path} is not there: restore the file or remove it from the data set") from None
        digests.append(_digest(str(sample.path), stat.st_size, stat.st_mtime_ns) + sample.place)
    return digest_text("\n".join(digests))


def cached_features(samples: Sequence[Sample], view: View, extractor: FeatureExtractor,
                    assemble: Callable[[list[Tensor]], Tensor], name: str, *, half: bool = False, batch_size: int = 16,
                    device: str | torch.device = "cpu", folder: Path | None = None, progress: bool | None = None) -> Tensor:
    """`assemble(extractor(images))` for all samples as one (n, ...) tensor, memory-mapped from the cache.

    assemble  what to do with the taps' maps of a batch; `name` says it in words and is part of the key
    half      keep float16 (halves the file; a relative error of 5e-4)

    A run that is killed leaves no entry behind; two at once each write their own and the last one stays.

    Raises:
        DataError: an image that cannot be read, or a feature that is not finite.
    """
    key = digest_text("|".join([images_digest(samples), repr(view), extractor.key, name, "half" if half else "single"]), 24)
    if not samples:
        raise DataError("no image to take features of")
    folder = folder or cache_folder() / "features"
    path = folder / f"{key}.npy"
    with rank_zero_first():
        if not _readable(path):
            _compute(path, samples, view, extractor, assemble, half, batch_size, device, progress)
            write_json(folder / f"{key}.json", {"features": extractor.key, "view": repr(view), "what": name,
                                                "images": len(samples)})
    stored = np.load(path, mmap_mode="c")
    return torch.from_numpy(stored)


def _readable(path: Path) -> bool:
    """Whether an entry is there and as long as its head says: one that something else has cut short is computed again."""
    try:
        np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return False
    except (ValueError, EOFError, OSError):
        warnings.warn(f"{path} is damaged: its features are computed again", stacklevel=3)
        return False
    return True


@kept_memory()
def _compute(path: Path, samples: Sequence[Sample], view: View, extractor: FeatureExtractor,
             assemble: Callable[[list[Tensor]], Tensor], half: bool, batch_size: int, device: str | torch.device,
             progress: bool | None) -> None:
    extractor = extractor.to(device)
    # Written in order, not through a memory map: on a full disk a map kills the process, a write raises an error.
    with atomic(path) as temporary, temporary.open("wb") as file:
        title = f"features {extractor.backbone.name}"
        with progress_bar(total=len(samples), desc=title, enabled=progress) as bar:
            for images in read_images(samples, view, batch_size):
                features = assemble(extractor(images.to(device))).cpu()
                features = features.half() if half else features.float()
                if file.tell() == 0:
                    np.lib.format.write_array_header_1_0(file, {"descr": "<f2" if half else "<f4", "fortran_order": False,
                                                                "shape": (len(samples), *features.shape[1:])})
                file.write(features.numpy().tobytes())
                bar.update(len(features))


def describe_cache(folder: Path | None = None) -> list[dict[str, object]]:
    """What is in the cache: one dictionary an entry, with its size in bytes."""
    folder = folder or cache_folder() / "features"
    return [{**json.loads(path.read_text()), "bytes": path.with_suffix(".npy").stat().st_size}
            for path in sorted(folder.glob("*.json")) if path.with_suffix(".npy").is_file()]
