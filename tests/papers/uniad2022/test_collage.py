"""Collages of features whose nearest patches are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.papers.uniad2022.collage import collage


def pair() -> tuple[Tensor, Tensor]:
    """Random features of two images on a 2x3 grid, and random 32x48 images."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, 2, 3, generator=generator), torch.rand(2, 3, 32, 48, generator=generator)


def test_a_collage_of_known_features_is_their_image_and_any_other_cell_takes_the_nearest_patch():
    features, images = pair()
    assert torch.equal(collage(features, features, images), images)
    strange = features[:1].clone()
    strange[0, :, 1, 2] = features[1, :, 0, 0] + 1e-3           # the last cell now looks like the other image's first
    drawn = collage(strange, features, images)[0]
    assert torch.equal(drawn[:, 16:, 32:], images[1, :, :16, :16])
    drawn[:, 16:, 32:] = images[0, :, 16:, 32:]
    assert torch.equal(drawn, images[0])


def test_images_of_another_size_than_their_features_are_refused():
    features, images = pair()
    with pytest.raises(ParameterError, match="16 pixels per cell"):
        collage(features, features, images[:, :, :16])
