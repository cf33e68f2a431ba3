"""Image files of every kind as RGB, and what the values of a mask mean."""

from __future__ import annotations

import io
import os
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin, features

import adcore
from adcore.data import Sample
from adcore.data.mvtec import IMAGE_SUFFIXES
from adcore.data.pixels import FORMATS, decode, explain_mask, image_size, read_image, read_mask
from adcore.errors import DataError, ParameterError

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SIZE = (64, 64)
TRUE = np.zeros(SIZE, bool)
TRUE[20:30, 20:30] = True       # 100 pixels
ONES = TRUE.astype(np.uint8)


def put(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def png16(path: Path, pixels: np.ndarray) -> Path:
    """Write colors of 16 bits, which Pillow cannot."""
    h, w, channels = pixels.shape
    header = np.array([w, h], ">u4").tobytes() + bytes([16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))))
    return path


def shade(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=2)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_gray_of_16_bits_gives_the_same_pixels_as_the_picture_in_8_bits(name, tmp_path):
    path = put(tmp_path / name, GRAY.astype(np.uint16) * 257)
    assert Image.open(path).mode == "I;16"
    assert np.array_equal(np.asarray(read_image(path)), shade(GRAY))


def test_big_endian_and_floating_point_tiffs_and_pgm_of_12_bits_are_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "big.tif", GRAY.astype(np.uint16) * 257, byteorder=">")
    tifffile.imwrite(tmp_path / "float.tif", (GRAY / 255).astype(np.float32))
    (tmp_path / "x.pgm").write_bytes(b"P5 30 20 4095\n" + np.round(GRAY * (4095 / 255)).astype(">u2").tobytes())
    for name in ("big.tif", "float.tif", "x.pgm"):
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), shade(GRAY)), name


@pytest.mark.parametrize("extra", [0, 1])
def test_colors_of_16_bits_are_read_with_and_without_alpha(extra, tmp_path):
    pixels = np.dstack([COLOR, *[np.full(GRAY.shape, 255)] * extra]).astype(np.uint16) * 257
    assert np.array_equal(np.asarray(read_image(png16(tmp_path / "x.png", pixels))), COLOR)


def test_12_bits_stored_as_16_are_refused_with_the_way_to_convert_them(tmp_path):
    message = r"x\.png is stored with 16 bits but uses 12 or fewer \(highest value \d+\).+scale all images of the set alike"
    with pytest.raises(DataError, match=message):
        read_image(put(tmp_path / "x.png", GRAY.astype(np.uint16) * 16))
    with pytest.raises(DataError, match=message):
        read_image(png16(tmp_path / "x.png", COLOR.astype(np.uint16) * 16))
    black = read_image(put(tmp_path / "x.png", np.zeros((5, 5), np.uint16)))
    assert not np.asarray(black).any()


