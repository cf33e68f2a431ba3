"""Color transport compared with the POT library, with results by hand, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from support.color_images import few, gray, images, plain, seeds
from torch import Tensor
from torch.testing import assert_close

from adcore.papers.artola2024.color import TRANSPORTS, ColorMoments, chroma, color_map, color_moments, pool, transport

MK = "monge_kantorovich"
each_method = pytest.mark.parametrize("method", TRANSPORTS)


def moments_by_numpy(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    pixels = image.double().reshape(3, -1).numpy()
    return pixels.mean(1), np.cov(pixels, bias=True)


fractions = st.floats(0, 1)
sides = st.integers(4, 12)


# --- moments ------------------------------------------------------------------------------------------------------------

@given(seeds, sides, sides)
@few
def test_moments_equal_numpys_mean_and_population_covariance(seed, h, w):
    batch = images(seed, batch=3, size=(h, w))
    found = color_moments(batch)
    for b in range(3):
        mean, covariance = moments_by_numpy(batch[b])
        assert found.mean[b].numpy() == approx(mean, abs=1e-12)
        assert found.covariance[b].numpy() == approx(covariance, abs=1e-12)
    assert found.pixels.tolist() == [h * w] * 3


def test_a_small_variance_next_to_a_large_mean_keeps_its_digits_in_float32():
    """Plain sums of squares in float32 would keep two digits of a variance of 1e-6 next to a mean of 0.9."""
    image = 0.9 + 1e-3 * images(0, size=(64, 64))
    exact = moments_by_numpy(image[0].float())[1]
    assert color_moments(image.float()).covariance[0].numpy() == approx(exact, rel=1e-4)


def test_only_pixels_inside_the_mask_count_even_if_the_others_are_nan():
    image = images(1, batch=2, size=(6, 5))
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[0, 2:5, 1:4], mask[1, 0, 0] = True, True
    dirty = torch.where(mask[:, None], image, torch.nan)
    found = color_moments(dirty, mask)
    alone = color_moments(image[:1, :, 2:5, 1:4])
    for part, expected in ((found.mean[0], alone.mean[0]), (found.covariance[0], alone.covariance[0]),
                           (found.mean[1], image[1, :, 0, 0]), (found.covariance[1], torch.zeros(3, 3, dtype=torch.float64))):
        assert_close(part, expected)
    assert found.pixels.tolist() == [9, 1]


@given(seeds, st.integers(1, 5))
@few
def test_pooled_moments_are_the_moments_of_all_pixels_together(seed, batch):
    several, other = images(seed, batch, size=(4, 5)), images(seed + 1, 2, size=(7, 3))
    found = pool([color_moments(several), color_moments(other)])
    pixels = torch.cat([several.permute(1, 0, 2, 3).flatten(1), other.permute(1, 0, 2, 3).flatten(1)], dim=1)
    mean, covariance = moments_by_numpy(pixels)
    assert found.mean.numpy() == approx(mean) and found.covariance.numpy() == approx(covariance)
    assert int(found.pixels) == pixels.shape[1]


# --- the map ------------------------------------------------------------------------------------------------------------

@given(seeds)
@few
def test_the_map_equals_the_one_of_pot(seed):
    gaussian = pytest.importorskip("ot.gaussian")
    u, v = images(seed), images(seed + 1, size=(5, 8))
    (mu, Su), (nu, Sv) = moments_by_numpy(u[0]), moments_by_numpy(v[0])
    A, b = gaussian.bures_wasserstein_mapping(mu, nu, Su, Sv)
    expected = (u[0].reshape(3, -1).T.numpy() @ A + b).T
    assert transport(u, v)[0].reshape(3, -1).numpy() == approx(expected, abs=1e-6)


@given(seeds, st.floats(0.05, 0.95))
@few
def test_interpolated_images_have_the_moments_of_pots_barycenter(seed, rho):
    gaussian = pytest.importorskip("ot.gaussian")
    u, v = images(seed), images(seed + 1, size=(5, 8))
    means, covariances = (np.stack(parts) for parts in zip(moments_by_numpy(u[0]), moments_by_numpy(v[0]), strict=True))
    weights = np.array([1 - rho, rho])
    mean, covariance = gaussian.bures_wasserstein_barycenter(means, covariances, weights=weights, num_iter=2000, eps=1e-12)
    found = color_moments(transport(u, v, rho=rho))
    assert found.mean[0].numpy() == approx(mean, abs=1e-8) and found.covariance[0].numpy() == approx(covariance, abs=1e-6)


@given(seeds)
@few
def test_monge_kantorovich_reaches_the_whole_covariance_and_diagonal_only_the_variances(seed):
    u, v = images(seed), images(seed + 1, size=(6, 10))
    goal = color_moments(v)
    full, scaled = (color_moments(transport(u, v, method)) for method in (MK, "diagonal"))
    assert_close(full.mean, goal.mean, atol=1e-9, rtol=0)
    assert_close(full.covariance, goal.covariance, atol=1e-6, rtol=0)
    assert_close(scaled.mean, goal.mean, atol=1e-9, rtol=0)
    assert_close(scaled.covariance.diagonal(dim1=1, dim2=2), goal.covariance.diagonal(dim1=1, dim2=2), atol=1e-9, rtol=0)
    assert (scaled.covariance - goal.covariance).abs().max() > 1e-4


@each_method
@given(seeds)
@few
def test_the_map_is_symmetric_and_positive_semidefinite_also_for_targets_without_full_rank(method, seed):
    for target, rank in ((images(seed + 1), 3), (gray(seed + 1), 1), (plain(0.2, 0.4, 0.6), 0)):
        T = color_map(color_moments(images(seed)), color_moments(target), method)[0]
        values = torch.linalg.eigvalsh(T)
        assert_close(T, T.mT, atol=1e-9, rtol=1e-9)
        assert values.min() > (1e-6 if rank == 3 else -1e-9)
        if method == MK:
            assert int((values > 1e-6).sum()) == rank


def test_both_methods_scale_uncorrelated_channels_by_the_ratio_of_standard_deviations():
    def of(*deviations: float) -> ColorMoments:
        return ColorMoments(torch.zeros(3), torch.diag(torch.tensor(deviations) ** 2), torch.tensor(1.0))
    for method in TRANSPORTS:
        T = color_map(of(0.1, 0.2, 0.4), of(0.3, 0.1, 0.4), method)
        assert_close(T, torch.diag(torch.tensor([3, 0.5, 1.0], dtype=torch.float64)), atol=1e-5, rtol=0)


def test_monge_kantorovich_moves_colors_less_than_other_maps_to_the_same_gaussian():
    u, v = images(3), images(4)
    moved = transport(u, v)
    nearest = (moved - u).square().sum()
    mean, covariance = color_moments(moved).mean[0], color_moments(moved).covariance[0]
    root = torch.linalg.cholesky(covariance)
    for seed in range(5):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
        turned = root @ turn @ torch.linalg.inv(root) @ (moved[0].flatten(1) - mean[:, None]) + mean[:, None]
        assert_close(torch.cov(turned, correction=0), covariance, atol=1e-9, rtol=0)
        assert (turned.reshape(u.shape) - u).square().sum() > nearest


# --- interpolation ------------------------------------------------------------------------------------------------------

@each_method
@given(seeds)
@few
def test_rho_0_returns_the_image_and_rho_one_half_the_mean_of_image_and_transport(method, seed):
    u, v = images(seed, batch=2), images(seed + 1, batch=2, size=(4, 6))
    assert_close(transport(u, v, method, rho=0), u, atol=1e-12, rtol=0)
    assert_close(transport(u, v, method, rho=0.5), (u + transport(u, v, method)) / 2, atol=1e-12, rtol=0)


@given(seeds, fractions, fractions)
@few
def test_two_interpolations_in_a_row_equal_one(seed, first, second):
    u, v = images(seed), images(seed + 1)
    both = first + (1 - first) * second
    assert_close(transport(transport(u, v, rho=first), v, rho=second), transport(u, v, rho=both), atol=1e-6, rtol=0)


def test_each_image_may_have_its_own_rho():
    u, v = images(0, batch=3), images(1)
    found = transport(u, v, rho=torch.tensor([0.0, 0.3, 1.0]))
    for b, rho in enumerate((0.0, 0.3, 1.0)):
        assert_close(found[b:b + 1], transport(u[b:b + 1], v, rho=rho), atol=1e-7, rtol=0)


# --- gray and single colors --------------------------------------------------------------------------------------------

@given(seeds)
@few
def test_a_gray_target_makes_the_image_gray_by_monge_kantorovich_and_not_by_diagonal(seed):
    u, v = images(seed), gray(seed + 1)
    assert transport(u, v)[0].diff(dim=0).abs().max() < 1e-7
    assert transport(u, v, "diagonal")[0].diff(dim=0).abs().max() > 1e-2


@given(seeds)
@few
def test_a_gray_target_leaves_no_color_in_a_source_that_is_nearly_gray_itself(seed):
    """The source's inverse is large and would turn rounding errors of the target's two zero eigenvalues into color."""
    u = gray(seed, size=(9, 7)) + 0.01 * images(seed + 1)
    assert transport(u, gray(seed + 2))[0].diff(dim=0).abs().max() < 1e-10


@given(seeds)
@few
def test_a_gray_target_gives_the_mean_of_the_channels_with_the_targets_mean_and_deviation(seed):
    """T is symmetric, has rank one and maps to the line R=G=B, so T = c 1 1^T for every source."""
    u, v = images(seed), gray(seed + 1)
    mean = u.mean(1)
    expected = (mean - mean.mean()) / mean.std(correction=0) * v.std(correction=0) + v.mean()
    assert_close(transport(u, v), expected[:, None].expand(-1, 3, -1, -1), atol=1e-7, rtol=0)


@given(seeds, fractions)
@few
def test_with_a_gray_target_chroma_decreases_linearly_in_rho(seed, rho):
    u, v = images(seed), gray(seed + 1)
    assert_close(chroma(transport(u, v, rho=rho)), (1 - rho) * chroma(u), atol=1e-6, rtol=0)


@given(seeds)
@few
def test_the_color_left_by_diagonal_transport_follows_from_the_channels_correlations(seed):
    """E (R - G)^2 = 2 s^2 (1 - corr(R, G)) when both have the gray target's standard deviation s and mean."""
    u, v = images(seed), gray(seed + 1)
    moved = transport(u, v, "diagonal")[0].flatten(1)
    correlation = np.corrcoef(u[0].flatten(1).numpy())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = 2 * float(v.var(correction=0)) * (1 - correlation[a, b])
        assert float((moved[a] - moved[b]).square().mean()) == approx(expected, abs=1e-7)


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_colored_target_gives_that_color(method, dtype):
    u = images(0, batch=2, dtype=dtype)
    assert_close(transport(u, plain(0.2, 0.4, 0.6, dtype=dtype), method), plain(0.2, 0.4, 0.6, size=(9, 7), dtype=dtype).expand(
        2, -1, -1, -1), atol=1e-6, rtol=0)


