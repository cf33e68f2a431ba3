"""Image and mask files as pixels: how each kind of file is read, and what the values of a mask mean."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from adcore.errors import DataError, ParameterError
from adcore.files import open_plain

# The formats of `adcore.data.mvtec.IMAGE_SUFFIXES`. Pillow reads many more, whatever the file is called, and starts Ghostscript
# for one of them.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")  # compression changes the values of a mask in these formats
MAX_PIXELS = 178_956_970                             # Pillow's own limit; ADCORE_MAX_PIXELS changes it
CLASSES = 32                                         # a mask with values below this holds class or instance numbers
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}               # EXIF orientation -> what shows the image upright


@dataclass(frozen=True)
class Decoded:
    """A file as Pillow decodes it, turned upright.

    bits     per channel as stored; Pillow shows colors of 16 bits with 8
    lossy    the format may have changed the values
    several  the file has several images, of which this is the first
    """

    image: Image.Image
    bits: int
    lossy: bool
    several: bool


def decode(path: Path) -> Decoded:
    """Decode the first image of a file and turn it upright, as its EXIF orientation says.

    Raises:
        DataError: the file is missing, truncated, no image in one of `FORMATS`, or larger than the limit (ADCORE_MAX_PIXELS).
        ParameterError: ADCORE_MAX_PIXELS is not a number of pixels.
    """
    limit = _limit()
    try:
        with open_plain(path) as file, _opened(file) as image:
            if image.width * image.height > limit:
                raise Image.DecompressionBombError
            bits, turn, lossy = _bits(image), _turn(image), image.format in LOSSY
            several = image.format != "MPO" and getattr(image, "is_animated", False)
            image.load()
            if image.format == "TIFF" and image.tag_v2.get(262) == 0 and image.mode.startswith("I;16"):  # type: ignore[attr-defined]
                return Decoded(Image.fromarray((1 << bits) - 1 - np.asarray(image)), bits, lossy, several)  # 0 is white
            return Decoded(image if turn is None else image.transpose(turn), bits, lossy, several)
    except FileNotFoundError:
        raise DataError(f"{path} is not there: restore the file or remove it from the data set") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path} has more than {limit / 1e6:.0f} million pixels, the limit against files that fill the memory: "
                        f"make it smaller, or set the environment variable ADCORE_MAX_PIXELS to a larger number") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... by format
        if isinstance(error, _UnknownTiffError):
            raise DataError(f"{path} is a TIFF that Pillow does not read (64-bit or colored floating-point numbers, for "
                            f"example): save it with 8 or 16 bits per channel") from error
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read as an image ({why}): fetch or copy it again") from error


class _UnknownTiffError(Exception):
    """A TIFF of a kind that Pillow does not read."""


def _opened(file: BinaryIO) -> Image.Image:
    """The first image in an open file, of which only the header has been read."""
    try:
        return Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise _UnknownTiffError from None
        raise Image.UnidentifiedImageError(f"it is in none of the formats {', '.join(_formats())}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file as it is shown, from its header alone. Raises as `decode`."""
    _limit()
    try:
        with open_plain(path) as file, _opened(file) as header:
            turned = _turn(header) in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
            return (header.width, header.height) if turned else (header.height, header.width)
    except Exception:
        image = decode(path).image  # raises an error that names the file and the reason
        return image.height, image.width


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB with 8 bits per channel, upright as its EXIF orientation says.

    colors, palettes, CMYK     as Pillow converts them; alpha is left out, as in other libraries
    16 bits                    65535 is white; 10 or 12 bits stored as 16 are refused, because their white is not known
    12 bits (TIFF)             4095 is white
    floating point             1.0 is white; values outside [0, 1] are refused
    32-bit or signed integers  refused: their white is not known

    Raises:
        DataError: the file is missing, truncated, no image, too large, or of a kind that is refused.

    >>> from adcore.data import load_dataset
    >>> sample = load_dataset("mini", ["brick"]).train[0]
    >>> read_image(sample.path).size
    (256, 256)
    """
    return to_rgb(decode(path), path)


def to_rgb(decoded: Decoded, path: Path) -> Image.Image:
    """The decoded image as RGB, see `read_image`; `path` is for the message."""
    image, bits = decoded.image, decoded.bits
    if image.mode == "F":
        pixels = np.asarray(image)
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
            raise DataError(f"{path} holds floating-point values outside [0, 1] ({pixels.min():g} to {pixels.max():g}), so its "
                            f"white is not known: scale all images of the set alike, or save them with 8 or 16 bits")
        return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if bits > 16:
            raise DataError(f"{path} holds 32-bit or signed integers ({pixels.min()} to {pixels.max()}), so its white is not "
                            f"known: scale all images of the set alike and save them with 8 or 16 bits")
        _refuse_few_bits(bits, int(pixels.max()), path)
        return Image.fromarray((pixels * (255 / ((1 << bits) - 1)) + 0.5).astype(np.uint8)).convert("RGB")
    image = _convert(image, "RGB", path)
    if bits == 16:
        _refuse_few_bits(bits, max(high for _, high in image.getextrema()) * 256, path)  # type: ignore[misc]
    return image


def _convert(image: Image.Image, mode: str, path: Path) -> Image.Image:
    try:
        return image.convert("LA").convert(mode) if image.mode == "La" else image.convert(mode)
    except ValueError:
        raise DataError(f"{path} has colors of the kind {image.mode}, which cannot be read: save it as RGB or gray") from None


def _refuse_few_bits(bits: int, highest: int, path: Path) -> None:
    # Whether a dark image of 16 bits or a bright one of 12 cannot be seen in one image, and guessing image by image would
    # give two brightnesses in one set.
    if bits == 16 and 0 < highest < 4096:
        raise DataError(f"{path} is stored with 16 bits but uses 12 or fewer (highest value {highest}), as some cameras write: "
                        f"scale all images of the set alike, so that white is 65535, or save them with 8 bits")


def _bits(image: Image.Image) -> int:
    """Bits per channel as stored in the file, from its header."""
    if image.format == "TIFF":
        if image.mode == "I":  # signed, or 32
            return 32
        bits = image.tag_v2.get(258, 1)  # type: ignore[attr-defined]
        return max(bits) if isinstance(bits, tuple) else bits
    if image.mode.startswith("I"):  # gray PNG, PGM (which Pillow scales to 65535) or JPEG 2000
        return 16
    tiles = getattr(image, "tile", [])
    return 16 if image.format == "PNG" and tiles and "16" in str(tiles[0][3]) else 8


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What shows an image upright, from its header; None when it is upright. Pillow turns a TIFF itself."""
    if image.format == "TIFF":
        return None
    try:
        # Not image.getexif(), which decodes a whole PNG.
        return TURNS.get(Image.Image.getexif(image).get(0x0112, 1))
    except Exception:  # damaged EXIF data: the image itself may be in order
        return None


