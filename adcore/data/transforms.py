"""From files to tensors: one geometric view for an image and its mask, and one reader for all methods.

Images leave here as RGB in [0, 1]; what a backbone wants (mean, std) is the backbone's business, in `features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from adcore.data.sample import Sample
from adcore.errors import ParameterError, did_you_mean

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
            "lanczos": Image.Resampling.LANCZOS}


def _clahe(image: Image.Image) -> Image.Image:
    from skimage import color, exposure  # here, because scikit-image is slow to import
    lab = color.rgb2lab(np.asarray(image))
    if np.ptp(lab[..., 0]):  # an image of one lightness would come back white
        lab[..., 0] = 100 * exposure.equalize_adapthist(lab[..., 0] / 100, clip_limit=0.01)
    return Image.fromarray((color.lab2rgb(lab) * 255).round().astype(np.uint8))


# Contrast, before the image is resized: 'global' flattens the histogram of each channel, 'clahe' that of the lightness in
# an 8 x 8 grid of tiles, with a limit on contrast.
CONTRAST: dict[str, Callable[[Image.Image], Image.Image]] = {"none": lambda image: image, "global": ImageOps.equalize,
                                                             "clahe": _clahe}

Size = int | tuple[int, int]


def as_size(size: Size) -> tuple[int, int]:
    """(H, W) from a number (a square) or a pair. Raises ParameterError for anything below one pixel."""
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ParameterError(f"image size {size} is not a height and width of at least one pixel")
    return pair[0], pair[1]


@dataclass(frozen=True)
class View:
    """Resize straight to `size`, then cut the middle `crop` out. All resamplings of images average what they make smaller;
    a mask takes the nearest pixel.

    size         (H, W) or a side in pixels
    crop         (H, W) or a side in pixels; None keeps everything
    resample     how images are resized: bilinear, bicubic or lanczos
    contrast     how they are equalized before that: none, global or clahe
    whole_masks  a mask is averaged instead, and only pixels count that are masked all over, as in DS2's evaluation
    """

    size: Size
    crop: Size | None = None
    resample: str = "bilinear"
    contrast: str = "none"
    whole_masks: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("resample", self.resample, RESAMPLE), ("contrast", self.contrast, CONTRAST)):
            if value not in known:
                raise ParameterError(f"unknown {name} '{value}'{did_you_mean(value, known)}: use {', '.join(known)}")

    def __repr__(self) -> str:
        """Part of cache keys: only what is not the default is added to size and crop."""
        resample = "" if self.resample == "bilinear" else f", resample={self.resample!r}"
        contrast = "" if self.contrast == "none" else f", contrast={self.contrast!r}"
        masks = ", whole_masks=True" if self.whole_masks else ""
        return f"View(size={self.size!r}, crop={self.crop!r}{resample}{contrast}{masks})"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of what comes out."""
        return as_size(self.size if self.crop is None else self.crop)

    def image(self, image: Image.Image) -> Tensor:
        """(3, H, W) float32 in [0, 1]."""
        h, w = as_size(self.size)
        image = CONTRAST[self.contrast](image).resize((w, h), RESAMPLE[self.resample])
        pixels = np.asarray(image, dtype=np.float32) / 255.0
        return self._cut(torch.from_numpy(pixels).permute(2, 0, 1)).contiguous()

    def mask(self, mask: np.ndarray) -> Tensor:
        """(H, W) bool."""
        h, w = as_size(self.size)
        if self.whole_masks:
            shares = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR))
            return self._cut(torch.from_numpy(shares > 1 - 1e-6)).contiguous()
        small = Image.fromarray(mask.astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST)
        return self._cut(torch.from_numpy(np.array(small, dtype=bool))).contiguous()

    def _cut(self, pixels: Tensor) -> Tensor:
        if self.crop is None:
            return pixels
        (h, w), (crop_h, crop_w) = pixels.shape[-2:], as_size(self.crop)
        if crop_h > h or crop_w > w:
            raise ParameterError(f"crop {crop_h}x{crop_w} is larger than the resized image {h}x{w}")
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        return pixels[..., top:top + crop_h, left:left + crop_w]


def read_images(samples: Sequence[Sample], view: View, batch_size: int = 16, workers: int = 2) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) of the samples' images in their order, decoded ahead in threads.

    Raises:
        DataError: an image that cannot be read; the message names the file.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(_read, sample, view) for sample in samples[: 2 * batch_size]]
        for start in range(0, len(samples), batch_size):
            images = [future.result() for future in ahead[:batch_size]]
            following = samples[start + 2 * batch_size: start + 3 * batch_size]
            ahead = ahead[batch_size:] + [pool.submit(_read, sample, view) for sample in following]
            yield torch.stack(images)


def _read(sample: Sample, view: View) -> Tensor:
    return view.image(sample.image)


def read_masks(samples: Sequence[Sample], view: View) -> list[Tensor | None]:
    """(H, W) bool masks in the samples' order, None where there is none.

    Raises:
        DataError: a mask that is missing, unreadable or of another size than its image.
    """
    with ThreadPoolExecutor(2) as pool:
        masks = pool.map(lambda sample: sample.mask, samples)
        return [None if mask is None else view.mask(mask) for mask in masks]
