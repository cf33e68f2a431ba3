"""From image files to tensors: the same resizing and cropping for an image and its mask.

Images are RGB in [0, 1]. `adcore.features` normalizes them with the mean and standard deviation of a backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from adcore.ahead import ahead
from adcore.data.sample import Sample
from adcore.errors import ParameterError, did_you_mean

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
            "lanczos": Image.Resampling.LANCZOS}
OPENCV = "opencv"  # the bilinear rule of `opencv_resized`, which has no antialiasing


def _clahe(image: Image.Image) -> Image.Image:
    from skimage import color, exposure  # here, because scikit-image is slow to import
    lab = color.rgb2lab(np.asarray(image))
    if np.ptp(lab[..., 0]):  # an image of uniform lightness would become white
        lab[..., 0] = 100 * exposure.equalize_adapthist(lab[..., 0] / 100, clip_limit=0.01)
    return Image.fromarray((color.lab2rgb(lab) * 255).round().astype(np.uint8))


# Contrast, changed before the image is resized: 'global' equalizes the histogram of each channel, 'clahe' that of the
# lightness in each tile of an 8 x 8 grid, with limited contrast.
CONTRAST: dict[str, Callable[[Image.Image], Image.Image]] = {"none": lambda image: image, "global": ImageOps.equalize,
                                                             "clahe": _clahe}

Size = int | tuple[int, int]


def as_size(size: Size) -> tuple[int, int]:
    """(H, W) from a number (a square) or a pair. Raises ParameterError for a side below one pixel.

    >>> as_size(224), as_size((256, 320))
    ((224, 224), (256, 320))
    """
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ParameterError(f"image size {size} is not a height and width of at least one pixel")
    return pair[0], pair[1]


def opencv_resized(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize as OpenCV's `resize` does by default: (H, W) or (H, W, C), size (h, w) -> (h, w) or (h, w, C) float32.

    A new pixel is the weighted mean of the two by two pixels around its center, however much smaller the image becomes.
    Pillow's bilinear filter takes the mean over the new pixel's whole area instead (antialiasing).

    >>> opencv_resized(np.array([[0, 0, 0, 0, 1, 1, 1, 1]] * 2), (1, 2)).tolist()  # of four columns, the middle two count
    [[0.0, 1.0]]
    """
    channels = torch.from_numpy(pixels.astype(np.float32)).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    resized = F.interpolate(channels[None], size, mode="bilinear", align_corners=False, antialias=False)[0]
    return resized.permute(1, 2, 0).reshape(*size, *pixels.shape[2:])


@dataclass(frozen=True)
class View:
    """Resizes an image to `size` and crops its center. A mask takes the value of the nearest pixel.

    size         (H, W) or a side in pixels; the aspect ratio is not kept
    crop         (H, W) or a side in pixels; None keeps everything
    resample     how images are resized: bilinear, bicubic or lanczos, each with antialiasing, or opencv (`opencv_resized`)
    contrast     how images are equalized before that: none, global or clahe
    whole_masks  a mask is resized by `opencv_resized` instead, and a pixel counts only if its mean is a full 1, as in DS2's
                 evaluation

    >>> from adcore.data import load_dataset
    >>> sample = load_dataset("mini", ["brick"]).test[-1]
    >>> view = View(64, crop=56)
    >>> view.image(sample.image).shape, view.mask(sample.mask).shape
    (torch.Size([3, 56, 56]), torch.Size([56, 56]))
    """

    size: Size
    crop: Size | None = None
    resample: str = "bilinear"
    contrast: str = "none"
    whole_masks: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("resample", self.resample, (*RESAMPLE, OPENCV)),
                                   ("contrast", self.contrast, tuple(CONTRAST))):
            if value not in known:
                raise ParameterError(f"unknown {name} '{value}'{did_you_mean(value, known)}: use {', '.join(known)}")

    def __repr__(self) -> str:
        """Used in cache keys. Beside size and crop, only fields that are not the default are included."""
        resample = "" if self.resample == "bilinear" else f", resample={self.resample!r}"
        contrast = "" if self.contrast == "none" else f", contrast={self.contrast!r}"
        masks = ", whole_masks=True" if self.whole_masks else ""
        return f"View(size={self.size!r}, crop={self.crop!r}{resample}{contrast}{masks})"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the images and masks that it makes."""
        return as_size(self.size if self.crop is None else self.crop)

    def image(self, image: Image.Image) -> Tensor:
        """An image as (3, H, W) float32 in [0, 1]."""
        h, w = as_size(self.size)
        image = CONTRAST[self.contrast](image)
        if self.resample == OPENCV:
            pixels = (opencv_resized(np.asarray(image), (h, w)) + 0.5).floor() / 255  # OpenCV rounds to 8 bits, halves up
        else:
            pixels = torch.from_numpy(np.asarray(image.resize((w, h), RESAMPLE[self.resample]), dtype=np.float32) / 255.0)
        return self._cut(pixels.permute(2, 0, 1)).contiguous()

    def mask(self, mask: np.ndarray) -> Tensor:
        """A mask as (H, W) bool."""
        h, w = as_size(self.size)
        if self.whole_masks:
            return self._cut(opencv_resized(mask, (h, w)) > 1 - 1e-6).contiguous()  # weights may sum to 1 less a rounding error
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
    """Batches (B, 3, H, W) of the samples' images in their order. Threads decode the next batches in advance.

    Raises:
        DataError: an image that cannot be read; the message names the file.

    >>> from adcore.data import load_dataset
    >>> samples = load_dataset("mini", ["brick"]).test[:6]
    >>> [batch.shape for batch in read_images(samples, View(32), batch_size=4)]
    [torch.Size([4, 3, 32, 32]), torch.Size([2, 3, 32, 32])]
    """
    images = ahead(lambda sample: view.image(sample.image), samples, most=2 * batch_size, workers=workers)
    while batch := list(islice(images, batch_size)):
        yield torch.stack(batch)


def load_uint8(samples: Sequence[Sample], view: View) -> Tensor:
    """All images of the samples in memory, (n, 3, H, W) uint8: a quarter of the room that floats take.

    Raises:
        DataError: an image that cannot be read; the message names the file.

    >>> from adcore.data import load_dataset
    >>> images = load_uint8(load_dataset("mini", ["brick"]).test[:3], View(32))
    >>> images.shape, images.dtype
    (torch.Size([3, 3, 32, 32]), torch.uint8)
    """
    return torch.cat([(batch * 255).round().to(torch.uint8) for batch in read_images(samples, view)])


def read_masks(samples: Sequence[Sample], view: View) -> list[Tensor | None]:
    """Masks (H, W) bool in the samples' order, None where there is none.

    Raises:
        DataError: a mask that is missing, unreadable or of another size than its image.

    >>> from adcore.data import load_dataset
    >>> normal, defective = load_dataset("mini", ["brick"], good=1, defective=1).test
    >>> [mask.any().item() for mask in read_masks([normal, defective], View(64))]
    [False, True]
    """
    return list(masks_of(samples, view))


def masks_of(samples: Sequence[Sample], view: View) -> Iterator[Tensor | None]:
    """The masks of `read_masks` one after the other: those of a large data set together may not fit the memory."""
    def of(sample: Sample) -> Tensor | None:
        mask = sample.mask
        return None if mask is None else view.mask(mask)
    return ahead(of, samples)