@each_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_single_colored_source_becomes_the_targets_mean_color(method, dtype):
    v = images(0)
    found = transport(plain(0.3, 0.6, 0.1, dtype=dtype), v, method)
    assert_close(found, v.mean((2, 3), keepdim=True).expand_as(found), atol=1e-3 if dtype == torch.float16 else 1e-6, rtol=0,
                 check_dtype=False)


@each_method
def test_rounding_noise_is_not_stretched_to_the_targets_spread(method):
    generator = torch.Generator().manual_seed(0)
    noise = 1e-7 * torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    found = transport(plain(0.3, 0.6, 0.1, size=(16, 16)) + noise, images(0), method)
    assert found.std((2, 3)).max() < 1e-3
    assert images(0).std((2, 3)).max() > 0.05


@each_method
def test_variances_of_the_source_are_raised_to_a_millionth_of_their_sum_and_to_that_of_a_deviation_of_1e_4(method):
    def scales(source: tuple[float, float, float]) -> list[float]:
        """How much each channel is stretched, for uncorrelated channels and a target of variance 0.01 in each."""
        def of(*variances: float) -> ColorMoments:
            return ColorMoments(torch.zeros(3), torch.diag(torch.tensor(variances, dtype=torch.float64)), torch.tensor(1.0))
        return color_map(of(*source), of(0.01, 0.01, 0.01), method).diagonal().tolist()

    # The sum is 0.05: 5e-8 is the least variance. One just above it is used as it is.
    assert scales((0.05, 1e-12, 1e-12)) == approx([0.1 / 0.05**0.5, 0.1 / 5e-8**0.5, 0.1 / 5e-8**0.5], rel=1e-6)
    assert scales((0.05, 6e-8, 0.0))[1:] == approx([0.1 / 6e-8**0.5, 0.1 / 5e-8**0.5], rel=1e-5)
    # The sum is 1e-6, whose millionth is below 1e-8.
    assert scales((1e-6, 2e-8, 1e-9)) == approx([0.1 / 1e-3, 0.1 / 2e-8**0.5, 0.1 / 1e-4], rel=1e-6)
    assert scales((0.0, 0.0, 0.0)) == approx([0.1 / 1e-4] * 3, rel=1e-6)


