"""The deviation loss, the top-k score and the anomaly mapping layer, compared with numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn

from adcore.papers.atacnet.deviation import (
    AnomalyMapping,
    deviation_loss,
    deviation_loss_printed,
    deviations,
    he_initialized,
    top_mean,
)
from adcore.training import seeded

SCORES = torch.tensor([-3.0, -0.4, 0.2, 1.5, 4.8, 9.0])
LABELS = torch.tensor([0, 1, 1, 0, 1, 1])


def reference(seed: int) -> np.ndarray:
    """The random numbers of N(0, 1) that the loss draws."""
    with seeded(seed):
        return torch.randn(5000).double().numpy()


def drawn(loss: object, scores: Tensor, labels: Tensor, seed: int = 0, **settings: float) -> Tensor:
    with seeded(seed):
        return loss(scores, labels, **settings)


def slopes(loss: object, scores: Tensor, labels: Tensor) -> np.ndarray:
    scores = scores.clone().requires_grad_()
    drawn(loss, scores, labels).backward()
    return scores.grad.numpy()


# The loss.

@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("margin", [5.0, 2.0])
@pytest.mark.parametrize("labels", [LABELS, LABELS.bool(), LABELS.float()], ids=["int", "bool", "float"])
def test_the_loss_equals_its_formula_with_the_mean_and_deviation_of_5000_draws(seed, margin, labels):
    r = reference(seed)
    dev = [(float(s) - r.mean()) / math.sqrt(((r - r.mean()) ** 2).sum() / 4999) for s in SCORES]
    clamped = [max(0.0, margin - d) if y else abs(d) for d, y in zip(dev, LABELS.tolist(), strict=True)]
    printed = [(1 - y) * abs(d) + y * (margin - abs(d)) for d, y in zip(dev, LABELS.tolist(), strict=True)]
    assert float(drawn(deviation_loss, SCORES, labels, seed, margin=margin)) == approx(sum(clamped) / 6, rel=1e-5)
    assert float(drawn(deviation_loss_printed, SCORES, labels, seed, margin=margin)) == approx(sum(printed) / 6, rel=1e-5)


def test_each_batch_draws_a_new_reference():
    with seeded(0):
        first, second = deviations(SCORES), deviations(SCORES)
    assert not torch.equal(first, second) and (first - second).abs().max() < 0.5


def test_the_clamped_loss_is_never_negative_and_zero_at_its_targets():
    with seeded(3):
        losses = [deviation_loss(20 * torch.randn(8), torch.rand(8) < 0.5) for _ in range(200)]
    assert min(losses) >= 0
    r = reference(0)
    at_the_mean = torch.full((4,), float(r.mean()))
    assert float(drawn(deviation_loss, at_the_mean, torch.zeros(4))) < 1e-6
    assert float(drawn(deviation_loss, at_the_mean + 5.01 * float(r.std()), torch.ones(4))) == 0
    assert float(drawn(deviation_loss, at_the_mean + 4.0 * float(r.std()), torch.ones(4))) == approx(1.0, rel=1e-3)


def test_only_an_anomaly_beyond_the_margin_has_no_gradient():
    found, step = slopes(deviation_loss, SCORES, LABELS), 1 / (6 * reference(0).std(ddof=1))
    assert found == approx([-step, -step, -step, step, -step, 0], rel=1e-5)      # 4.8 is below the margin, 9 beyond


def test_the_clamped_loss_raises_the_score_of_an_anomaly_below_zero_and_the_printed_one_lowers_it():
    below = torch.tensor([-3.0])
    assert slopes(deviation_loss, below, torch.ones(1)) < 0 < slopes(deviation_loss_printed, below, torch.ones(1))


@pytest.mark.parametrize("side", [1, -1])
def test_the_printed_loss_has_no_lower_bound_as_the_score_of_an_anomaly_grows_in_either_direction(side):
    far = [10.0 ** k for k in range(1, 7)]
    losses = [float(drawn(deviation_loss_printed, torch.tensor([side * score]), torch.ones(1))) for score in far]
    falls = [(a - b) / (t - s) for a, b, s, t in zip(losses, losses[1:], far, far[1:], strict=False)]
    assert falls == approx([1 / reference(0).std(ddof=1)] * 5, rel=1e-3)       # linear, so without a bound
    assert losses[-1] < -9e5
    if side > 0:
        assert [float(drawn(deviation_loss, torch.tensor([score]), torch.ones(1))) for score in far] == [0] * 6


def test_both_losses_are_equal_where_anomalies_deviate_upwards_by_less_than_the_margin():
    scores, labels = torch.tensor([-2.0, 0.5, 0.5, 4.5]), torch.tensor([0, 0, 1, 1])
    assert drawn(deviation_loss, scores, labels) == drawn(deviation_loss_printed, scores, labels)


@pytest.mark.parametrize("loss", [deviation_loss, deviation_loss_printed])
@pytest.mark.parametrize("label", [0, 1])
def test_batches_of_one_class_have_finite_losses_and_gradients(loss, label):
    labels = torch.full((6,), label)
    assert torch.isfinite(drawn(loss, SCORES, labels)) and np.isfinite(slopes(loss, SCORES, labels)).all()
    assert np.isfinite(slopes(loss, torch.zeros(1), labels[:1])).all()


# The score.

@pytest.mark.parametrize(("h", "w", "fraction", "count"), [
    (7, 7, 0.1, 4), (1, 1, 0.1, 1), (3, 3, 0.1, 1), (28, 28, 0.1, 78), (2, 5, 0.1, 1), (4, 5, 0.1, 2), (3, 5, 1.0, 15)])
def test_the_top_k_score_is_the_mean_of_the_largest_cells_and_of_at_least_one(h, w, fraction, count):
    maps = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * w))
    by_hand = [np.sort(m.double().numpy().ravel())[::-1][:count].mean() for m in maps]
    assert top_mean(maps, fraction).tolist() == approx(by_hand, rel=1e-5)


def test_the_default_fraction_is_a_tenth_and_only_the_largest_cells_have_a_gradient():
    maps = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    top_mean(maps).sum().backward()
    assert maps.grad.flatten(1).gt(0).sum(1).tolist() == [4, 4] and maps.grad.max() == 0.25
    for cells, slope in zip(maps.detach().flatten(1), maps.grad.flatten(1), strict=True):
        assert cells[slope > 0].min() > cells[slope == 0].max()


def test_the_anomaly_mapping_is_the_absolute_value_of_a_weighted_sum_of_channels():
    mapping = AnomalyMapping(5)
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    weight, bias = mapping.combine.weight.detach().double().numpy()[0, :, 0, 0], float(mapping.combine.bias.detach())
    sums = np.einsum("bchw,c->bhw", x.double().numpy(), weight) + bias
    found = mapping(x).detach().numpy()
    assert found.shape == (2, 3, 4) and found == approx(np.abs(sums), rel=1e-4, abs=1e-6)
    assert (found >= 0).all() and sums.min() < 0 < sums.max()


# New layers.

@pytest.mark.parametrize(("layer", "fan_in"), [(nn.Conv2d(64, 40, 3), 64 * 9), (nn.Conv2d(1000, 50, 1), 1000),
                                               (nn.Linear(400, 90), 400), (nn.Conv2d(64, 40, 3, bias=False), 64 * 9)])
def test_he_initialization_has_standard_deviation_sqrt_2_by_fan_in_and_zero_bias(layer, fan_in):
    with seeded(0):
        assert he_initialized(layer) is layer
    assert float(layer.weight.detach().double().mean()) == approx(0, abs=0.02 * math.sqrt(2 / fan_in))
    assert float(layer.weight.detach().double().std()) == approx(math.sqrt(2 / fan_in), rel=0.02)
    assert layer.bias is None or not layer.bias.any()


def test_he_initialization_reaches_nested_layers_and_does_not_change_norms():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 200, 1), nn.ReLU()), nn.Identity())
    nn.init.constant_(network[0].weight, 7.0)
    he_initialized(network)
    assert (network[0].weight == 7).all() and float(network[1][0].weight.detach().std()) == approx(math.sqrt(2 / 3), rel=0.1)
