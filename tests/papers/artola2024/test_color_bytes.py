"""Color transport of images of 8 bits, and inputs that transport refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.color_images import few, images, seeds
from torch.testing import assert_close

from adcore.errors import DataError, ParameterError
from adcore.kernels.color import moments as byte_moments
from adcore.papers.artola2024.color import TRANSPORTS, ColorMoments, color_moments, pool, transport, transport_uint8

each_method = pytest.mark.parametrize("method", TRANSPORTS)


# --- 8 bits -------------------------------------------------------------------------------------------------------------

@each_method
def test_results_of_8_bits_are_rounded_to_the_nearest_integer(method):
    u, v = ((images(seed).clamp(0, 1) * 255).round().byte() for seed in (0, 1))
    found = transport_uint8(u, v, method, rho=0.75)
    exact = transport(u.double() / 255, v.double() / 255, method, rho=0.75, clip=True) * 255
    assert found.dtype == torch.uint8 and found.shape == u.shape
    assert (found.double() - exact).abs().max() < 0.5 + 1e-3
    assert torch.equal(transport_uint8(u, color_moments(v.float() / 255), method, rho=0.75), found)
    assert torch.equal(transport_uint8(u, v, method, rho=0), u)


@given(seeds, st.integers(1, 40), st.integers(1, 400), st.integers(0, 3))
@few
def test_moments_of_bytes_equal_exact_integer_sums(seed, h, w, spread):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, (1, 2, 17, 256)[spread], (2, 3, h, w), generator=generator, dtype=torch.uint8)
    mean, covariance, number = byte_moments(pixels)
    whole = pixels.flatten(2).long()
    sums, products = whole.sum(2), torch.einsum("bin,bjn->bij", whole, whole)
    exact = (products * h * w - sums[:, :, None] * sums[:, None]).double() / (255 * h * w) ** 2
    assert_close(mean, sums.double() / (255 * h * w), rtol=1e-13, atol=1e-15)
    assert_close(covariance, exact, rtol=1e-9, atol=1e-13)
    assert number.tolist() == [h * w] * 2


@each_method
@pytest.mark.parametrize("size", [(1, 1), (130, 157), (101, 203)])
def test_bytes_of_several_blocks_and_images_agree_with_float64_colors(method, size):
    u, v = ((images(seed, batch=2, size=size).clamp(0, 1) * 255).round().byte() for seed in (0, 1))
    exact = transport(u.double() / 255, v.double() / 255, method, clip=True) * 255
    assert (transport_uint8(u, v, method).double() - exact).abs().max() < 0.5 + 1e-2


# --- errors -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("given_images", "message"), [
    (torch.rand(3, 4, 5), r"images takes shape \(B, 3, H, W\) .* not \(3, 4, 5\); images\[None\] makes a batch of one image$"),
    (torch.rand(2, 1, 4, 5), r"not \(2, 1, 4, 5\)$"), (torch.rand(2, 3, 0, 5), "at least one pixel"),
    (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), "not torch.uint8: for uint8 there is transport_uint8$"),
    (np.zeros((1, 3, 4, 5)), "not ndarray$")])
def test_an_input_that_is_not_a_batch_of_images_is_refused(given_images, message):
    with pytest.raises(ParameterError, match=message):
        transport(given_images, images(0))


def test_a_target_that_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match=r"there are 3 targets for 2 images: give one, or one for each image"):
        transport(images(0, batch=2), images(1, batch=3))
    with pytest.raises(ParameterError, match="target takes shape"):
        transport(images(0), torch.rand(1, 4, 5, 5))
    with pytest.raises(ParameterError, match=r"not \(2, 3\), \(3, 3\) and \(2,\)"):
        ColorMoments(torch.zeros(2, 3), torch.zeros(3, 3), torch.ones(2))
    with pytest.raises(ParameterError, match="no moments to pool"):
        pool([])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_with_a_nan_or_infinite_value_is_named(value):
    broken = images(0, batch=3)
    broken[1, 2, 4, 4] = value
    with pytest.raises(DataError, match=r"^image 1 has NaN or infinite values"):
        transport(broken, images(1))
    with pytest.raises(DataError, match=r"^target 1 has NaN or infinite values"):
        transport(images(0, batch=3), broken)
    with pytest.raises(DataError, match=r"^image 1 has"):
        color_moments(broken)


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan"), torch.tensor([0.5, 2.0])])
def test_a_rho_outside_0_to_1_is_refused(rho):
    with pytest.raises(ParameterError, match=r"^rho is .*: give a value in \[0, 1\], 0 for the image itself"):
        transport(images(0, batch=2), images(1), rho=rho)


def test_a_rho_of_another_batch_an_unknown_method_and_wrong_dtypes_are_refused():
    with pytest.raises(ParameterError, match=r"rho takes a number or a tensor with one value per image, \(2,\), not \(3,\)"):
        transport(images(0, batch=2), images(1), rho=torch.ones(3))
    with pytest.raises(ParameterError, match=r"unknown method 'monge' ?.*: use diagonal or monge_kantorovich"):
        transport(images(0), images(1), "monge")
    with pytest.raises(ParameterError, match=r"transport_uint8 takes images of dtype uint8, not torch\.float64"):
        transport_uint8(images(0), images(1))
    with pytest.raises(ParameterError, match="transport_uint8 takes target of dtype uint8"):
        transport_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), images(1))


def test_a_mask_that_is_empty_or_does_not_fit_is_refused():
    mask = torch.ones(2, 9, 7, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(DataError, match="the mask of image 1 is empty"):
        color_moments(images(0, batch=2), mask)
    for wrong in (mask[:1], mask.float()):
        with pytest.raises(ParameterError, match=r"mask takes bool \(2, 9, 7\)"):
            color_moments(images(0, batch=2), wrong)
