"""DS2's encoder: maps of its scales, its initial weights, and equality with torchvision's ResNet-18."""

from __future__ import annotations

import math

import pytest
import torch
from pytest import approx
from torch import nn
from torchvision.models import resnet18

from adcore.errors import ParameterError
from adcore.papers.ds2.localization import OneMap
from adcore.papers.ds2.resnet_encoder import CHANNELS, ResNetEncoder
from adcore.training import seeded


def test_at_224_pixels_maps_have_strides_4_to_32():
    with seeded(0), torch.no_grad():
        maps = ResNetEncoder(("c5", "c4", "c3", "c2"))(torch.randn(2, 3, 224, 224))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "c2": (2, 64, 56, 56), "c3": (2, 128, 28, 28), "c4": (2, 256, 14, 14), "c5": (2, 512, 7, 7)}
    assert list(maps) == list(CHANNELS) and [x.shape[1] for x in maps.values()] == list(CHANNELS.values())


def test_a_map_does_not_depend_on_the_other_requested_maps():
    images, found = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for scales in (("c4",), ("c3", "c4", "c5")):
        with seeded(1):
            found.append(ResNetEncoder(scales)(images))
    assert set(found[0]) == {"c4"} and torch.equal(found[0]["c4"], found[1]["c4"])


def test_one_map_uses_the_encoder_itself():
    encoder = ResNetEncoder(("c4", "c5")).eval()
    one, images = OneMap(encoder, "c5"), torch.randn(2, 3, 32, 32)
    assert torch.equal(one(images), encoder(images)["c5"]) and torch.equal(OneMap(encoder, "c4")(images), encoder(images)["c4"])
    assert one.network is encoder and not one.network.training


def test_pooled_it_is_torchvision_s_network_before_its_classifier():
    with seeded(2):
        encoder, whole = ResNetEncoder(), resnet18(weights=None)
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.05)
    whole.fc = nn.Identity()
    whole.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 3, 70, 50)
    assert torch.equal(encoder(images)["c5"].mean((2, 3)), whole(images))


@pytest.mark.parametrize("zero", [True, False])
def test_weights_are_drawn_with_the_fan_out_and_blocks_end_in_a_norm_with_weight_0_if_asked_for(zero):
    with seeded(0):
        encoder = ResNetEncoder(zero_residual=zero)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert float(module.weight.detach().std()) == approx(deviation, rel=0.06), name
            assert float(module.weight.detach().mean()) == approx(0, abs=0.05 * deviation), name
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            last = name.endswith("bn2")                                 # of a block of two convolutions
            assert (module.weight == (0 if last and zero else 1)).all() and not module.bias.any(), name
    assert sum(name.endswith("bn2") for name, _ in encoder.named_modules()) == 8


@pytest.mark.parametrize("scales", [(), ("c1",), ("c4", "c4"), ("c5", "fc")])
def test_scales_that_do_not_exist_are_refused(scales):
    with pytest.raises(ParameterError, match="c2, c3, c4, c5"):
        ResNetEncoder(scales)
