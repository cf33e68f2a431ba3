"""Receptive upsampling, against scipy's window and a loop over patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from scipy.signal.windows import gaussian

from adcore.errors import ParameterError
from adcore.papers.ds2.upsampling import receptive_kernel, receptive_upsample


def test_the_kernel_of_32_pixels_sums_to_132_6_and_its_four_central_values_are_a_quarter():
    kernel = receptive_kernel(32)
    assert kernel.shape == (32, 32) and float(kernel.sum()) == approx(132.6, abs=0.05)
    assert kernel[15:17, 15:17].tolist() == [[0.25, 0.25], [0.25, 0.25]] and float(kernel.max()) == 0.25
    assert torch.equal(kernel, kernel.flip(0)) and torch.equal(kernel, kernel.T)


@pytest.mark.parametrize(("k", "deviation"), [(32, 10), (33, 10), (64, 10), (31, 1.42464), (20, 1.25), (2, 0.52875)])
def test_the_window_is_scipy_s_and_an_even_one_has_its_center_twice_at_half_height(k, deviation):
    odd = gaussian(k - 1 + k % 2, deviation)
    window = odd if k % 2 else np.insert(odd, len(odd) // 2, odd[len(odd) // 2]) / 2
    assert receptive_kernel(k).numpy() == approx(np.outer(window, window), abs=1e-14 if k in (20, 32, 33, 64) else 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.data())
def test_a_map_is_the_sum_of_the_kernels_of_its_patches(b, h, w, patch, data):
    stride = data.draw(st.integers(1, patch))
    scores = torch.rand(b, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(patch))
    kernel = receptive_kernel(patch)
    expected = torch.zeros(b, (h - 1) * stride + patch, (w - 1) * stride + patch, dtype=torch.float64)
    mass = torch.zeros_like(expected)
    for y in range(h):
        for x in range(w):
            here = np.s_[:, y * stride:y * stride + patch, x * stride:x * stride + patch]
            expected[here] += scores[:, y, x, None, None] * kernel
            mass[here] += kernel
    assert receptive_upsample(scores, patch, stride).numpy() == approx(expected.numpy(), rel=1e-9, abs=1e-15)
    mean = receptive_upsample(scores, patch, stride, normalized=True)
    assert mean.numpy() == approx((expected / mass).numpy(), rel=1e-9)


def test_57_by_57_scores_make_256_by_256_pixels_and_the_border_is_lower_unless_normalized():
    scores = torch.ones(2, 57, 57)
    spread = receptive_upsample(scores)
    assert spread.shape == (2, 256, 256) and spread.dtype == torch.float32
    assert float(spread[0, 128, 128]) == approx(132.6 / 16, rel=1e-2)     # 8 x 8 patches of 32 x 32 pixels cover a pixel
    assert spread[0, 0, 0] < spread[0, 0, 128] / 5 < spread[0, 128, 128] / 10
    assert receptive_upsample(scores, normalized=True).numpy() == approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("scores", "patch", "stride"), [(torch.ones(5, 5), 8, 4), (torch.ones(1, 5, 5), 4, 5),
                                                         (torch.ones(1, 5, 5), 4, 0)])
def test_patches_with_gaps_and_scores_without_a_batch_are_refused(scores, patch, stride):
    with pytest.raises(ParameterError, match=rf"one every {stride}: expected \(B, h, w\) and a stride of 1 to {patch}$"):
        receptive_upsample(scores, patch, stride)


def test_a_kernel_has_at_least_one_pixel():
    with pytest.raises(ParameterError, match=r"^a receptive kernel of 0 pixels: take at least 1$"):
        receptive_kernel(0)
