"""The Gaussian density, against scikit-learn's PCA and Ledoit-Wolf shrinkage and scipy's Mahalanobis distance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from torch import Tensor, nn

from adcore.errors import AdcoreError, ParameterError
from adcore.features import patch_features, patch_grid
from adcore.papers.ds2.gaussian import GaussianDensity, ledoit_wolf, principal_axes, published_dims
from adcore.papers.ds2.upsampling import receptive_upsample
from adcore.training import seeded


def clouds(n: int, positions: int, dim: int, seed: int = 0, *, offset: float = 3.0, falls: float = 1e-2) -> Tensor:
    """(n, N, D) float64: at each position a cloud of its own, far from zero. Its standard deviations fall to `falls`."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.randn(positions, dim, dim, generator=g, dtype=torch.float64)
    spread *= torch.logspace(0, np.log10(falls), dim, dtype=torch.float64)
    points = torch.randn(n, positions, dim, generator=g, dtype=torch.float64)
    return torch.einsum("npd,ped->npe", points, spread) + offset * torch.randn(positions, dim, generator=g, dtype=torch.float64)


def distances_by_hand(train: np.ndarray, test: np.ndarray, dims: int) -> tuple[list[float], float]:
    """Distances of points (m, D) to a cloud (n, D), and the shrinkage, computed with other libraries."""
    pca = PCA(dims, svd_solver="full").fit(train)
    gauss = LedoitWolf().fit(pca.transform(train))
    inverse = np.linalg.inv(gauss.covariance_)
    return [mahalanobis(z, gauss.location_, inverse) for z in pca.transform(test)], gauss.shrinkage_


def exact(dims: int | None, **settings: object) -> GaussianDensity:
    return GaussianDensity(dims, dtype=torch.float64, **settings)


# A Gaussian at each position.

@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(3, 30), st.integers(1, 5), st.integers(1, 24), st.integers(1, 6), st.integers(0, 9))
def test_the_distance_at_each_position_is_that_of_sklearn_and_scipy(data, n, positions, dim, m, seed):
    dims = data.draw(st.integers(1, min(n - 1, dim)))
    both = clouds(n + m, positions, dim, seed)
    train, test = both[:n], both[n:]
    density = exact(dims).fit(train)
    found = density.score(test)
    assert found.shape == (m, positions) and found.dtype == torch.float64
    for j in range(positions):
        expected, shrinkage = distances_by_hand(train[:, j].numpy(), test[:, j].numpy(), dims)
        assert found[:, j].tolist() == approx(expected, rel=1e-6, abs=1e-9)
        assert float(density.shrinkage[j]) == approx(shrinkage, abs=1e-9)


@pytest.mark.parametrize(("n", "dim", "dims"), [(60, 128, 50), (60, 128, 59), (90, 40, 40), (220, 256, 200)])
def test_this_holds_at_the_sizes_of_an_evaluation_and_for_deviations_over_four_decades(n, dim, dims):
    both = clouds(n + 5, 2, dim, falls=1e-4)
    found = exact(dims).fit(both[:n]).score(both[n:])
    for j in range(2):
        expected, _ = distances_by_hand(both[:n, j].numpy(), both[n:, j].numpy(), dims)
        assert found[:, j].tolist() == approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "dim"), [(12, 30), (30, 12)])
def test_the_axes_are_sklearn_s_principal_components_up_to_sign(n, dim):
    train = clouds(n, 3, dim)
    mean, variances, axes = principal_axes(train.transpose(0, 1), 6)
    for j in range(3):
        pca = PCA(6, svd_solver="full").fit(train[:, j].numpy())
        assert mean[j].numpy() == approx(pca.mean_)
        assert variances[j].numpy() * n / (n - 1) == approx(pca.explained_variance_)
        assert np.abs(pca.components_ @ axes[j].numpy()) == approx(np.eye(6), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 9))
