"""The mixture compared with scikit-learn's and with EM written out, and the properties of online EM."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from adcore.errors import AdcoreError, ParameterError
from adcore.papers.artola2024.mixture import Mixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 300, d: int = 3, centers: int = 3, seed: int = 0) -> Tensor:
    """Correlated blobs, close enough to each other that responsibilities are not 0 or 1."""
    g = generator(seed)
    mix = torch.randn(centers, d, d, dtype=torch.float64, generator=g) / 2 + torch.eye(d, dtype=torch.float64)
    noise = torch.randn(n, d, dtype=torch.float64, generator=g)
    which = torch.arange(n) % centers
    return (noise[:, None] @ mix[which])[:, 0] + 3 * torch.randn(centers, d, dtype=torch.float64, generator=g)[which]


def truth() -> Mixture:
    return Mixture.of(torch.tensor([0.7, 0.3]).double(), torch.tensor([[0.0, 0.0], [6.0, 1.0]]).double(),
                      torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.5, 0.0], [0.0, 2.0]]]).double())


def started(points: Tensor, k: int = 3, **options: object) -> Mixture:
    return Mixture(k, points.shape[1], dtype=torch.float64, **options).start(points)


def em_by_hand(mixture: Mixture, points: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and covariances after one EM step, point by point."""
    weights, means, covariances = (x.double().numpy() for x in (mixture.weights, mixture.means, mixture.covariances))
    n, d = points.shape
    responsibilities = np.zeros((n, len(weights)))
    for i, u in enumerate(points):
        for k in range(len(weights)):
            away = u - means[k]
            responsibilities[i, k] = weights[k] * math.exp(-away @ np.linalg.inv(covariances[k]) @ away / 2) / math.sqrt(
                (2 * math.pi) ** d * np.linalg.det(covariances[k]))
        responsibilities[i] /= responsibilities[i].sum()
    count = responsibilities.sum(0)
    means = responsibilities.T @ points / count[:, None]
    spread = [sum(r * np.outer(u - mu, u - mu) for r, u in zip(responsibilities[:, k], points, strict=True)) / count[k]
              for k, mu in enumerate(means)]
    return count / n, means, np.stack(spread) + ridge * np.eye(d)


def assert_same_parameters(mixture: Mixture, weights: object, means: object, covariances: object, rtol: float = 1e-8) -> None:
    for ours, theirs in ((mixture.weights, weights), (mixture.means, means), (mixture.covariances, covariances)):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-10)


# --- batch EM -----------------------------------------------------------------------------------------------------------

def test_em_steps_equal_scikit_learn_s():
    points = blobs()
    mixture = started(points)
    ridge = 1e-6 * float(points.var(0, correction=0).mean())
    model = GaussianMixture(3, reg_covar=ridge, tol=0, max_iter=4, weights_init=mixture.weights.numpy(),
                            means_init=mixture.means.numpy(), precisions_init=mixture.covariances.inverse().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points.numpy())
    likelihoods = [mixture.em_step(points) for _ in range(4)]
    assert_same_parameters(mixture, model.weights_, model.means_, model.covariances_)
    np.testing.assert_allclose(mixture(points), model.score_samples(points.numpy()), rtol=1e-8)
    assert likelihoods == sorted(likelihoods)


def test_one_step_equals_em_written_out_point_by_point_with_the_ridge():
    points = blobs(60, 2)
    mixture = started(points, floor=1e-2)
    ridge = 1e-2 * float(points.var(0, correction=0).mean())
    expected = em_by_hand(mixture, points.numpy(), ridge)
    mixture.em_step(points)
    assert_same_parameters(mixture, *expected)


def test_the_initialization_equals_scikit_learn_s_from_the_same_clusters():
    points = blobs()
    mixture = started(points, floor=1e-9)
    model = GaussianMixture(3, init_params="kmeans", random_state=0, max_iter=1, reg_covar=1e-9)
    model._initialize_parameters(points.numpy(), np.random.RandomState(0))
    order = [int(((mixture.means.numpy() - mean) ** 2).sum(1).argmin()) for mean in model.means_]
    assert sorted(order) == [0, 1, 2]
    theirs = (x[np.argsort(order)] for x in (model.weights_, model.means_, model.covariances_))
    assert_same_parameters(mixture, *theirs, rtol=1e-6)


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_likelihood_never_falls(seed, k, d):
    points = blobs(80, d, seed=seed)
    mixture = Mixture(k, d, floor=1e-9, dtype=torch.float64)
    gained = mixture.fit(points, most=15, tolerance=-math.inf)
    assert len(gained) == 15 and all(after > before - 1e-6 for before, after in itertools.pairwise(gained))


def test_fit_recovers_the_parameters_that_the_points_were_drawn_from():
    wanted = truth()
    found = Mixture(2, 2)
    found.fit(wanted.sample(20_000, generator()))
    order = found.means[:, 0].argsort()
    torch.testing.assert_close(found.weights[order].double(), wanted.weights, atol=0.02, rtol=0)
    torch.testing.assert_close(found.means[order].double(), wanted.means, atol=0.05, rtol=0)
    torch.testing.assert_close(found.covariances[order].double(), wanted.covariances, atol=0.1, rtol=0)


