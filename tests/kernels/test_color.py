"""Moments and affine maps of uint8 images on a CPU, against the plain code of the same colors in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.kernels import kernels
from adcore.kernels.color import affine, moments, plain_affine, plain_moments
from adcore.kernels.cpu import color as fast

SIZES = [(1, 1), (7, 33), (130, 157)]


def uint8_images(h: int, w: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(h * w))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [2048, 2**17])                          # several blocks, one
def test_the_moments_of_uint8_images_are_those_of_the_plain_code(size, block, monkeypatch):
    monkeypatch.setattr(fast, "BLOCK", block)
    images = uint8_images(*size)
    for ours, plain in zip(moments(images), plain_moments(images.double() / 255), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [1000, 2**17])
def test_the_affine_map_of_uint8_images_is_the_plain_code_rounded_and_clipped(size, block, monkeypatch):
    monkeypatch.setattr(fast, "BLOCK", block)
    g = torch.Generator().manual_seed(1)
    images, A = uint8_images(*size), torch.eye(3) + torch.randn(2, 3, 3, generator=g) / 3
    center, goal = torch.rand(2, 3, generator=g), torch.rand(2, 3, generator=g)
    exact = 255 * plain_affine(images.double() / 255, A.double(), center, goal).clamp(0, 1)
    ours = affine(images, A, center, goal)
    assert ours.dtype == torch.uint8 and float((ours.double() - exact).abs().max()) < 0.5 + 1e-2


def test_under_plain_kernels_uint8_images_are_computed_as_float32_colors():
    images, still = uint8_images(7, 33), (torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert moments(images)[0].dtype == torch.float64
    with kernels("plain"):
        assert moments(images)[0].dtype == torch.float32
        assert torch.equal(affine(images, *still), images)