def test_shrinkage_along_the_principal_axes_is_sklearn_s_shrinkage_of_the_points(n, dim, seed):
    x = clouds(n, 1, dim, seed)[:, 0]
    centered = x - x.mean(0)
    variances = torch.linalg.eigvalsh(centered.T @ centered / n)[None]
    found = ledoit_wolf(variances, centered.square().sum(1).square().mean()[None], n)
    assert float(found) == approx(ledoit_wolf_shrinkage(x.numpy()) if dim > 1 else 0.0, abs=1e-9)


def test_in_one_dimension_there_is_no_shrinkage_and_the_distance_counts_standard_deviations():
    train = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64).reshape(4, 1, 1)
    density = exact(1).fit(train)
    assert float(density.shrinkage) == 0
    assert float(density.score(torch.full((1, 1, 1), 8.0))) == approx(5 / np.std([1, 2, 3, 6]))


# One Gaussian for all positions.

@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 9), st.integers(1, 6), st.integers(1, 10), st.integers(1, 4), st.integers(0, 9))
def test_one_gaussian_over_all_patches_is_that_of_sklearn(data, n, positions, dim, m, seed):
    dims = data.draw(st.integers(1, min(n * positions - 1, dim)))
    both = clouds(n + m, positions, dim, seed)
    train, test = both[:n].flatten(0, 1), both[n:].flatten(0, 1)
    density = exact(dims, aligned=False).fit(both[:n])
    expected, shrinkage = distances_by_hand(train.numpy(), test.numpy(), dims)
    assert density.score(both[n:]).flatten().tolist() == approx(expected, rel=1e-5, abs=1e-8)
    assert float(density.shrinkage) == approx(shrinkage, abs=1e-9)


@pytest.mark.parametrize("parts", [[30], [1] * 30, [7, 7, 7, 7, 2]])
@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**28])
def test_the_result_does_not_depend_on_the_portions(parts, chunk_bytes):
    both = clouds(34, 9, 14)
    whole = exact(10, aligned=False).fit(both[:30])
    streamed = exact(10, aligned=False, chunk_bytes=chunk_bytes).fit(lambda: iter(both[:30].split(parts)))
    assert float(streamed.shrinkage) == approx(float(whole.shrinkage), rel=1e-10) and float(whole.shrinkage) > 0.001
    assert streamed.score(both[30:]).numpy() == approx(whole.score(both[30:]).numpy(), rel=1e-9)


def test_features_far_from_zero_lose_no_precision():
    both = clouds(40, 5, 8)
    near = exact(8, aligned=False).fit(both[:30]).score(both[30:])
    far = exact(8, aligned=False).fit(both[:30] + 1e5).score(both[30:] + 1e5)
    assert far.numpy() == approx(near.numpy(), rel=1e-6)


def test_with_one_position_both_kinds_are_the_same():
    both = clouds(40, 1, 9)
    aligned, pooled = (exact(7, aligned=flag).fit(both[:30]) for flag in (True, False))
    assert pooled.score(both[30:]).numpy() == approx(aligned.score(both[30:]).numpy(), rel=1e-9)
    assert pooled.score(both[30:].expand(-1, 4, -1)).numpy() == approx(aligned.score(both[30:]).expand(-1, 4).numpy(), rel=1e-9)


# Chunks, precision, saving.

@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(12, 7, 20), (25, 7, 6)])
def test_the_size_of_chunks_does_not_change_the_result(aligned, shape):
    train, test = clouds(*shape), clouds(3, *shape[1:], seed=1)
    results = [exact(5, aligned=aligned, chunk_bytes=size).fit(train).score(test) for size in (1, 20_000, 50_000, 2**28)]
    for other in results[1:]:
        assert other.numpy() == approx(results[0].numpy(), rel=1e-9)


