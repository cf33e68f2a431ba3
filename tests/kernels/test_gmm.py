"""The mixture's kernel against scikit-learn, finite differences and a loop over components, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import gmm, kernels
from adcore.kernels.gmm import plain_gmm


def random_mixture(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log weights (K,), means (K, d), precision factors (K, d, d) and covariances (K, d, d), with correlations."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(k, dtype=torch.float64, generator=g) + 0.1
    means = 2 * torch.randn(k, d, dtype=torch.float64, generator=g)
    a = torch.randn(k, d, d, dtype=torch.float64, generator=g)
    covariances = a @ a.mT + 0.3 * torch.eye(d, dtype=torch.float64)
    factors = torch.linalg.inv(torch.linalg.cholesky(covariances)).mT     # upper triangular, U U^T = Sigma^-1
    return (weights / weights.sum()).log(), means, factors, covariances


def random_points(n: int, d: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loop(u: Tensor, log_weights: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """One component at a time, with a logarithm only at the end: log-density, and -sum_k Sigma^-1 (u - mu) P(k | u)."""
    joint, pull = [], []
    for log_pi, mu, sigma in zip(log_weights, means, covariances, strict=True):
        away = u - mu
        distance = (away * torch.linalg.solve(sigma, away.T).T).sum(1)
        norm = torch.sqrt((2 * math.pi) ** len(mu) * torch.linalg.det(sigma))
        joint.append(log_pi.exp() * torch.exp(-distance / 2) / norm)
        pull.append(-torch.linalg.solve(sigma, away.T).T)
    total = sum(joint)
    return total.log(), sum(p * (j / total)[:, None] for p, j in zip(pull, joint, strict=True))


def as_sklearn(log_weights: Tensor, means: Tensor, factors: Tensor, covariances: Tensor) -> GaussianMixture:
    model = GaussianMixture(len(means))
    model.weights_, model.means_ = log_weights.exp().numpy(), means.numpy()
    model.covariances_, model.precisions_cholesky_ = covariances.numpy(), factors.numpy()
    return model


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 3, 1), (1, 5, 2), (33, 4, 5), (129, 10, 17)])
def test_log_density_and_responsibilities_are_those_of_scikit_learn(n, k, d):
    *mixture, covariances = random_mixture(k, d)
    u = random_points(n, d)
    density, responsibilities = gmm(u, *mixture)
    model = as_sklearn(*mixture, covariances)
    np.testing.assert_allclose(density, model.score_samples(u.numpy()), rtol=1e-11)
    np.testing.assert_allclose(responsibilities, model.predict_proba(u.numpy()), rtol=1e-9, atol=1e-300)


@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
def test_the_gradient_equals_the_loop_for_any_shape_and_block(n, k, d, seed, chunk_bytes):
    *mixture, covariances = random_mixture(k, d, seed)
    u = random_points(n, d).requires_grad_()
    density, responsibilities = gmm(u, *mixture, chunk_bytes=chunk_bytes)
    expected, pull = by_loop(u, mixture[0], mixture[1], covariances)
    torch.testing.assert_close(density, expected, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 2, n, dtype=torch.float64)
    (ours,) = torch.autograd.grad((density * weight).sum(), u, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), u)[0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours, weight[:, None] * pull.detach(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(responsibilities.sum(1), torch.ones(n, dtype=torch.float64))
    assert not responsibilities.requires_grad


@pytest.mark.parametrize("away", [0.0, 1e4])              # one product for all components; one per component
def test_the_blocks_give_the_density_responsibilities_and_gradient_of_the_plain_code(away):
    *mixture, _ = random_mixture(3, 40)
    mixture[1][0] += away
    u = random_points(30, 40).requires_grad_()
    density, responsibilities, direction = plain_gmm(u, *mixture)
    (by_torch,) = torch.autograd.grad(density.sum(), u)
    torch.testing.assert_close(direction, by_torch, rtol=1e-9, atol=1e-9)                     # Eq. (16) is the gradient
    for choice in ("torch", "plain"):
        with kernels(choice):
            ours, weights = gmm(u, *mixture, chunk_bytes=9000)
        (gradient,) = torch.autograd.grad(ours.sum(), u)
        for found, expected in ((ours, density), (weights, responsibilities), (gradient, direction)):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_gradient_passes_finite_differences():
    *mixture, _ = random_mixture(3, 4)
    assert torch.autograd.gradcheck(lambda u: gmm(u, *mixture, chunk_bytes=200)[0], random_points(9, 4).requires_grad_())


def test_blocks_change_neither_values_nor_gradients():
    *mixture, _ = random_mixture(3, 5)
    u = random_points(50, 5).requires_grad_()
    whole, responsibilities = gmm(u, *mixture)
    (gradient,) = torch.autograd.grad(whole.sum(), u)
    for chunk_bytes in (1, 8 * 3 * 5 * 7, 8 * 3 * 5 * 50):       # one point at a time, seven, all
        density, again = gmm(u, *mixture, chunk_bytes=chunk_bytes)
        for ours, other in ((density, whole), (again, responsibilities), (torch.autograd.grad(density.sum(), u)[0], gradient)):
            torch.testing.assert_close(ours, other, rtol=1e-13, atol=1e-13)


def test_a_transposed_or_strided_input_gives_the_same_as_its_copy():
    *mixture, _ = random_mixture(3, 4)
    base = random_points(8, 22)
    for view in (base.T[:, 1:5], base[::3, 2:10:2]):
        assert not view.is_contiguous()
        u = view.detach().requires_grad_()
        copy = view.contiguous().requires_grad_()
        ours, theirs = gmm(u, *mixture)[0], gmm(copy, *mixture)[0]
        assert torch.equal(ours, theirs)
        assert torch.equal(torch.autograd.grad(ours.sum(), u)[0], torch.autograd.grad(theirs.sum(), copy)[0])


def test_float32_stays_near_float64_though_the_mixture_is_far_from_the_origin():
    log_weights, means, factors, _ = random_mixture(4, 16)
    u = random_points(200, 16) / 3 + 10_000
    exact, _ = gmm(u.float().double(), log_weights, (means + 10_000).float().double(), factors.float().double())
    single, responsibilities = gmm(u.float(), log_weights.float(), (means + 10_000).float(), factors.float())
    assert single.dtype == responsibilities.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("away", [0.0, 1e4])              # one product for all components; one per component
def test_entries_below_the_diagonals_are_ignored(away):
    log_weights, means, factors, _ = random_mixture(3, 70)
    means[0] += away
    u = random_points(20, 70)
    for ours, clean in zip(gmm(u, log_weights, means, factors + torch.ones(70, 70).tril(-1)),
                           gmm(u, log_weights, means, factors), strict=True):
        assert torch.equal(ours, clean)


def test_half_precision_is_computed_in_float32_also_under_autocast():
    *mixture, _ = random_mixture(3, 4)
    u = random_points(20, 4).bfloat16()
    expected = gmm(u.float(), *mixture)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gmm(u, *mixture)[0], expected) and torch.equal(gmm(u.float(), *mixture)[0], expected)


def test_the_log_density_and_its_gradient_are_right_where_the_density_underflows():
    one = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    far = (one + torch.tensor([[1e4, 0]], dtype=torch.float64)).requires_grad_()
    density, responsibilities = gmm(far, torch.zeros(1, dtype=torch.float64), one, torch.eye(2, dtype=torch.float64)[None])
    assert density.item() == pytest.approx(-0.5e8 - math.log(2 * math.pi), rel=1e-14) and responsibilities.item() == 1
    assert torch.autograd.grad(density.sum(), far)[0].tolist() == [[-1e4, 0]]


def test_a_component_that_is_switched_off_changes_nothing():
    log_weights, means, factors, _ = random_mixture(3, 2)
    u = random_points(11, 2)
    off = torch.cat([log_weights, torch.tensor([-math.inf], dtype=torch.float64)])
    density, responsibilities = gmm(u, off, torch.cat([means, u[:1]]), torch.cat([factors, factors[:1]]))
    torch.testing.assert_close(density, gmm(u, log_weights, means, factors)[0])
    assert (responsibilities[:, 3] == 0).all()


def test_without_a_need_for_a_gradient_none_is_prepared():
    *mixture, _ = random_mixture(2, 2)
    u = random_points(5, 2)
    assert not gmm(u, *mixture)[0].requires_grad
    with torch.no_grad():
        assert not gmm(u.requires_grad_(), *mixture)[0].requires_grad


def test_a_second_derivative_is_refused_rather_than_wrong():
    *mixture, _ = random_mixture(2, 2)
    u = random_points(5, 2).requires_grad_()
    (first,) = torch.autograd.grad(gmm(u, *mixture)[0].square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_shapes_that_do_not_fit_together_and_parameters_that_require_gradients_are_refused():
    log_weights, means, factors, _ = random_mixture(3, 4)
    u = random_points(5, 4)
    for wrong in ((u[0], log_weights, means, factors), (u[:, :3], log_weights, means, factors),
                  (u, log_weights[:2], means, factors), (u, log_weights, means, factors[:, :3])):
        with pytest.raises(ParameterError, match=r"are not \(n, d\), \(K,\), \(K, d\), \(K, d, d\)$"):
            gmm(*wrong)
    with pytest.raises(ParameterError, match="no gradient from gmm: detach them"):
        gmm(u, log_weights, means.requires_grad_(), factors)


@pytest.mark.parametrize("away", [0.0, 20.0, 1e4])
def test_components_far_apart_keep_their_digits_in_single_precision(away):
    """Far means are computed differently; in both cases the error is that of float32 inputs relative to their own component."""
    log_weights, means, factors = (x.float() for x in random_mixture(4, 6)[:3])
    means = means + away * torch.arange(4)[:, None]
    u = (means[torch.arange(40) % 4] + random_points(40, 6).float()).requires_grad_()
    exact = u.detach().double().requires_grad_()
    density, responsibilities = gmm(u, log_weights, means, factors)
    wanted, wanted_responsibilities = gmm(exact, log_weights.double(), means.double(), factors.double())
    by_hand = by_loop(exact.detach()[:4], log_weights.double(), means.double(),
                      torch.linalg.inv(factors.double() @ factors.double().mT))
    np.testing.assert_allclose(wanted.detach()[:4], by_hand[0], rtol=1e-6)
    torch.testing.assert_close(density.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(responsibilities.double(), wanted_responsibilities, rtol=0, atol=1e-4)
    slopes = [torch.autograd.grad(value.sum(), at)[0].double() for value, at in ((density, u), (wanted, exact))]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-3)