def test_a_mixture_of_given_parameters_keeps_them_and_its_samples_have_its_moments():
    weights, means = torch.tensor([0.25, 0.75]).double(), torch.tensor([[1.0, 2.0], [-1.0, 0.0]]).double()
    covariances = torch.tensor([[[2.0, -0.5], [-0.5, 1.0]], [[0.3, 0.1], [0.1, 0.4]]]).double()
    mixture = Mixture.of(weights, means, covariances)
    assert_same_parameters(mixture, weights, means, covariances, rtol=1e-12)
    drawn = mixture.sample(40_000, generator())
    torch.testing.assert_close(drawn.mean(0), weights @ means, atol=0.03, rtol=0)
    within = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    mean = weights @ means
    torch.testing.assert_close(drawn.T.cov(), within - torch.outer(mean, mean), atol=0.05, rtol=0)


# --- online EM ----------------------------------------------------------------------------------------------------------

@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 4), st.integers(20, 90))
@settings(max_examples=20, deadline=None)
def test_online_em_with_gamma_one_on_the_whole_set_equals_a_batch_step(seed, k, d, n):
    points = blobs(n, d, seed=seed)
    batch, online = started(points, k), started(points, k)
    online.update(blobs(n, d, seed=seed + 1), 0.3)
    online.load_state_dict({**online.state_dict(), **{x: getattr(batch, x) for x in ("log_weights", "means", "factors")}})
    assert not torch.equal(online.s1, batch.s1)                  # other statistics, which gamma = 1 forgets
    assert online.update(points, 1.0) == approx(batch.em_step(points))
    for name in ("s0", "s1", "s2", "log_weights", "means", "factors"):
        torch.testing.assert_close(getattr(online, name), getattr(batch, name))


