"""LARS against its formula and timm's, and the schedule's values at the paper's epochs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn

from adcore.papers.ds2.lars import LARS, step_schedule

LR, MOMENTUM, DECAY, TRUST, EPS = 2.0, 0.9, 1e-2, 0.001, 1e-8


def matrix(seed: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def gradients(steps: int, *shape: int) -> list[Tensor]:
    return [torch.randn(*shape, generator=torch.Generator().manual_seed(100 + step)) for step in range(steps)]


def taken(p: nn.Parameter, steps: list[Tensor], optimizer: torch.optim.Optimizer) -> np.ndarray:
    for g in steps:
        p.grad = g.clone()
        optimizer.step()
        assert torch.equal(p.grad, g)                                   # the gradient is not changed
    return p.detach().numpy()


def by_hand(start: Tensor, steps: list[Tensor]) -> np.ndarray:
    p = start.detach().double().numpy().copy()
    v = np.zeros_like(p)
    for step in steps:
        g = step.double().numpy()
        if p.ndim > 1:
            g = g + DECAY * p
            length, own = math.sqrt((p ** 2).sum()), math.sqrt((g ** 2).sum())
            if length > 0 and own > 0:
                g = g * TRUST * length / (own + EPS)
        v = MOMENTUM * v + g
        p = p - LR * v
    return p


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3, 3), (6,), (1, 1)])
def test_steps_equal_the_formula(steps, shape):
    p, steps = matrix(0, *shape), gradients(steps, *shape)
    expected = by_hand(p, steps)
    assert taken(p, steps, LARS([p], LR, weight_decay=DECAY)) == approx(expected, rel=1e-5, abs=1e-6)


def test_parameters_with_one_dimension_take_plain_sgd_steps():
    ours, theirs, steps = matrix(1, 7), matrix(1, 7), gradients(4, 7)
    found = taken(ours, steps, LARS([ours], 0.1, weight_decay=DECAY))
    assert found == approx(taken(theirs, steps, torch.optim.SGD([theirs], 0.1, momentum=MOMENTUM)), rel=1e-6)


def test_without_weight_decay_it_equals_timm_s_lars():
    timm = pytest.importorskip("timm.optim.lars")
    ours, theirs, steps = matrix(2, 5, 4), matrix(2, 5, 4), gradients(5, 5, 4)
    other = timm.Lars([theirs], LR, momentum=MOMENTUM, weight_decay=0, trust_coeff=TRUST, eps=EPS, always_adapt=True)
    assert taken(ours, steps, LARS([ours], LR, weight_decay=0)) == approx(taken(theirs, steps, other), rel=1e-5)


def test_the_length_of_the_first_step_does_not_depend_on_the_gradient_s():
    for scale in (1e-3, 1.0, 1e4):
        p = matrix(3, 6, 6)
        start = p.detach().clone()
        taken(p, [scale * gradients(1, 6, 6)[0]], LARS([p], LR, weight_decay=0))
        assert float((p.detach() - start).norm()) == approx(LR * TRUST * float(start.norm()), rel=1e-4)


def test_a_zero_parameter_takes_a_plain_step_and_a_zero_gradient_no_step():
    zero = nn.Parameter(torch.zeros(2, 2))
    steps = gradients(1, 2, 2)
    assert taken(zero, steps, LARS([zero], 0.5)) == approx(-0.5 * steps[0].numpy())
    p = matrix(4, 2, 2)
    start = p.detach().numpy().copy()
    assert (taken(p, [torch.zeros(2, 2)], LARS([p], LR, weight_decay=0)) == start).all()
    unused = matrix(5, 2, 2)
    LARS([unused], LR).step()                                           # no gradient at all
    assert torch.equal(unused, matrix(5, 2, 2))


def test_a_resumed_optimizer_takes_the_same_steps(tmp_path):
    whole, steps = matrix(6, 3, 3), gradients(6, 3, 3)
    bias, biases = matrix(6, 3), gradients(6, 3)
    optimizer = LARS([whole, bias], LR, weight_decay=DECAY)

    def go(p: nn.Parameter, b: nn.Parameter, optimizer: LARS, which: range) -> None:
        for i in which:
            p.grad, b.grad = steps[i], biases[i]
            optimizer.step()

    go(whole, bias, optimizer, range(3))
    torch.save({"p": whole.data, "b": bias.data, "optimizer": optimizer.state_dict()}, tmp_path / "state")
    go(whole, bias, optimizer, range(3, 6))
    state = torch.load(tmp_path / "state", weights_only=True)
    p, b = nn.Parameter(state["p"]), nn.Parameter(state["b"])
    resumed = LARS([p, b], 1.0, momentum=0.5, weight_decay=0)           # replaced by the saved settings
    resumed.load_state_dict(state["optimizer"])
    go(p, b, resumed, range(3, 6))
    assert torch.equal(p, whole) and torch.equal(b, bias)


def test_a_closure_runs_with_gradients_and_its_loss_is_returned():
    p = matrix(7, 2, 2)
    optimizer = LARS([p], 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p ** 2).sum()
        loss.backward()
        return loss

    before = float((p.detach() ** 2).sum())
    assert float(optimizer.step(closure).detach()) == approx(before) and float((p.detach() ** 2).sum()) < before


# The schedule.

def rates(steps: int, per_epoch: int, **settings: object) -> list[float]:
    """The learning rate before each step, for a base rate of 2."""
    optimizer = LARS([matrix(0, 2, 2)], 2.0)
    schedule, found = step_schedule(optimizer, per_epoch, **settings), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_rises_at_every_step_of_5_epochs_and_is_divided_by_10_at_120_160_and_200():
    found = rates(210 * 3, per_epoch=3)
    assert found[:16] == approx([0.02 + 1.98 * step / 15 for step in range(16)])
    assert found[15:360] == approx([2.0] * 345)
    assert found[360:480] == approx([0.2] * 120) and found[480:600] == approx([0.02] * 120)
    assert found[600:] == approx([0.002] * 30)


@pytest.mark.parametrize("per_epoch", [2, 3])                           # an even and an odd number of steps of warm-up
def test_the_released_scheduler_counts_the_warm_up_twice(per_epoch):
    ramp = 5 * per_epoch
    count, after, factor, expected = 1, 0, 1.0, []                      # it counts once more when it is made
    for _ in range(210 * per_epoch):
        expected.append(2 * factor * (0.01 + 0.99 * min(count, ramp - (ramp + 1) % 2) / ramp))
        if count + 1 <= ramp:
            count += 2                                                  # once by itself, once in its parent's step
        else:
            count, after = count + 1, after + 1
            factor *= 0.1 if after + ramp in (120 * per_epoch, 160 * per_epoch, 200 * per_epoch) else 1
    assert rates(210 * per_epoch, per_epoch, released=True) == approx(expected) and expected[-1] < 0.0021


def test_warm_up_and_decay_epochs_can_be_changed():
    assert rates(4, 1, warmup=0, decay_epochs=(2,), decay=0.5) == rates(4, 1, warmup=0, decay_epochs=(2,), decay=0.5,
                                                                       released=True) == [2, 2, 1, 1]
    assert rates(3, 1, warmup=2, start=0.5, decay_epochs=()) == [1, 1.5, 2]
