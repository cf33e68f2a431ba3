"""Winograd's convolution against torch's, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from adcore.kernels.cpu import winograd as module
from adcore.kernels.cpu.winograd import WinogradConv2d, winograd, winograd_factors, worth


def problem(images: int, channels: int, out: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator)  # type: ignore[return-value]
                 for shape in ((images, channels, height, width), (out, channels, 3, 3), (out,)))


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13), st.booleans(),
       st.integers(1, 10**4))
@settings(max_examples=60, deadline=None)
def test_it_equals_torchs_convolution_for_any_shape_and_block(images, channels, out, height, width, biased, block):
    x, weight, bias = problem(images, channels, out, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", block)
        found = winograd(x, winograd_factors(weight), bias if biased else None)
    assert_close(found, F.conv2d(x, weight, bias if biased else None, padding=1), rtol=1e-10, atol=1e-10)


def test_in_float32_about_one_digit_is_lost():
    x, weight, bias = problem(2, 128, 96, 30, 21)
    exact = F.conv2d(x, weight, bias, padding=1)
    found = winograd(x.float(), winograd_factors(weight.float()), bias.float())
    assert found.dtype == torch.float32 and found.stride(1) == 1
    assert float((found - exact).abs().max() / exact.abs().max()) < 3e-5


def test_transposed_and_strided_images_give_the_same_as_their_copies():
    x, weight, _ = problem(2, 3, 4, 20, 20)
    factors = winograd_factors(weight)
    for view in (x.mT, x[:, :, ::2, 1::3], x[:1].expand(3, -1, -1, -1), x.contiguous(memory_format=torch.channels_last)):
        assert_close(winograd(view, factors), F.conv2d(view.contiguous(), weight, padding=1))


def test_integer_images_and_weights_in_multiples_of_24_squared_give_exact_integers():
    x, weight = torch.arange(36.0).double().view(1, 1, 6, 6), torch.arange(9.0).double().view(1, 1, 3, 3)
    assert torch.equal(winograd(x, winograd_factors(24 * 24 * weight)).round(), F.conv2d(x, 24 * 24 * weight, padding=1))


def test_only_3_x_3_convolutions_of_many_channels_are_worth_it():
    assert worth(nn.Conv2d(96, 128, 3, padding=1)) and worth(nn.Conv2d(96, 96, 3, padding="same", bias=False))
    for settings_ in ({"stride": 2}, {"padding": 0}, {"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"},
                      {"in_channels": 64}, {"out_channels": 64}, {"kernel_size": 1}):
        layer = nn.Conv2d(**{"in_channels": 96, "out_channels": 96, "kernel_size": 3, "padding": 1, **settings_})
        assert not worth(layer), settings_
    assert not worth(nn.Linear(96, 96))


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_has_factors_and_bias_as_buffers_and_no_parameters(bias):
    layer = nn.Conv2d(96, 100, 3, padding=1, bias=bias).double()
    ours = WinogradConv2d(layer.weight, layer.bias)
    x = torch.randn(1, 96, 9, 10, dtype=torch.float64)
    assert_close(ours(x), layer(x).detach())
    assert not list(ours.parameters()) and len(list(ours.buffers())) == 1 + bias
