"""Natural photographs as negatives: where they are found, which are held out, and random crops of them.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement Sec. 1.

    photographs -> some are held out -> random crops (B, 3, H, W) -> colors of normal images (`color.transport`)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adcore.data import PHOTOGRAPHS, find_dataset, photograph
from adcore.data.photograph import ENDINGS
from adcore.data.split import draw
from adcore.errors import DataError

PACKAGED = "photographs"


@dataclass(frozen=True)
class Negatives:
    """Names of photographs, as `adcore.data.photograph` takes them.

    train     photographs to fine-tune on
    held_out  photographs that are not used for fine-tuning
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def find_negatives(name: str, held_out: float = 0.2) -> Negatives:
    """Photographs by name, with a random split that is always the same.

    name      'photographs' for those that come with installed packages; or a folder that contains images, also in subfolders.
              The folder is a path, or a path below ADCORE_DATA that begins with a data set's name ('imagenet', 'imagenet/val')
    held_out  fraction that is held out, at least one photograph

    Raises:
        DataError: the folder does not exist, or contains fewer than two images.
    """
    names = list(PHOTOGRAPHS) if name == PACKAGED else [str(path) for path in _images(name)]
    if len(names) < 2:
        raise DataError(f"negatives '{name}' hold {'one image' if names else 'no image'}: give a folder of at least two, one "
                        f"to fine-tune on and one to hold out")
    out, kept = draw(names, min(len(names) - 1, max(1, round(held_out * len(names)))))
    return Negatives(tuple(kept), tuple(out))


def negative_files(name: str) -> list[Path]:
    """The image files of `find_negatives`, sorted; none for those that come with packages. Raises DataError as it does."""
    return [] if name == PACKAGED else _images(name)


def _images(name: str) -> list[Path]:
    path = Path(name)
    dataset = None if path.is_absolute() or not path.parts else find_dataset(path.parts[0])
    places = [path] if dataset is None else [dataset.joinpath(*path.parts[1:]), path]
    for folder in places:
        if folder.is_dir():
            return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
    raise DataError(f"negatives '{name}' are not here: put photographs, ImageNet's or any others, into a folder {name} below "
                    f"ADCORE_DATA, or set negatives='{PACKAGED}' for the few that come with installed packages")


def photograph_crops(names: Sequence[str], count: int, size: tuple[int, int], smallest: float = 0.5,
                     generator: torch.Generator | None = None) -> Tensor:
    """Crops at random places of photographs drawn at random with replacement: (count, 3, H, W) in [0, 1].

    size      (H, W); a crop has this aspect ratio
    smallest  a crop's side is between this fraction and all of the longest side that fits in the photograph
    """
    which = torch.randint(len(names), (count,), generator=generator).tolist()
    places = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
    return torch.stack([_crop(_read(names[i]), size, smallest, place) for i, place in zip(which, places, strict=True)])


def _crop(image: Image.Image, size: tuple[int, int], smallest: float, place: Sequence[float]) -> Tensor:
    h, w = size
    scale = (smallest + (1 - smallest) * place[0]) * min(image.height / h, image.width / w)
    top, left = place[1] * (image.height - scale * h), place[2] * (image.width - scale * w)
    box = (left, top, min(left + scale * w, image.width), min(top + scale * h, image.height))
    pixels = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=box), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


# The packaged photographs are few and read again and again; for a large folder this cache hardly helps.
@functools.lru_cache(maxsize=32)
def _read(name: str) -> Image.Image:
    return photograph(name)
