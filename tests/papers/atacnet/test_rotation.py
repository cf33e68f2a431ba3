"""Random rotations of training images, compared with torchvision's and Pillow's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from adcore.papers.atacnet.few_shot import rotated
from adcore.training import seeded


def images(count: int, h: int, w: int) -> Tensor:
    return torch.rand(count, 3, h, w, generator=torch.Generator().manual_seed(0))


def turned(x: Tensor, degrees: float, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Images rotated by exactly this angle."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(high))
        return rotated(x, degrees)


def moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Center and covariance of the brightness, in pixels from the image's center, x first: (H, W) -> (2,), (2, 2)."""
    h, w = x.shape
    y, x_ = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    places, weights = torch.stack([x_, y]).flatten(1).double().numpy(), x.flatten().double().numpy()
    return places @ weights / weights.sum(), np.cov(places, aweights=weights)


def test_a_rotation_by_90_degrees_equals_torch_s_and_one_by_0_changes_nothing(monkeypatch):
    x = images(2, 31, 31)
    assert rotated(x, 0.0) is x
    quarter = turned(x, 90.0, monkeypatch)
    assert any(torch.allclose(quarter, torch.rot90(x, k, (2, 3)), atol=1e-4) for k in (1, 3))
    assert torch.allclose(turned(x, 180.0, monkeypatch), x.flip(2, 3), atol=1e-4)
    wide = images(2, 20, 44)
    assert torch.allclose(turned(wide, 180.0, monkeypatch), wide.flip(2, 3), atol=1e-4)


@pytest.mark.parametrize("degrees", [37.0, -80.0, 143.0])
def test_a_rotation_takes_the_nearest_pixels_as_torchvision_and_pillow_do(monkeypatch, degrees):
    x = torch.randint(1, 255, (1, 3, 48, 66), generator=torch.Generator().manual_seed(0)).float()
    found = turned(x, degrees, monkeypatch)
    assert torch.equal(found, rotate(x, degrees, interpolation=InterpolationMode.NEAREST)) and (found == 0).any()
    picture = Image.fromarray(x[0].byte().permute(1, 2, 0).numpy()).rotate(degrees, Image.Resampling.NEAREST)
    assert (found[0].permute(1, 2, 0).byte().numpy() != np.asarray(picture)).mean() < 0.001       # ties between two pixels


@pytest.mark.parametrize("degrees", [25.0, 70.0, -40.0])
def test_a_disc_in_a_non_square_image_stays_a_disc_and_moves_along_a_circle(monkeypatch, degrees):
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(200.0), indexing="ij")
    disc = (((x - 130) ** 2 + (y - 65) ** 2) < 15 ** 2).float()
    found = turned(disc.expand(1, 3, -1, -1), degrees, monkeypatch)[0, 0]
    (before, _), (after, spread) = moments(disc), moments(found)
    assert found.sum() == approx(float(disc.sum()), rel=0.01)
    assert spread == approx(np.eye(2) * 15 ** 2 / 4, abs=1.5)                # variance of a disc: r^2 / 4 in any direction
    assert np.hypot(*after) == approx(np.hypot(*before), abs=0.2)
    angle = math.degrees(math.atan2(after[1], after[0]) - math.atan2(before[1], before[0]))
    assert abs(angle) == approx(abs(degrees), abs=0.5)


def test_each_image_has_its_own_angle_uniform_in_both_directions():
    dot = torch.zeros(400, 3, 41, 41)
    dot[:, :, 19:22, 33:36] = 1.0
    with seeded(0):
        places = np.stack([moments(x)[0] for x in rotated(dot, 30.0)[:, 0]])
    angles = np.degrees(np.arctan2(places[:, 1], places[:, 0]))
    assert np.abs(angles).max() < 30.5 and angles.min() < -28 and angles.max() > 28
    assert angles.mean() == approx(0, abs=2) and angles.std() == approx(60 / math.sqrt(12), rel=0.08)
