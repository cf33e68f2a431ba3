"""Contrast equalization and resizing of images, compared with Pillow's functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import color, exposure
from support.tiny import texture

from adcore.data import View
from adcore.errors import ParameterError


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """64 x 40 pixels of noise in muted colors; the right half is dark."""
    pixels = texture(np.random.default_rng(3), 64)[:40].astype(float)
    pixels[:, 32:] *= 0.5
    return Image.fromarray(pixels.astype(np.uint8))


def viewed(view: View, image: Image.Image) -> np.ndarray:
    """The image as a view gives it: (H, W, 3) uint8."""
    return (view.image(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_a_bicubic_view_equals_pillow_s_bicubic_resize(image):
    assert np.array_equal(viewed(View((17, 23), resample="bicubic"), image),
                          np.asarray(image.resize((23, 17), Image.Resampling.BICUBIC)))
    assert not np.array_equal(viewed(View((17, 23), resample="bicubic"), image), viewed(View((17, 23)), image))


def test_global_contrast_equals_pillow_s_equalize_applied_before_the_resize(image):
    before = ImageOps.equalize(image).resize((23, 17), Image.Resampling.BICUBIC)
    after = ImageOps.equalize(image.resize((23, 17), Image.Resampling.BICUBIC))
    found = viewed(View((17, 23), resample="bicubic", contrast="global"), image)
    assert np.array_equal(found, np.asarray(before)) and not np.array_equal(found, np.asarray(after))


def test_global_contrast_reaches_from_black_to_white_in_every_channel(image):
    found = viewed(View((40, 64), contrast="global"), image).reshape(-1, 3)
    assert np.array_equal(found.min(0), [0, 0, 0]) and np.array_equal(found.max(0), [255, 255, 255])
    assert np.asarray(image).max() < 230


def test_clahe_changes_the_lightness_and_keeps_the_colors(image):
    before, after = (color.rgb2lab(viewed(View((40, 64), contrast=contrast), image)) for contrast in ("none", "clahe"))
    inside = (after[..., 0] > 10) & (after[..., 0] < 90)     # near black and white, colors are clipped
    assert inside.mean() > 0.6 and np.abs(after - before)[inside][:, 1:].max() < 2
    assert np.abs(after - before)[..., 0].mean() > 5
    # The purpose of CLAHE: the dark half gets more contrast.
    dark = slice(32, 64)
    assert after[:, dark, 0].std() > 1.5 * before[:, dark, 0].std()


def test_clahe_limits_the_contrast_of_a_tile():
    """At most 0.01 of the 1,024 pixels of a tile may share one level before the levels are spread."""
    image = Image.fromarray(texture(np.random.default_rng(3), 256) // 2)
    lightness = color.rgb2lab(np.asarray(image))[..., 0] / 100
    found = color.rgb2lab(viewed(View(256, contrast="clahe"), image))[..., 0] / 100
    apart = {limit: np.abs(found - exposure.equalize_adapthist(lightness, clip_limit=limit)).mean()
             for limit in (0.003, 0.01, 0.03, 1.0)}
    assert apart.pop(0.01) < 0.002 < 0.01 < min(apart.values()), apart


@pytest.mark.parametrize("gray", [0, 90, 255])
def test_an_image_of_one_color_does_not_change(gray):
    flat = Image.new("RGB", (24, 16), (gray, gray, gray))
    for contrast in ("none", "global", "clahe"):
        assert (viewed(View((16, 24), contrast=contrast), flat) == gray).all(), contrast


def test_an_unknown_contrast_or_resample_is_refused_with_the_nearest_name():
    with pytest.raises(ParameterError, match=r"^unknown contrast 'glob' \(did you mean 'global'\?\): use none, global, clahe$"):
        View(224, contrast="glob")
    with pytest.raises(ParameterError, match=r"^unknown resample 'cubic' \(did you mean 'bicubic'\?\)"):
        View(224, resample="cubic")


def test_the_repr_of_a_view_leaves_out_contrast_and_resample_at_their_defaults():
    assert repr(View(224, resample="bilinear", contrast="none")) == "View(size=224, crop=None)"
    assert repr(View(224, contrast="clahe")) == "View(size=224, crop=None, contrast='clahe')"
    assert repr(View(9, 7, "bicubic", "global")) == "View(size=9, crop=7, resample='bicubic', contrast='global')"
