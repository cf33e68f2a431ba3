"""Pixel propagation and the dense loss, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor, nn

from adcore.papers.ds2.pixel_propagation import Projector, Propagation, pair_loss, scale_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(random(*shape, seed=seed), dim=1)


def direction(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_propagation_equals_the_loop_over_positions():
    layer, x = Propagation(5), random(2, 5, 3, 4)
    weight, bias = layer.value.weight.detach().double().numpy()[:, :, 0, 0], layer.value.bias.detach().double().numpy()
    found = layer(x).detach()
    assert found.shape == x.shape
    for image, result in zip(x.double().flatten(2).numpy(), found.flatten(2).numpy(), strict=True):
        for i in range(12):
            y = np.zeros(5)
            for j in range(12):
                cosine = direction(image[:, i]) @ direction(image[:, j])
                y += max(cosine, 0) ** 2 * direction(weight @ image[:, j] + bias)
            assert result[:, i] == approx(direction(y), abs=1e-5)


def test_a_position_similar_to_no_other_keeps_its_own_value():
    x = torch.eye(4).reshape(1, 4, 2, 2)                                    # orthogonal: similarity 0
    layer = Propagation(4)
    assert torch.allclose(layer(x), F.normalize(layer.value(x), dim=1), atol=1e-6)
    opposite = torch.tensor([[1.0, -1.0]])[..., None, None].expand(1, 2, 1, 1).clone()
    pair = torch.cat([opposite, -opposite], 3)                              # opposite: cosine -1, similarity 0
    small = Propagation(2)
    assert torch.allclose(small(pair), F.normalize(small.value(pair), dim=1), atol=1e-6)


def test_the_projector_is_two_1x1_layers_with_a_batch_norm_between():
    projector = Projector(6, 10, 4)
    assert [type(layer) for layer in projector] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert projector(random(2, 6, 3, 5)).shape == (2, 4, 3, 5)
    weights = sum(p.numel() for p in Projector(512).parameters())
    assert weights == 512 * 4096 + 4096 + 2 * 4096 + 4096 * 256 + 256       # 4096 and 256 wide, both layers with biases


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_of_two_views_equals_the_loop_over_images_and_positions(seed):
    y, z = unit(3, 4, 2, 3, seed=seed), unit(3, 4, 2, 3, seed=seed + 10)
    mask = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(seed)) < 0.2
    mask[1] = False
    images = []
    for a, b, m in zip(y.double().flatten(2).numpy(), z.double().flatten(2).numpy(), mask.numpy(), strict=True):
        total = sum(float(a[:, i] @ b[:, j]) for i in range(6) for j in range(6) if m[i, j])
        images.append(-2 * total / (m.sum() + 1e-6))
    assert float(pair_loss(y, z, mask)) == approx(np.mean(images), abs=1e-6) and images[1] == 0


def test_if_predictions_equal_their_keys_two_scales_have_a_loss_of_minus_2_each():
    total = 0.0
    for grid in (14, 7):
        views = unit(2, 8, grid, grid, seed=1), unit(2, 8, grid, grid, seed=2)
        itself = torch.eye(grid * grid, dtype=torch.bool).expand(2, -1, -1)
        # The prediction of view 1 is compared with the key of view 2.
        loss = float(scale_loss(views, (views[1], views[0]), (itself, itself)))
        assert loss == approx(-2, abs=1e-5)
        total += loss
    assert total == approx(-4, abs=1e-5)


def test_both_directions_have_equal_weight_and_their_own_pairs():
    y, z = (unit(2, 4, 2, 2, seed=0), unit(2, 4, 2, 2, seed=1)), (unit(2, 4, 2, 2, seed=2), unit(2, 4, 2, 2, seed=3))
    there, back = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = (pair_loss(y[0], z[1], there) + pair_loss(y[1], z[0], back)) / 2
    assert float(scale_loss(y, z, (there, back))) == float(expected)
    assert float(scale_loss(y, z, (back, there))) != approx(float(expected), abs=1e-4)


def test_without_a_pair_the_loss_is_0_and_gradients_are_finite():
    x = random(2, 4, 3, 3).requires_grad_()
    layer = Propagation(4)
    loss = pair_loss(layer(x), unit(2, 4, 3, 3, seed=1), torch.zeros(2, 9, 9, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0 and not x.grad.any() and torch.isfinite(layer.value.weight.grad).all()


def test_a_gradient_step_lowers_the_loss_and_the_pair_mask_gets_no_gradient():
    x, z = random(2, 4, 3, 3).requires_grad_(), unit(2, 4, 3, 3, seed=1)
    weights = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = Propagation(4)
    before = pair_loss(layer(x), z, weights)
    before.backward()
    assert weights.grad is None and x.grad.abs().min() > 0 and layer.value.weight.grad.any()
    assert pair_loss(layer(x - 0.01 * x.grad), z, weights) < before
