"""Natural photographs as negatives: where they come from, and the colors of the object that they are given.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement Sec. 1.

    photographs -> some are held out -> random crops (B, 3, H, W) -> colors of normal images

A photograph that could be told from the object by its colors would teach the network nothing else.
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
from adcore.papers.artola2024.color import ColorMoments, transport

PACKAGED = "photographs"
UNCHANGED = "none"  # a method of transport that leaves the colors as they are


@dataclass(frozen=True)
class Negatives:
    """Names of photographs, as `adcore.data.photograph` takes them.

    train     those to fine-tune on
    held_out  those that fine-tuning never sees
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def find_negatives(name: str, held_out: float = 0.2) -> Negatives:
    """Photographs by name, split at random, always in the same way.

    name      'photographs' for those that come with installed packages; or a folder with images in it or below it, as it is
              or below ADCORE_DATA, beginning with a data set's name ('imagenet', 'imagenet/val')
    held_out  share that is held out, at least one photograph

    Raises:
        DataError: the folder is not here, or holds fewer than two images.
    """
    names = list(PHOTOGRAPHS) if name == PACKAGED else [str(path) for path in _images(name)]
    if len(names) < 2:
        raise DataError(f"negatives '{name}' hold {'one image' if names else 'no image'}: give a folder of at least two, one "
                        f"to fine-tune on and one to hold out")
    out, kept = draw(names, min(len(names) - 1, max(1, round(held_out * len(names)))))
    return Negatives(tuple(kept), tuple(out))


def _images(name: str) -> list[Path]:
    path = Path(name)
    dataset = None if path.is_absolute() or not path.parts else find_dataset(path.parts[0])
    places = [path] if dataset is None else [dataset.joinpath(*path.parts[1:]), path]
    for folder in places:
        if folder.is_dir():
            return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    raise DataError(f"negatives '{name}' are not here: put photographs, ImageNet's or any others, into a folder {name} below "
                    f"ADCORE_DATA, or set negatives='{PACKAGED}' for the few that come with installed packages")


def random_crops(names: Sequence[str], count: int, size: tuple[int, int], smallest: float = 0.5,
                 generator: torch.Generator | None = None) -> Tensor:
    """Crops at random places of photographs drawn at random with replacement: (count, 3, H, W) in [0, 1].

    size      (H, W); a crop has this aspect
    smallest  a crop's side is between this share and all of the longest that fits in the photograph
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


# The packaged ones are few and drawn again and again; of a large folder this keeps next to nothing.
@functools.lru_cache(maxsize=32)
def _read(name: str) -> Image.Image:
    return photograph(name)


def recolored(crops: Tensor, target: Tensor | ColorMoments, method: str, rho: float) -> Tensor:
    """The crops in the target's colors, not clipped, so that mean and covariance are reached: (B, 3, H, W) -> (B, 3, H, W)."""
    return crops if method == UNCHANGED else transport(crops, target, method, rho)
