"""Batched color operations and blur, against torchvision and Pillow on one image at a time."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from pytest import approx
from torch import Tensor
from torchvision.transforms.v2 import functional as one

from adcore.papers.ds2 import photometric

FACTORS = torch.tensor([0.0, 0.6, 1.0, 1.23, 1.4])
TURNS = torch.tensor([-0.5, -0.1, 0.0, 0.07, 0.4])


def pictures(count: int, h: int = 19, w: int = 26, seed: int = 0) -> Tensor:
    """Noise in eighths, with ties between colors and with gray, black and white pixels."""
    random = torch.randint(9, (count, 3, h, w), generator=torch.Generator().manual_seed(seed)) / 8
    random[:, 1:, :4] = random[:, :1, :4]
    random[:, :, 0, 0], random[:, :, 0, 1] = 0, 1
    return random


@pytest.mark.parametrize(("batched", "single", "strengths"), [
    (photometric.brightness, one.adjust_brightness, FACTORS), (photometric.contrast, one.adjust_contrast, FACTORS),
    (photometric.saturation, one.adjust_saturation, FACTORS), (photometric.hue, one.adjust_hue, TURNS)])
def test_each_image_is_changed_with_its_own_strength_as_torchvision_changes_it(
        batched: Callable[[Tensor, Tensor], Tensor], single: Callable[[Tensor, float], Tensor], strengths: Tensor) -> None:
    images = pictures(5)
    kept = images.clone()
    found = batched(images, strengths)
    for image, strength, result in zip(images, strengths.tolist(), found, strict=True):
        assert torch.allclose(result, single(image, strength), atol=2e-6)
    assert torch.equal(images, kept) and found.min() >= 0 and found.max() <= 1
    assert torch.allclose(found[2], images[2], atol=1e-6)                       # the strength that changes nothing


def test_a_shifted_hue_is_that_of_the_standard_library_pixel_by_pixel():
    images = pictures(2, 5, 6, seed=1).double()
    found = photometric.hue(images, torch.tensor([0.2, -0.37]).double())
    for image, turn, result in zip(images, (0.2, -0.37), found, strict=True):
        for pixel, changed in zip(image.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert changed == approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-6)


def test_a_third_of_the_circle_turns_red_into_green_and_a_whole_circle_changes_nothing():
    red = torch.tensor([0.9, 0.1, 0.2])[:, None, None].expand(1, 3, 2, 2)
    assert torch.allclose(photometric.hue(red, torch.tensor([1 / 3]))[0, :, 0, 0], torch.tensor([0.2, 0.9, 0.1]), atol=1e-6)
    images = pictures(3)
    assert torch.allclose(photometric.hue(images, torch.tensor([1.0, -1.0, 0.0])), images, atol=2e-6)


def test_grayscale_and_solarize_are_torchvision_s():
    images = pictures(3)
    assert torch.allclose(photometric.grayscale(images), one.rgb_to_grayscale(images), atol=1e-6)
    assert torch.equal(photometric.solarize(images), one.solarize(images, 128 / 255))
    # Pillow inverts 8-bit values of 128 or more.
    levels = torch.arange(256.0)
    assert torch.equal((photometric.solarize(levels / 255) * 255).round(), torch.where(levels < 128, levels, 255 - levels))


@pytest.mark.parametrize(("h", "w"), [(19, 26), (3, 40), (1, 1)])
def test_a_blur_is_torchvision_s_gaussian_with_repeated_border_pixels(h, w):
    images, sigma = torch.rand(4, 3, h, w, generator=torch.Generator().manual_seed(2)), torch.tensor([0.1, 0.7, 1.3, 2.0])
    found = photometric.gaussian_blur(images, sigma)
    for image, deviation, result in zip(images, sigma.tolist(), found, strict=True):
        larger = F.pad(image[None], [20] * 4, mode="replicate")[0]
        assert torch.allclose(result, one.gaussian_blur(larger, [17, 17], [deviation] * 2)[:, 20:-20, 20:-20], atol=1e-5)


@pytest.mark.parametrize("radius", [0.5, 0.8, 1.5, 2.0])
def test_the_standard_deviation_is_pillow_s_radius(radius):
    line = np.zeros((41, 41), np.uint8)
    line[:, 20] = 255
    pillow = np.asarray(Image.fromarray(line).filter(ImageFilter.GaussianBlur(radius)), float)[20]
    ours = photometric.gaussian_blur(torch.from_numpy(line)[None, None].double(), torch.tensor([radius]))[0, 0, 20].numpy()
    spread = [math.sqrt((profile * (np.arange(41) - 20) ** 2).sum() / profile.sum()) for profile in (pillow, ours)]
    assert spread == approx([radius] * 2, abs=0.04)
    assert np.abs(ours - pillow).max() < 0.05 * 255        # Pillow approximates the Gaussian by three box filters, and rounds


def test_blurring_keeps_a_constant_image_and_accepts_an_empty_batch():
    flat = torch.full((2, 3, 9, 9), 0.37)
    assert torch.allclose(photometric.gaussian_blur(flat, torch.tensor([0.1, 2.0])), flat, atol=1e-6)
    assert photometric.gaussian_blur(flat[:0], torch.empty(0)).shape == (0, 3, 9, 9)
    assert photometric.hue(flat[:0], torch.empty(0)).shape == (0, 3, 9, 9)