def test_chunk_bytes_limits_the_positions_per_eigendecomposition(monkeypatch):
    seen: list[int] = []
    algebra = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (seen.append(len(x)), algebra(x))[1])
    train = clouds(20, 50, 30)
    exact(8).fit(train)
    assert seen == [50]
    seen.clear()
    exact(8, chunk_bytes=8 * 3900 * 16).fit(train)  # 4 x 20 x 30 features, 3 x 20 x 20 products, 30 x 8 axes: 3840 a position
    assert seen == [16, 16, 16, 2]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_may_be_in_half_precision_and_scores_are_float32_by_default(aligned, dtype):
    both = torch.nn.functional.normalize(clouds(70, 4, 64), dim=2).to(dtype)
    density = GaussianDensity(40, aligned=aligned).fit(both[:60])
    found = density.score(both[60:])
    assert found.dtype == torch.float32 == density.axes.dtype
    reference = exact(40, aligned=aligned).fit(both[:60].double()).score(both[60:].double())
    assert found.numpy() == approx(reference.numpy(), rel=1e-3)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_fitted_density_can_be_saved_and_loaded_within_a_module(aligned, tmp_path):
    both = clouds(30, 4, 9)
    density = GaussianDensity(5, aligned=aligned).fit(both[:25])
    torch.save(nn.Sequential(density).state_dict(), tmp_path / "density.pt")
    other = nn.Sequential(GaussianDensity(5, aligned=aligned))
    other.load_state_dict(torch.load(tmp_path / "density.pt", weights_only=True))
    assert torch.equal(other[0].score(both[25:]), density.score(both[25:])) and other[0].fitted
    unfitted = GaussianDensity()
    unfitted.load_state_dict(GaussianDensity().state_dict())
    assert not unfitted.fitted


def test_features_may_be_memory_mapped(tmp_path: Path):
    both = clouds(30, 4, 9).float()
    np.save(tmp_path / "features.npy", both.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "features.npy", mmap_mode="r+"))
    for aligned in (True, False):
        one, two = (GaussianDensity(5, aligned=aligned).fit(features) for features in (both, mapped))
        assert torch.equal(one.score(both), two.score(both))


# With patches of images.

@pytest.mark.parametrize(("aligned", "dims"), [(True, 12), (False, 24)])
def test_the_map_is_highest_at_an_anomalous_square(aligned, dims):
    with seeded(0):
        encoder = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1)).eval()
        texture = torch.rand(1, 3, 64, 80)
        images = (0.8 * texture if aligned else 0) + 0.2 * torch.rand(30, 3, 64, 80)
    images[29, :, 40:52, 8:20] = 0.5
    features = patch_features(encoder, images, patch=16, stride=4)
    scores = GaussianDensity(dims, aligned=aligned).fit(features[:25]).score(features[25:])
    maps = receptive_upsample(scores.unflatten(1, patch_grid((64, 80), 16, 4)), 16, 4, normalized=True)
    assert maps.shape == (5, 64, 80)
    y, x = divmod(int(maps[4].argmax()), 80)
    assert 40 <= y < 52 and 8 <= x < 20 and maps[4].max() > 1.5 * maps[:4].max()


# Limits.

def test_dims_are_those_of_the_published_evaluation_unless_the_patches_span_fewer():
    assert [published_dims(n, aligned=True) for n in (391, 209, 201, 200, 60)] == [200, 200, 200, 50, 50]
    assert published_dims(60, aligned=False) == 500
    assert GaussianDensity().fit(clouds(60, 1, 64)).axes.shape == (1, 64, 50)
    assert GaussianDensity().fit(clouds(20, 2, 64)).axes.shape == (2, 64, 19)
    assert GaussianDensity().fit(clouds(60, 1, 30)).axes.shape == (1, 30, 30)
    assert GaussianDensity(aligned=False).fit(clouds(20, 2, 64)).axes.shape == (1, 64, 39)


@pytest.mark.parametrize(("aligned", "where", "most"), [(True, " at each position", 5), (False, "", 11)])
def test_more_dims_than_the_patches_span_are_refused(aligned, where, most):
    features = clouds(6, 2, 20)
    GaussianDensity(most, aligned=aligned).fit(features)
    with pytest.raises(ParameterError, match=rf"^a Gaussian density in {most + 1} dims of {most + 1} patches in 20 dimensions"
                                             rf"{where}: they span at most {most}; lower dims or give more images$"):
        GaussianDensity(most + 1, aligned=aligned).fit(features)
    with pytest.raises(ParameterError, match="they span at most 4"):
        GaussianDensity(5, aligned=aligned).fit(clouds(30, 2, 4))
    with pytest.raises(ParameterError, match="of 1 patches in 20 dimensions"):
        GaussianDensity(aligned=aligned).fit(features[:1, :1])


