"""Features of patches, against a loop that crops each patch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.features.patches import patch_features, patch_grid


def encoder(seed: int = 0) -> nn.Module:
    """Two padded convolutions with a batch norm that has statistics: (b, 3, p, p) -> (b, 7, p/4, p/4)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3, 2, 1))
        network(torch.rand(4, 3, 16, 16))
    return network.double().eval()


def pictures(b: int, h: int, w: int) -> Tensor:
    return torch.rand(b, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(h * w))


@pytest.mark.parametrize(("size", "patch", "stride"), [((24, 24), 8, 4), ((20, 31), 8, 4), ((9, 16), 8, 3), ((8, 8), 8, 4),
                                                       ((10, 30), 8, 11)])
@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_each_patch_is_encoded_averaged_and_scaled_to_unit_length_row_by_row(size, patch, stride, batch):
    images, network = pictures(2, *size), encoder()
    found = patch_features(network, images, patch, stride, batch=batch)
    h, w = patch_grid(size, patch, stride)
    assert found.shape == (2, h * w, 7) and not found.requires_grad
    for b in range(2):
        for number in range(h * w):
            y, x = stride * (number // w), stride * (number % w)
            with torch.no_grad():
                one = network(images[b:b + 1, :, y:y + patch, x:x + patch]).mean((2, 3))[0]
            assert torch.allclose(found[b, number], one / one.norm(), rtol=1e-9, atol=1e-12)


def test_256_pixels_have_57_by_57_patches_of_32_every_4():
    assert patch_grid((256, 256)) == (57, 57) and patch_grid((256, 128)) == (57, 25) and patch_grid((35, 36)) == (1, 2)


def shared(network: nn.Module, image: Tensor, patch: int, stride: int) -> Tensor:
    """All patches from one pass over the image by a network of stride 1: (N, D)."""
    with torch.no_grad():
        maps = network(image)
    return F.normalize(F.avg_pool2d(maps, patch, stride).flatten(2).transpose(1, 2), dim=2)[0]


def test_one_pass_over_the_image_is_exact_only_for_a_network_without_padding():
    image = pictures(1, 24, 24)
    pointwise, padded = nn.Conv2d(3, 6, 1).double().eval(), nn.Conv2d(3, 6, 3, padding=1).double().eval()
    assert torch.allclose(patch_features(pointwise, image, 8, 4)[0], shared(pointwise, image, 8, 4))
    difference = (patch_features(padded, image, 8, 4)[0] - shared(padded, image, 8, 4)).abs()
    assert difference.amax(1)[12] > 1e-3                      # a patch in the middle, whose border is not the image's


def test_an_encoder_in_training_mode_is_refused():
    network = encoder()
    network[1].train()
    with pytest.raises(ParameterError, match=r"^the encoder of patches is in training mode, where batch norms mix patches"):
        patch_features(network, pictures(1, 16, 16), 8)


@pytest.mark.parametrize(("size", "patch", "stride"), [((16, 31), 32, 4), ((31, 40), 32, 4), ((40, 40), 32, 0)])
def test_patches_that_do_not_fit_in_the_image_are_refused(size, patch, stride):
    with pytest.raises(ParameterError, match=rf"^patches of 32x32 pixels with stride {stride} in an image of {size[0]}x"):
        patch_features(encoder(), pictures(1, *size), patch, stride)


def test_an_encoder_that_returns_vectors_and_images_without_a_batch_dimension_are_refused():
    with pytest.raises(ParameterError, match=r"^the encoder of patches returned \(1, 192\): expected one map \(b, D, h, w\)$"):
        patch_features(nn.Flatten().eval(), pictures(1, 8, 8), 8)
    for images in (pictures(1, 8, 8)[0], pictures(1, 8, 8)[:0]):
        with pytest.raises(ParameterError, match=r"in batches of 1024 patches: expected \(B, 3, H, W\) with B at least 1"):
            patch_features(encoder(), images, 8)
