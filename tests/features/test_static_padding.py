"""The padding of UniAD's EfficientNets: held against a formula, timm at the native size, and impulses."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from adcore.features import BACKBONES, FeatureExtractor
from adcore.features.static_padding import StaticConv2d, first_centers, same_padding
from adcore.papers.heckler2023.receptive_field import analytic

NATIVE = {"efficientnet_b0": 224, "efficientnet_b2": 260, "efficientnet_b4": 380, "efficientnet_b6": 528}
STAGES = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6")


@pytest.fixture(scope="module", params=NATIVE)
def both(request):
    """One of UniAD's networks, and timm's of the same architecture with equal random weights, up to all five stages."""
    name = request.param
    static = FeatureExtractor(name, (1, 2, 3, 4, 5), "random", seed=3)
    return name, static, FeatureExtractor(f"timm:tf_{name}", STAGES, "random", seed=3)


@torch.no_grad()
def distances(static, dynamic, side):
    """Relative L2 distance of the features of one image, for each stage."""
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 0.5
    pairs = zip(static.network(x).values(), dynamic.network(x).values(), strict=True)
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def test_every_strided_convolution_pads_as_the_formula_says_for_the_native_size(both):
    name, static, dynamic = both
    side, layers = NATIVE[name], [m for m in dynamic.network.modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]
    expected = []
    for layer in layers:                                # timm's own list of kernels and strides
        k, s = layer.kernel_size[0], layer.stride[0]
        total = max((math.ceil(side / s) - 1) * s + k - side, 0)
        expected.append((total // 2, total - total // 2))
        side = math.ceil(side / s)
    found = [m for m in static.network.modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]
    assert len(found) == 5 and all(isinstance(m, StaticConv2d) for m in found)
    assert [m.pads for m in found] == [(*pads, *pads) for pads in expected]


def test_b4_pads_its_third_and_fifth_stride_as_the_published_code_does():
    network = BACKBONES["efficientnet_b4"].build()
    pads = {name: m.pads[:2] for name, m in network.named_modules() if isinstance(m, StaticConv2d)}
    assert pads == {"conv_stem": (0, 1), "blocks.1.0.conv_dw": (0, 1), "blocks.2.0.conv_dw": (2, 2),
                    "blocks.3.0.conv_dw": (0, 1), "blocks.5.0.conv_dw": (1, 2)}


def test_at_the_native_size_the_features_are_those_of_timm(both):
    name, static, dynamic = both
    assert max(distances(static, dynamic, NATIVE[name])) < 1e-6


def test_at_224_pixels_they_differ_from_stage_3_of_b2_and_b4_from_stage_5_of_b6_and_never_in_b0(both):
    name, static, dynamic = both
    first = {"efficientnet_b0": 6, "efficientnet_b2": 3, "efficientnet_b4": 3, "efficientnet_b6": 5}[name]
    apart = distances(static, dynamic, 224)
    assert all(d < 1e-6 for d in apart[:first - 1]) and all(d > 0.1 for d in apart[first - 1:])
    assert [m.shape for m in static(torch.zeros(1, 3, 224, 224))] == [m.shape for m in dynamic(torch.zeros(1, 3, 224, 224))]


def test_centers_are_those_of_the_pixels_that_a_cell_sees():
    """An impulse response without any formula: the middle of the pixels with a gradient, of a stack of convolutions."""
    strided = [(3, 2), (3, 2), (5, 2), (3, 2)]
    for native in (224, 380):
        side, layers = native, []
        for kernel, stride in strided:
            before, after = same_padding(side, kernel, stride)
            layers += [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(1, 1, kernel, stride, bias=False)]
            side = -(-side // stride)
        network = nn.Sequential(*layers)
        for weight in network.parameters():
            nn.init.ones_(weight)
        x = torch.zeros(1, 1, 224, 224, requires_grad=True)
        cells, jump = network(x), 16
        row, column = 5, 8                              # in the interior, so that no window is cut off
        cells[0, 0, row, column].backward()
        seen = x.grad[0, 0].nonzero().double()
        middle = (seen.amin(0) + seen.amax(0)) / 2
        assert (middle - torch.tensor([row, column]) * jump).tolist() == [first_centers(strided, native)[-1]] * 2


def test_stage_3_and_4_of_b4_lie_four_pixels_further_left_than_with_timm_s_padding():
    strided = [(m.kernel_size[0], m.stride[0]) for m in BACKBONES["efficientnet_b4"].build().modules()
               if isinstance(m, StaticConv2d)]
    static, dynamic = first_centers(strided, 380), first_centers(strided, 224)
    assert [b - a for a, b in zip(static, dynamic, strict=True)] == [0, 0, 4, 4, 4]
    assert static[2] + 8 * 13.5 == 111 and dynamic[2] + 8 * 13.5 == 115     # the middle of 28 cells; the image's is 111.5


def test_the_key_of_cached_features_names_the_padding():
    static = FeatureExtractor("efficientnet_b4", (1,), "random")
    plain = FeatureExtractor("resnet18", (1,), "random")
    assert "-padded 380" in static.key and "padded" not in plain.key


def test_the_receptive_field_of_a_statically_padded_network_has_its_center():
    network = BACKBONES["efficientnet_b4"].build().eval()
    fields = analytic(network, ["blocks.0", "blocks.1"])
    dynamic = analytic(timm.create_model("tf_efficientnet_b4").eval(), ["blocks.0", "blocks.1"])
    assert fields == dynamic                            # up to stage 2 nothing differs