def _limit() -> int:
    """The number of pixels above which an image is refused."""
    text = os.environ.get("ADCORE_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal() or int(text) == 0:
        raise ParameterError(f"ADCORE_MAX_PIXELS={text} is not a number of pixels")
    if Image.MAX_IMAGE_PIXELS is not None and int(text) > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(text)  # Pillow would warn at half of its limit
    return int(text)


def read_mask(path: Path, size: tuple[int, int], nonzero: bool = False) -> np.ndarray:
    """Read a mask file as (H, W) bool, True where anomalous.

    - One value: all or nothing. 0 and one other value (0 and 1, 0 and 255): the other value is marked.
    - Whole numbers below 32, or up to 127 without a gap (classes, instances): all but 0 are marked. If 255 is the only value
      beside areas of numbers below 32, it means "ignore" and is not marked.
    - Anything else (soft edges, JPEG): marked above half of the highest value.
    - Color on black: in a file of at most 32 colors all but black is marked; otherwise the brightest channel counts as above.
    - Alpha counts if it varies: it is the mask when what is visible has one color, else transparent pixels are background.

    size     (H, W) of the image that the mask belongs to
    nonzero  mark every pixel above zero, whatever the values: the rule of the published sets MTD, KolektorSDD2, MVTec LOCO

    Raises:
        DataError: the file is missing, truncated, no image, of another size than its image, or its values cannot be meant as a
            mask (negative numbers, numbers without a background, class numbers that JPEG has changed).

    >>> from adcore.data import load_dataset
    >>> sample = load_dataset("mini", ["brick"]).test[-1]
    >>> mask = read_mask(sample.mask_path, (256, 256))
    >>> mask.shape, mask.dtype, bool(mask.any())
    ((256, 256), dtype('bool'), True)
    """
    return explain_mask(path, size, nonzero)[0]


def explain_mask(path: Path, size: tuple[int, int], nonzero: bool = False) -> tuple[np.ndarray, str]:
    """The mask as `read_mask` reads it, and the rule: '' for two exact values, else 'classes', 'ignore', 'half', 'color' or
    'alpha'. Raises as `read_mask`."""
    decoded = decode(path)
    try:
        levels, source = _levels(decoded, path)
        marked, rule = (levels > 0, "") if nonzero else _marked(levels, decoded.lossy)
    except ValueError as error:
        raise DataError(f"mask {path} {error}: save it as PNG, 0 for normal and 255 for anomalous pixels") from None
    if marked.shape != size:
        raise DataError(f"mask {path} is {marked.shape[0]}x{marked.shape[1]} but its image is {size[0]}x{size[1]}: "
                        f"make them the same height and width")
    return marked, rule or source


def _levels(decoded: Decoded, path: Path) -> tuple[np.ndarray, str]:
    """The mask as one number per pixel (H, W), 0 for background; and 'color' or 'alpha' if that is what tells it."""
    image = decoded.image
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        levels = np.asarray(image)
        return (levels.astype(np.uint8) if image.mode == "1" else levels), ""
    pixels = np.asarray(_convert(image, "RGBA", path))
    color, alpha = pixels[..., :3], pixels[..., 3]
    if alpha.min() < alpha.max():
        visible = color[alpha > 0]
        if (visible == visible[0]).all():
            return alpha, "alpha"
        color = (color.astype(np.uint16) * alpha[..., None] // 255).astype(np.uint8)
    if (color == color[..., :1]).all():
        return color[..., 0], ""
    brightest: np.ndarray = color.max(axis=2)
    if decoded.lossy or len(np.unique(color.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32))) > CLASSES:
        return brightest, ""
    if image.mode == "P" and not brightest[np.asarray(image) == 0].any():
        # Class numbers with a palette, as in Pascal VOC: 255 is "ignore" also here.
        indices = np.asarray(image)
        if not np.isin(indices, [*range(CLASSES), 255]).all():
            indices = np.minimum(indices, 1)
        return np.where(brightest > 0, indices, 0), "color"
    return (brightest > 0).astype(np.uint8), "color"


def _has_area(where: np.ndarray, levels: np.ndarray) -> bool:
    """Whether 2x2 of these pixels have one value: classes have areas, the ringing of a JPEG saved as PNG has only dots."""
    parts = [np.s_[y:levels.shape[0] - 1 + y, x:levels.shape[1] - 1 + x] for y in (0, 1) for x in (0, 1)]
    same = where[parts[0]].copy()
    for part in parts[1:]:
        same &= levels[part] == levels[parts[0]]
    return bool(same.any())


def _marked(levels: np.ndarray, lossy: bool) -> tuple[np.ndarray, str]:
    """Marked pixels (H, W) and the rule, see `read_mask`. Raises ValueError when the values cannot be meant."""
    values = np.flatnonzero(np.bincount(levels.ravel())) if levels.dtype == np.uint8 else np.unique(levels)
    lowest, highest = values[0], values[-1]
    if not (lowest >= 0 and highest < np.inf):
        raise ValueError("has values that are negative or not finite")
    if len(values) == 1 or (len(values) == 2 and lowest == 0 and not (lossy and highest < CLASSES)):
        return levels > 0, ""
    if lossy and highest < CLASSES:
        raise ValueError(f"has values from {lowest} to {highest}, which look like class numbers, in a format whose compression "
                         f"changes them")
    whole = not lossy and bool((values == np.round(values)).all())
    if whole and highest < (128 if len(values) == highest + 1 else CLASSES):
        marked, rule = levels > 0, "classes"
    elif whole and lowest == 0 and highest == 255 and values[-2] < CLASSES and _has_area((levels > 0) & (levels < 255), levels):
        marked, rule = (levels > 0) & (levels < 255), "ignore"
    else:
        marked, rule = levels > highest / 2, "half"
    if marked.all():
        raise ValueError(f"has values from {lowest} to {highest} and none of them is the background")
    return marked, rule