def test_a_step_of_online_em_equals_the_update_of_the_statistics_written_out():
    points, batch = blobs(50, 2), blobs(20, 2, seed=3)
    mixture = started(points)
    before = [mixture.s0.clone(), mixture.s1.clone(), mixture.s2.clone()]
    r = mixture.responsibilities(batch)
    mixture.update(batch, 0.2)
    s0 = 0.8 * before[0] + 0.2 * r.mean(0)
    s1 = 0.8 * before[1] + 0.2 * torch.einsum("nk,nd->kd", r, batch) / 20
    s2 = 0.8 * before[2] + 0.2 * torch.einsum("nk,nd,ne->kde", r, batch, batch) / 20
    for ours, expected in zip((mixture.s0, mixture.s1, mixture.s2), (s0, s1, s2), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(mixture.weights, s0)
    torch.testing.assert_close(mixture.means, s1 / s0[:, None])


@given(st.integers(0, 100), st.floats(0.1, 0.5))
@settings(max_examples=10, deadline=None)
def test_online_em_follows_drifting_means_and_a_fixed_mixture_does_not(seed, gamma):
    g, where = generator(seed), torch.tensor([[0.0, 0.0], [8.0, 0.0]])
    def batch(shift: float) -> Tensor:
        return where.repeat(60, 1) + torch.tensor([0.0, shift]) + torch.randn(120, 2, generator=g)
    mixture = Mixture(2, 2).start(batch(0))
    still = Mixture(2, 2)
    still.load_state_dict(mixture.state_dict())
    for step in range(1, 201):
        mixture.update(batch(0.1 * step), gamma)
    # Each step moves the mean by gamma times its distance: in the steady state it lags by about 0.1 (1 - gamma) / gamma.
    lag = 20 - mixture.means[:, 1]
    assert (lag - 0.1 * (1 - gamma) / gamma).abs().max() < 0.9
    assert (mixture.means[:, 0].sort().values - where[:, 0]).abs().max() < 0.9
    assert mixture(batch(20)).mean() > still(batch(20)).mean() + 50


def test_falling_steps_converge_to_the_fit_on_all_points():
    points = truth().sample(4000, generator())
    whole, online, constant = started(points, 2), started(points[:100], 2), started(points[:100], 2)
    for _ in range(30):
        whole.em_step(points)
    for _ in range(10):
        for batch in points[torch.randperm(len(points), generator=generator())].split(50):
            online.update(batch)
            constant.update(batch, 0.5)
    assert int(online.steps) == 800
    off, jumps = (float((mixture(points) - whole(points)).abs().mean()) for mixture in (online, constant))
    assert off < 0.02 < 5 * off < jumps                          # a constant step does not converge


# --- degenerate features and errors -------------------------------------------------------------------------------------

def finite(mixture: Mixture) -> bool:
    return all(bool(x.isfinite().all()) for x in mixture.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [torch.ones(20, 3), torch.ones(20, 3) * 1e4, torch.zeros(4, 3),
                                    torch.cat([torch.zeros(15, 3), torch.ones(15, 3)]), torch.eye(3).repeat(4, 1) * 1e-3])
def test_duplicates_and_flat_features_leave_a_finite_mixture(dtype, points):
    mixture = Mixture(4, 3, dtype=dtype).start(points)
    for _ in range(3):
        mixture.em_step(points)
        mixture.update(points[:2], 0.5)
    assert finite(mixture) and mixture(points.to(dtype)).isfinite().all()


def test_a_component_that_loses_its_points_keeps_its_parameters_and_can_recover():
    g = torch.Generator().manual_seed(0)
    near, far = torch.randn(50, 2, generator=g), torch.randn(50, 2, generator=g) + 60
    mixture = Mixture(2, 2).start(torch.cat([near, far]))
    away = int(mixture.means[:, 0].argmax())
    place, shape = mixture.means[away].clone(), mixture.covariances[away].clone()
    for _ in range(40):
        mixture.update(near, 0.5)                                # its weight halves at each step
    assert finite(mixture) and mixture.weights[away] < 1e-9
    torch.testing.assert_close(mixture.means[away], place)
    mixture.update(near, 1.0)                                    # now its weight is 0
    assert finite(mixture)
    torch.testing.assert_close(mixture.means[away], place)
    torch.testing.assert_close(mixture.covariances[away], shape, rtol=1e-2, atol=1e-3)
    for _ in range(5):
        mixture.update(torch.cat([near, far]), 0.5)
    assert mixture.weights[away] > 0.4


def test_features_with_a_large_offset_keep_their_covariance():
    points = blobs(500, 3) + 1e4
    moved, still = started(points), started(points - 1e4)
    torch.testing.assert_close(moved.covariances.sort(0).values, still.covariances.sort(0).values, rtol=1e-5, atol=1e-6)


def test_the_mixture_takes_no_gradient_and_stores_none():
    points = blobs(40, 2).requires_grad_()
    mixture = started(points.detach())
    mixture.update(points, 0.1)
    mixture.em_step(points)
    assert not list(mixture.parameters()) and not any(x.requires_grad for x in mixture.state_dict().values())
    assert mixture(points).requires_grad and not mixture.responsibilities(points).requires_grad
    h = mixture.direction(points)
    assert not h.requires_grad and points.grad is None
    torch.testing.assert_close(h, torch.autograd.grad(mixture(points).sum(), points)[0])
    with torch.no_grad():
        torch.testing.assert_close(mixture.direction(points), h)


def test_any_leading_shape_works_also_feature_maps():
    points = blobs(24, 3)
    mixture = started(points)
    assert mixture(points.view(2, 3, 4, 3)).shape == (2, 3, 4)
    assert mixture.responsibilities(points.view(2, 12, 3)).shape == (2, 12, 3)
    assert torch.equal(mixture(points.view(2, 3, 4, 3)).flatten(), mixture(points))


def test_a_saved_and_loaded_mixture_continues_identically():
    points = blobs(90, 3).float()
    mixture = Mixture(3, 3).start(points)
    mixture.update(points[:30])
    file = io.BytesIO()
    torch.save(mixture.state_dict(), file)
    file.seek(0)
    other = Mixture(3, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (mixture, other):
        one.update(points[30:60])
        one.update(points[60:])
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in mixture.state_dict().items())
    assert int(other.steps) == 3 and other.s2.dtype == torch.float64 and other.means.dtype == torch.float32


def test_points_and_steps_that_cannot_be_used_are_refused():
    points = blobs(20, 3)
    mixture = Mixture(4, 3, dtype=torch.float64)
    with pytest.raises(AdcoreError, match=r"no components yet: call start\(features\)"):
        mixture(points)
    with pytest.raises(AdcoreError, match="no components yet"):
        mixture.update(points)
    with pytest.raises(ParameterError, match=r"^3 points cannot start 4 components: give at least as many points$"):
        mixture.start(points[:3])
    with pytest.raises(ParameterError, match=r"features \(20, 2\) for a mixture in 3 dimensions"):
        mixture.start(points[:, :2])
    mixture.start(points)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    broken = points.clone()
    broken[7, 1], broken[9, 0] = math.nan, math.inf
    for step in (mixture.start, mixture.em_step, mixture.update):
        with pytest.raises(AdcoreError, match=r"^2 of 20 features for the mixture are NaN or infinite, the first in row 7"):
            step(broken)
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    for gamma in (0, -0.1, 1.5, math.nan):
        with pytest.raises(ParameterError, match="must be above 0 and at most 1"):
            mixture.update(points, gamma)
    with pytest.raises(ParameterError, match="n at least 1"):
        mixture.update(points[:0])
    with pytest.raises(ParameterError, match=r"expected \(\.\.\., 3\)"):
        mixture(points[:, :2])


def test_a_mixture_with_invalid_parameters_is_refused():
    one, eye = torch.ones(1), torch.eye(2)[None]
    for make in (lambda: Mixture(0, 2), lambda: Mixture(2, 0), lambda: Mixture(2, 2, exponent=0.5),
                 lambda: Mixture(2, 2, floor=0),
                 lambda: Mixture.of(one / 2, torch.zeros(1, 2), eye), lambda: Mixture.of(one, torch.zeros(1, 2), -eye)):
        with pytest.raises(ParameterError):
            make()
