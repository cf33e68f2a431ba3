"""Flows in float64: inverse, log-determinant compared with autograd's Jacobian, likelihood; and inputs without a density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from scipy import stats
from support.by_hand import normal
from torch import nn
from torch.autograd.functional import jacobian

from adcore.errors import DataError, ParameterError
from adcore.models import AsymSTConfig, FastFlowConfig
from adcore.papers.heckler2023.asymst import Teacher
from adcore.papers.heckler2023.fastflow import TapFlow
from adcore.papers.heckler2023.flows import channel_moments, check_shape, check_spread, energy, nll, seeded_permutations
from adcore.training import seeded

SHAPES = [(2, 1, 1), (3, 2, 3), (4, 3, 2), (5, 1, 4)]


class Positioned(nn.Module):
    """A teacher with a fixed condition."""

    def __init__(self, shape, config):
        super().__init__()
        self.teacher = Teacher(shape, config)
        self.positions = normal(1, config.positions, *shape[1:], seed=5)

    @property
    def flow(self):
        return self.teacher.flow

    def forward(self, x):
        return self.teacher(x, self.positions.expand(len(x), -1, -1, -1))


def flow_of(kind, shape):
    """A flow in float64 with random parameters, because with its initial ones it may be the identity."""
    with seeded(3):
        if kind == "asymst":
            model = Positioned(shape, AsymSTConfig(teacher_hidden=6, positions=4))
        else:
            model = TapFlow(shape, FastFlowConfig(steps=4, kernels=kind))
            model.norm = nn.Identity()          # the likelihood is taken after the layer norm
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        if kind != "asymst":
            for step in model.flow:
                nn.init.uniform_(step.global_scale, 5, 25)
    return model.double().eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["alternating", "3x3", "asymst"])
def test_the_log_determinant_equals_the_one_of_autograd_s_jacobian(kind, shape):
    flow, x, size = flow_of(kind, shape), normal(2, *shape), math.prod(shape)
    _, log_det = flow(x)
    for i in range(2):
        full = jacobian(lambda one: flow(one)[0], x[i:i + 1]).reshape(size, size)
        sign, by_hand = torch.linalg.slogdet(full)
        assert abs(sign) == 1 and float(log_det[i].detach()) == approx(float(by_hand), abs=1e-9)
        assert abs(float(by_hand)) > 0.02               # the flow is not the identity


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["alternating", "3x3", "asymst"])
def test_the_inverse_of_a_flow_returns_its_input(kind, shape):
    model, x = flow_of(kind, shape), normal(3, *shape)
    conditions = [model.positions.expand(3, -1, -1, -1)] if kind == "asymst" else None
    z, forward = model.flow(x, conditions)
    back, backward = model.flow(z, conditions, rev=True)
    assert torch.allclose(back, x, atol=1e-11) and torch.allclose(forward, -backward, atol=1e-11)
    assert (z - x).abs().max() > 0.1


def test_the_likelihood_equals_scipy_s_gaussian_density_of_z_without_its_constant():
    z, log_det = normal(4, 3, 2, 5), normal(4, seed=1)
    density = stats.norm.logpdf(z.numpy()).sum((1, 2, 3)) + log_det.numpy()
    constant = 0.5 * 3 * 2 * 5 * math.log(2 * math.pi)
    assert nll(z, log_det).numpy() == approx(-density - constant, abs=1e-11)
    assert energy(z).shape == (4, 2, 5)
    assert float(energy(z)[2, 1, 3]) == approx(sum(float(z[2, c, 1, 3]) ** 2 for c in range(3)) / 2)


def test_permutations_follow_torch_s_seed_and_numpy_s_state_does_not_change():
    def drawn(seed):
        with seeded(seed), seeded_permutations():
            return np.random.permutation(50)  # noqa: NPY002

    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_tap_with_one_channel_is_refused():
    with pytest.raises(ParameterError, match=r"^tap 9 of net has 1 channel: an affine coupling splits the channels in two"):
        check_shape((1, 4, 4), "tap 9 of net")
    check_shape((2, 1, 1), "tap 9 of net")


def test_constant_features_are_refused():
    flat = torch.arange(5.0).view(1, 5, 1, 1).expand(3, 5, 2, 2).half().clone()
    with pytest.raises(DataError, match=r"^features of tap 2 are constant over all 3 training images: a flow has"):
        check_spread(flat, "tap 2")
    flat[2, 4, 1, 1] += 1
    check_spread(flat, "tap 2")


def test_channel_moments_equal_numpy_s_and_a_constant_channel_has_deviation_1():
    features = (1000 + 3 * normal(7, 4, 3, 5)).float()
    features[:, 2] = 0.1
    mean, std = channel_moments(features)
    exact = features.double().numpy()
    assert mean.numpy() == approx(exact.mean((0, 2, 3)), rel=1e-6)
    assert std.numpy()[[0, 1, 3]] == approx(exact.std((0, 2, 3))[[0, 1, 3]], rel=1e-6) and float(std[2]) == 1