def test_a_constant_position_scores_0_and_does_not_change_the_others():
    for dim in (6, 40):
        train = clouds(20, 3, dim, offset=0.3).float()
        train[:, 1] = train[0, 1]
        density = GaussianDensity(5).fit(train)
        scores, alone = density.score(train + 1), GaussianDensity(5).fit(train[:, ::2]).score(train[:, ::2] + 1)
        assert (scores[:, 1] == 0).all() and torch.equal(scores[:, ::2], alone) and (alone > 0).all()


@pytest.mark.parametrize("dim", [6, 40])
def test_directions_without_variance_are_ignored(dim):
    """Ten images, five of them copies: they span four directions, and five are asked for."""
    train = clouds(5, 2, dim).repeat(2, 1, 1)
    density = exact(5).fit(train)
    assert ((density.variances > 0).sum(1) == 4).all() and density.score(train).isfinite().all()
    assert density.axes[:, :, 4].abs().max() == 0


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_error_names_image_and_position_of_features_that_are_not_finite(aligned, value):
    train = clouds(12, 6, 5)
    density = GaussianDensity(4, aligned=aligned, chunk_bytes=2000).fit(train)
    bad = train.clone()
    bad[9, 4, 2] = value
    says = (r"^features for the Gaussian density hold NaN or infinity, first in image 9 at position 4: look for a diverging "
            r"network or a division by zero$")
    for call in (GaussianDensity(4, aligned=aligned, chunk_bytes=2000).fit, density.score):
        with pytest.raises(AdcoreError, match=says):
            call(bad)


def test_wrong_shapes_and_a_missing_fit_are_refused():
    train = clouds(12, 6, 5)
    with pytest.raises(AdcoreError, match=r"^the Gaussian density has no mean yet: call fit\(features\) first$"):
        GaussianDensity().score(train)
    for features in (train[0], train[:0], train[:, :0]):
        with pytest.raises(ParameterError, match=r"for a Gaussian density: expected \(n, N, D\), none of them 0$"):
            GaussianDensity().fit(features)
    density = GaussianDensity(3).fit(train)
    for features in (train[:, :5], train[:, :, :4]):
        with pytest.raises(ParameterError, match=r"for a Gaussian density of \(n, 6, 5\): give as many positions and dim"):
            density.score(features)
    with pytest.raises(ParameterError, match=r"for a Gaussian density of \(n, N, 5\)"):
        GaussianDensity(3, aligned=False).fit(train).score(train[:, :, :4])
    with pytest.raises(ParameterError, match=r"^dims 0 and chunk_bytes 67108864 of a Gaussian density must be at least 1$"):
        GaussianDensity(0)


def test_a_stream_needs_a_shared_gaussian_and_must_yield_the_same_twice():
    train = clouds(12, 6, 5)
    with pytest.raises(ParameterError, match=r"^a Gaussian at every position needs the features of all images at once"):
        GaussianDensity(3).fit(lambda: [train])
    once: Iterator[Tensor] = iter([train])
    with pytest.raises(ParameterError, match="gave 72 patches and then 0: it must yield the same ones each time"):
        GaussianDensity(3, aligned=False).fit(lambda: once)
    with pytest.raises(ParameterError, match="of no features: the function must yield some"):
        GaussianDensity(3, aligned=False).fit(lambda: [])
    with pytest.raises(ParameterError, match=r"^features \(12, 6, 4\) after others of 5 dimensions: they must agree$"):
        GaussianDensity(3, aligned=False).fit(lambda: [train, train[:, :, :4]])


def test_fitting_leaves_no_gradient():
    train = clouds(12, 2, 5).requires_grad_()
    assert not GaussianDensity(3).fit(train).score(train).requires_grad