@pytest.mark.parametrize(("pixels", "message"), [
    (GRAY.astype(np.int32), r"32-bit or signed integers \(0 to 255\), so its white is not known"),
    (GRAY.astype(np.float32), r"floating-point values outside \[0, 1\] \(0 to 255\)"),
    (np.where(GRAY > 9, np.nan, 0).astype(np.float32), r"floating-point values outside \[0, 1\]"),
    (GRAY.astype(np.float32) / 255 - 0.1, r"floating-point values outside \[0, 1\]"),
])
def test_numbers_without_a_known_white_are_refused_in_one_sentence(pixels, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_image(put(tmp_path / "x.tif", pixels))


def test_a_tiff_that_pillow_does_not_read_is_not_called_damaged(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", GRAY / 255)  # float64
    with pytest.raises(DataError, match=r"a TIFF that Pillow does not read .+: save it with 8 or 16 bits per channel"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_are_converted_by_pillow(mode, tmp_path):
    image = Image.fromarray(COLOR).convert(mode)
    path = put(tmp_path / "x.tif", image)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_and_masks_are_turned_as_exif_says(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path / f"x.{kind.lower()}", COLOR, format=kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(upright))
    assert image_size(path) == (upright.height, upright.width) == ((20, 30) if orientation < 5 else (30, 20))
    assert (upright.tobytes() == Image.open(path).convert("RGB").tobytes()) == (orientation == 1 or kind == "TIFF")
    shown = GRAY > 127  # drawn on what a viewer shows, saved without EXIF
    shown = shown if orientation < 5 else shown.T
    sample = Sample(path, "x", 1, "y", put(tmp_path / "m.png", shown))
    assert np.array_equal(sample.mask, shown) and Sample(path, "x", 0).mask.shape == shown.shape


def test_a_mask_with_exif_orientation_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = put(tmp_path / "m.png", np.ascontiguousarray(np.rot90(GRAY > 127)), exif=exif)
    assert np.array_equal(read_mask(path, (20, 30)), GRAY > 127)


def test_an_image_above_the_limit_is_refused_until_the_limit_is_raised_and_none_below_it_warns(tmp_path, monkeypatch):
    path = put(tmp_path / "x.png", Image.new("L", (12000, 10000), 7))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89478485)  # Pillow's default, above which it warns
        assert read_image(path).size == (12000, 10000) and image_size(path) == (10000, 12000)
    monkeypatch.setattr("adcore.data.pixels.MAX_PIXELS", 100_000_000)
    message = "x.png has more than 100 million pixels, the limit .+: make it smaller, or set the environment variable"
    with pytest.raises(DataError, match=message):
        read_image(path)
    monkeypatch.setenv("ADCORE_MAX_PIXELS", "120000000")
    assert read_image(path).size == (12000, 10000)
    monkeypatch.setenv("ADCORE_MAX_PIXELS", "1e9")
    with pytest.raises(ParameterError, match=r"^ADCORE_MAX_PIXELS=1e9 is not a number of pixels$"):
        read_image(path)


# --- files that are no images -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("read", [read_image, image_size])
def test_postscript_under_an_image_s_name_starts_no_other_program(read, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n")
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image \(it is in none of the formats PNG, JPEG, .+\)"):
        read(path)
    for content, others in ((b"\x0a\x05\x01\x08" + bytes(200), "PCX"), (b"8BPS\0\x01" + bytes(200), "PSD")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"none of the formats"):
            read(path)
        assert others not in FORMATS


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if features.check("avif") or suffix != ".avif"])
def test_every_format_that_is_listed_is_read(suffix, tmp_path):
    image = Image.fromarray(COLOR).convert("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB")
    path = put(tmp_path / f"x{suffix}", image)
    assert read_image(path).size == (30, 20) and image_size(path) == (20, 30)


@pytest.mark.parametrize("read", [read_image, image_size, lambda path: read_mask(path, (20, 30))])
def test_a_pipe_in_place_of_an_image_is_refused_without_waiting_for_a_writer(read, tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image \(it is no plain file\)"):
        read(tmp_path / "x.png")


def test_the_pages_of_a_tiff_are_not_counted(tmp_path, monkeypatch):
    first, second = Image.fromarray(GRAY), Image.fromarray(COLOR)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(lambda self: pytest.fail("counted")))
    for pages in ([], [second] * 3):
        first.save(tmp_path / "x.tif", save_all=True, append_images=pages)
        assert decode(tmp_path / "x.tif").several == bool(pages)


def test_no_other_module_opens_images():
    package = Path(adcore.__file__).parent
    openers = re.compile(r"Image\.open\(|\bimread\b|read_file\(.*image|decode_image|mplimg|PIL\.Image\.open")
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if openers.search(path.read_text())}
    assert found == {"data/pixels.py", "figures/style.py"}      # the latter reads the figures that it has drawn


# --- masks --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pixels", [
    ONES, ONES * 255, ONES * 38, TRUE, ONES.astype(np.uint16), ONES.astype(np.uint16) * 65535,
    Image.fromarray(ONES * 255).convert("RGB").quantize(4), TRUE[..., None] * np.uint8([0, 0, 3])])
def test_zero_and_one_other_value_are_taken_as_they_are(pixels, tmp_path):
    mask, _ = explain_mask(put(tmp_path / "m.png", pixels), SIZE)
    assert np.array_equal(mask, TRUE)


@given(quality=st.integers(20, 100), top=st.integers(0, 40), left=st.integers(0, 40), h=st.integers(3, 20),
       w=st.integers(3, 20), again=st.booleans())
