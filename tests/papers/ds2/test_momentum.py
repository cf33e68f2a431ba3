"""Key networks: momentum, parameters and batch-norm statistics against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pytest import approx
from torch import nn

from adcore.papers.ds2.momentum import cosine_momentum, follow, target_of
from adcore.training import seeded


def network() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_momentum_is_0_99_at_the_start_0_995_in_the_middle_and_1_at_the_end():
    assert cosine_momentum(0, 5600) == approx(0.99, abs=1e-15) and cosine_momentum(5600, 5600) == 1
    assert cosine_momentum(2800, 5600) == approx(0.995) and cosine_momentum(6000, 5600) == 1
    assert cosine_momentum(1400, 5600) == approx(1 - 0.01 * (math.sqrt(0.5) + 1) / 2)
    rising = [cosine_momentum(k, 50) for k in range(51)]
    assert rising == sorted(rising) and len(set(rising)) == 51 and cosine_momentum(0, 0) <= 1


@pytest.mark.parametrize("momentum", [0.0, 0.99, 1.0])
def test_a_target_averages_the_parameters_and_not_the_batch_norm_statistics(momentum):
    trained = network()
    target = target_of(trained)
    before = [p.clone() for p in target.parameters()]
    for p in trained.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(p.numel()))
    trained[1].running_mean.fill_(7.0)
    follow(target, trained, momentum)
    for old, ours, theirs in zip(before, target.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(ours, momentum * old + (1 - momentum) * theirs, atol=1e-7)
    assert not target[1].running_mean.any() and (trained[1].running_mean == 7).all()


def test_after_several_steps_the_target_is_the_weighted_mean_of_past_networks():
    trained = network()
    target, weight = target_of(trained), float(trained[0].weight.detach()[0, 0])
    by_hand = weight
    for step in range(6):
        with torch.no_grad():
            trained[0].weight[0, 0] = step
        momentum = cosine_momentum(step, 6, 0.5)
        follow(target, trained, momentum)
        by_hand = momentum * by_hand + (1 - momentum) * step
    assert float(target[0].weight[0, 0]) == approx(by_hand, rel=1e-6)


def test_a_target_is_a_copy_without_gradients():
    trained = network()
    target = target_of(trained)
    assert all(p.requires_grad for p in trained.parameters()) and not any(p.requires_grad for p in target.parameters())
    follow(target, trained, 0.5)
    assert all(p.grad_fn is None for p in target.parameters())
    with torch.no_grad():
        trained[0].weight.zero_()
    assert target[0].weight.any()