def test_a_weak_direction_of_the_target_is_kept_and_rounding_of_a_zero_one_is_not():
    """Eigenvalues of a target below 1e-14 of the largest are rounding errors of zero; larger ones count."""
    def along(variance: float) -> float:
        source = ColorMoments(torch.zeros(3), 0.01 * torch.eye(3, dtype=torch.float64), torch.tensor(1.0))
        target = torch.diag(torch.tensor([0.04, 0.04, variance], dtype=torch.float64))
        return float(color_map(source, ColorMoments(torch.zeros(3), target, torch.tensor(1.0)))[2, 2])

    assert along(0.04 * 1e-12) == approx(2e-6, rel=1e-3)
    assert along(0.04 * 1e-15) == 0


def test_a_gray_source_is_mapped_as_the_limit_of_full_rank_sources():
    """A line of colors with direction d becomes a line with direction Sv d / sqrt(d^T Sv d), up to the root of the floor."""
    u, v = gray(0), images(1)
    Sv = color_moments(v).covariance[0]
    d = torch.ones(3, dtype=torch.float64) / 3**0.5
    along = Sv @ d / (d @ Sv @ d).sqrt()
    position = (u[0, 0] - u[0, 0].mean()) / u[0, 0].std(correction=0)
    expected = v.mean((2, 3))[0][:, None, None] + along[:, None, None] * position
    assert_close(transport(u, v)[0], expected, atol=1e-3, rtol=0)