def test_a_jpeg_mask_marks_the_pixels_of_the_mask_that_was_saved(quality, top, left, h, w, again):
    drawn = np.zeros(SIZE, bool)
    drawn[top:top + h, left:left + w] = True
    stream = io.BytesIO()
    Image.fromarray(drawn.astype(np.uint8) * 255).save(stream, "JPEG", quality=quality)
    if again:  # converted to PNG, with the values that JPEG has changed
        image, stream = Image.open(stream), io.BytesIO()
        image.save(stream, "PNG")
    path = Path(__file__)
    with pytest.MonkeyPatch.context() as patch:
        opened = Image.open
        patch.setattr(Image, "open", lambda *_, **__: opened(io.BytesIO(stream.getvalue())))
        mask = read_mask(path, SIZE)
    assert (mask != drawn).sum() <= 0.1 * drawn.sum()


def test_class_and_instance_numbers_are_all_marked_and_255_beside_them_is_not(tmp_path):
    classes = ONES.copy()
    classes[40:44, 40:44] = 2
    mask, rule = explain_mask(put(tmp_path / "m.png", classes), SIZE)
    assert mask.sum() == 116 and rule == "classes"
    classes[:, :4] = 255
    mask, rule = explain_mask(put(tmp_path / "m.png", classes), SIZE)
    assert mask.sum() == 116 and not mask[:, :4].any() and rule == "ignore"
    many = np.arange(64, dtype=np.uint8)[None].repeat(64, 0)  # 63 instances, without a gap
    assert read_mask(put(tmp_path / "m.png", many), SIZE).sum() == 63 * 64


def test_pascal_voc_s_palette_is_read_by_its_numbers(tmp_path):
    numbers = ONES.copy()
    numbers[:3] = 255
    image = Image.fromarray(numbers, "P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 759 + [224, 224, 192])
    assert np.array_equal(read_mask(put(tmp_path / "m.png", image), SIZE), TRUE)


def test_soft_edges_are_marked_from_half_of_the_highest_value_on(tmp_path):
    levels = np.uint8([[0, 60, 127, 128], [0, 250, 255, 255]])
    mask, rule = explain_mask(put(tmp_path / "m.png", levels), (2, 4))
    assert mask.tolist() == [[False, False, False, True], [False, True, True, True]] and rule == "half"


def test_published_sets_keep_their_rule_above_zero(tmp_path):
    levels = np.uint8([[0, 1], [127, 255]])
    assert read_mask(put(tmp_path / "m.png", levels), (2, 2), nonzero=True).tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("drawn", [(0, 0, 0), (255, 255, 255), (255, 0, 0)])
def test_a_mask_drawn_on_a_transparent_layer_is_its_alpha(hidden, drawn, tmp_path):
    layer = np.zeros((*SIZE, 4), np.uint8)
    layer[..., :3] = hidden
    layer[TRUE] = (*drawn, 255)
    mask, rule = explain_mask(put(tmp_path / "m.png", layer), SIZE)
    assert np.array_equal(mask, TRUE) and rule == "alpha"


def test_alpha_that_is_the_same_everywhere_is_no_mask(tmp_path):
    for alpha in (0, 128, 255):
        layer = np.dstack([ONES * 255] * 3 + [np.full(SIZE, alpha, np.uint8)])
        assert np.array_equal(read_mask(put(tmp_path / "m.png", layer), SIZE), TRUE)


def test_colors_on_black_are_marked_and_ringing_around_them_is_not(tmp_path):
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[20:30, 20:25], colors[20:30, 25:30] = (128, 0, 0), (0, 0, 90)
    mask, rule = explain_mask(put(tmp_path / "m.png", colors), SIZE)
    assert np.array_equal(mask, TRUE) and rule == "color"
    red = TRUE[..., None] * np.uint8([255, 0, 0])
    assert np.array_equal(read_mask(put(tmp_path / "m.jpg", red, quality=50), SIZE), TRUE)


@pytest.mark.parametrize(("pixels", "name", "message"), [
    (ONES + np.uint8(1) + np.eye(64, dtype=np.uint8), "m.png", "values from 1 to 3 and none of them is the background"),
    (ONES, "m.jpg", "values from 0 to 1, which look like class numbers, in a format whose compression changes them"),
    ((TRUE * 2 - 1).astype(np.int32), "m.tif", "values that are negative or not finite"),
    (np.where(TRUE, np.nan, 0).astype(np.float32), "m.tif", "values that are negative or not finite"),
])
def test_values_that_cannot_be_meant_are_refused(pixels, name, message, tmp_path):
    with pytest.raises(DataError, match=f"^mask .*{name} has {message}: save it as PNG, 0 for normal and 255"):
        read_mask(put(tmp_path / name, pixels), SIZE)
