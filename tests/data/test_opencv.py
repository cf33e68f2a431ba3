"""Resizing of images and masks by OpenCV's rule, against OpenCV itself."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx

from adcore.data import View
from adcore.data.transforms import opencv_resized

SIZES = [(64, 64), (61, 90), (20, 17), (16, 100)]                      # smaller, larger and equal sides, odd factors


def noise(h: int, w: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, 256, (h, w, *channels), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_opencv_s(size):
    image, mask = noise(*size, 3).astype(np.float32), noise(*size).astype(np.float32)
    for pixels in (image, mask):
        assert opencv_resized(pixels, (16, 24)).numpy() == approx(cv2.resize(pixels, (24, 16)), abs=5e-3)  # of 255


@pytest.mark.parametrize("size", SIZES)
def test_images_are_opencv_s_bytes_but_for_one_level_in_some_pixels(size):
    pixels = noise(*size, 3)
    ours = View((16, 24), resample="opencv").image(Image.fromarray(pixels))
    theirs = cv2.resize(pixels, (24, 16)).astype(np.int64)
    difference = np.abs((ours * 255).round().permute(1, 2, 0).numpy() - theirs)
    # OpenCV computes bytes in integers and rounds in between; by whole numbers (64 to 16 rows and columns) it is exact.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.15
    if size == (64, 64):
        exact = View(16, resample="opencv").image(Image.fromarray(pixels))
        assert np.array_equal((exact * 255).round().permute(1, 2, 0).numpy(), cv2.resize(pixels, (16, 16)))
    assert ours.dtype == torch.float32 and ours.shape == (3, 16, 24) and torch.equal(ours * 255, (ours * 255).round())


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_opencv_cast_to_bytes(size):
    mask = noise(*size) < 200
    ours = View((16, 24), whole_masks=True).mask(mask)
    assert np.array_equal(ours.numpy(), cv2.resize(mask.astype(np.float32), (24, 16)).astype(np.uint8) > 0)
    assert ours.dtype == torch.bool and 0 < ours.sum() < ours.numel()


def test_a_pixel_of_a_much_smaller_mask_depends_on_two_by_two_pixels_only():
    mask = np.zeros((32, 32), bool)
    mask[3:5, 3:5] = True                                              # the middle of the first of 4 x 4 new pixels
    assert View(4, whole_masks=True).mask(mask).nonzero().tolist() == [[0, 0]]
    for y, x in ((3, 3), (4, 4), (3, 4), (4, 3)):
        broken = mask.copy()
        broken[y, x] = False
        assert not View(4, whole_masks=True).mask(broken).any()


def test_without_antialiasing_an_image_keeps_the_contrast_of_fine_stripes():
    stripes = Image.fromarray(np.repeat(np.tile(np.array([0, 255, 255, 0], np.uint8), (32, 8))[..., None], 3, 2))
    assert View(8, resample="opencv").image(stripes).unique().tolist() == [1.0]
    assert View(8).image(stripes).mean() == approx(0.5, abs=0.02)      # the mean over the stripes


def test_the_rule_is_part_of_a_view_s_cache_key_and_of_the_names_it_knows():
    assert repr(View(4)) != repr(View(4, whole_masks=True)) and "opencv" in repr(View(4, resample="opencv"))