# --- batches, numbers and gradients -------------------------------------------------------------------------------------

@each_method
def test_a_batch_gives_the_same_as_a_loop_over_its_images(method):
    u, v = images(0, batch=4), images(1, batch=4, size=(5, 3))
    targets = color_moments(v)
    for found in (transport(u, v, method, rho=0.7), transport(u, targets, method, rho=0.7)):
        for b in range(4):
            assert_close(found[b:b + 1], transport(u[b:b + 1], v[b:b + 1], method, rho=0.7), atol=1e-12, rtol=0)
    chosen = torch.tensor([2, 0, 0, 3])
    assert_close(transport(u, targets[chosen], method), transport(u, v[chosen], method), atol=1e-12, rtol=0)
    for one in (v[1:2], targets[1:2], targets[1]):
        assert_close(transport(u, one, method), transport(u, v[1:2].expand(4, -1, -1, -1), method), atol=1e-12, rtol=0)


@each_method
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near_float64_and_keeps_its_dtype(method, dtype, error):
    u, v = images(0, batch=2, size=(256, 256)), images(5, size=(200, 100))
    found = transport(u.to(dtype), v.to(dtype), method)
    assert found.dtype == dtype
    assert (found.double() - transport(u, v, method)).abs().max() < error


def test_a_gray_target_leaves_no_visible_color_in_float32():
    found = transport(images(0, size=(256, 256), dtype=torch.float32), gray(1, size=(99, 101), dtype=torch.float32))
    assert found[0].diff(dim=0).abs().max() < 1e-5


def test_autocast_does_not_change_the_result():
    u, v = images(0, dtype=torch.float32), images(1, dtype=torch.float32)
    alone = transport(u, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transport(u, v), alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_method
def test_a_gpu_gives_the_same_as_the_cpu_also_for_a_target_on_another_device(method):
    u, v = images(0, batch=2), images(1, size=(5, 8))
    for target in (v, v.cuda(), color_moments(v)):
        assert_close(transport(u.cuda(), target, method).cpu(), transport(u, v, method), atol=1e-9, rtol=0)


@each_method
def test_the_gradient_equals_finite_differences(method):
    u, v = images(0, size=(3, 4)).requires_grad_(), images(1, size=(3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: transport(a, b, method, rho=0.8), (u, v))


@each_method
def test_gradients_are_finite_for_gray_and_single_colored_images(method):
    for u in (images(0), gray(1), plain(0.1, 0.2, 0.3)):
        for v in (images(2), gray(3), plain(0.5, 0.5, 0.5)):
            a, b = u.clone().requires_grad_(), v.clone().requires_grad_()
            transport(a, b, method, rho=0.9).square().sum().backward()
            assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()


def test_values_are_clipped_only_on_request():
    u, v = images(0), plain(0.95, 0.5, 0.05) + 0.4 * (images(1, size=(5, 6)) - 0.5)
    free = transport(u, v)
    assert free.min() < 0 and free.max() > 1
    assert torch.equal(transport(u, v, clip=True), free.clamp(0, 1))


def test_chroma_is_the_largest_channel_minus_the_smallest_averaged():
    pixels = torch.tensor([[0.2, 0.5, 0.1], [0.3, 0.3, 0.3]]).T[None, :, None]           # (1, 3, 1, 2)
    assert_close(chroma(pixels), torch.tensor([(0.4 + 0) / 2]))
    assert chroma(gray(0)) == 0
