"""The losses compared with the printed equations written out, and the outlier filter with a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest import approx
from torch import Tensor

from adcore.errors import ParameterError
from adcore.papers.artola2024.losses import (
    Outliers,
    misclassified,
    negative_gradient,
    negative_loss,
    outlier_filter,
    positive_gradient,
    positive_loss,
)
from adcore.papers.artola2024.mixture import Mixture

numbers = st.floats(-1e4, 1e4, allow_nan=False)


def mixture(d: int = 3, seed: int = 0) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(3, d, d, dtype=torch.float64, generator=g) / 2
    means = 2 * torch.randn(3, d, dtype=torch.float64, generator=g)
    return Mixture.of(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means,
                      a @ a.mT + torch.eye(d, dtype=torch.float64) / 2)


def near(gmm: Mixture, count: int = 40) -> Tensor:
    """Points inside and around a mixture, 1.5 times as far from the origin as its samples."""
    return 1.5 * gmm.sample(count, torch.Generator().manual_seed(1))


def printed(gmm: Mixture, u: Tensor, alpha: float, volume: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P(+|u), P(-|u), dL_pos/du and dL_neg/du of one point, as printed in Eqs. (2), (4), (9), (13) and (16)."""
    terms, pulls = [], []
    for pi, mu, sigma in zip(gmm.weights, gmm.means, gmm.covariances, strict=True):
        precision, away = sigma.inverse(), u - mu
        terms.append(pi * torch.exp(-away @ precision @ away / 2) / torch.sqrt(torch.det(2 * math.pi * sigma)))
        pulls.append(precision @ away)
    density = sum(terms)
    h = -sum(pull * term / density for pull, term in zip(pulls, terms, strict=True))
    positive = (1 - alpha) * density / ((1 - alpha) * density + alpha / volume)
    negative = (alpha / volume) / ((1 - alpha) * density + alpha / volume)
    return positive, negative, -h * negative, h * positive


@pytest.mark.parametrize(("alpha", "volume"), [(0.5, 1e3), (0.1, 50.0), (0.9, 1e6)])
def test_losses_and_gradients_equal_the_printed_equations(alpha, volume):
    gmm, outliers = mixture(), Outliers(math.log(volume), alpha)
    u = near(gmm).requires_grad_()
    logit = outliers.logit(gmm(u))
    pos, neg = positive_loss(logit), negative_loss(logit)
    by_autograd = [torch.autograd.grad(loss.sum(), u, retain_graph=True)[0] for loss in (pos, neg)]
    closed = [gradient(gmm.direction(u), logit) for gradient in (positive_gradient, negative_gradient)]
    assert 5 < int((logit > 0).sum()) < 35                       # points on both sides of the boundary
    for i, point in enumerate(u.detach()):
        p_plus, p_minus, d_pos, d_neg = printed(gmm, point, alpha, volume)
        assert pos[i].item() == approx(-math.log(p_plus), rel=1e-10, abs=1e-10)
        assert neg[i].item() == approx(-math.log(p_minus), rel=1e-10, abs=1e-10)
        assert misclassified(logit[i], True).item() == approx(float(p_minus), rel=1e-10)
        assert misclassified(logit[i], False).item() == approx(float(p_plus), rel=1e-10)
        for found, expected in ((by_autograd[0][i], d_pos), (by_autograd[1][i], d_neg), (closed[0][i], d_pos),
                                (closed[1][i], d_neg)):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_losses_gradients_pass_finite_differences():
    gmm, outliers = mixture(), Outliers(4.0, 0.3)
    for loss in (positive_loss, negative_loss):
        assert torch.autograd.gradcheck(lambda u, loss=loss: loss(outliers.logit(gmm(u))), near(gmm, 12).requires_grad_())


def test_descent_raises_the_density_of_positives_and_lowers_the_density_of_negatives():
    gmm, outliers = mixture(), Outliers(6.0)
    u = near(gmm)
    h, logit = gmm.direction(u), outliers.logit(gmm(u))
    step = 1e-4
    assert (gmm(u - step * positive_gradient(h, logit)) >= gmm(u)).all()
    assert (gmm(u - step * negative_gradient(h, logit)) <= gmm(u)).all()


@given(st.one_of(numbers, st.floats(-40, 40)))  # torch's softplus becomes linear at 20
@example(25.0)
@settings(max_examples=200, deadline=None)
def test_the_losses_are_exact_for_logits_up_to_ten_thousand(x):
    logit = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    pos, neg = positive_loss(logit), negative_loss(logit)
    # softplus by the standard library, which has log1p: max(x, 0) + log(1 + exp(-|x|))
    tail = math.log1p(math.exp(-abs(x)))
    assert pos.item() == approx(max(-x, 0) + tail, rel=1e-14, abs=1e-300)
    assert neg.item() == approx(max(x, 0) + tail, rel=1e-14, abs=1e-300)
    assert neg.item() - pos.item() == approx(x, rel=1e-12, abs=1e-12)
    slopes = [torch.autograd.grad(loss, logit)[0].item() for loss in (pos, neg)]
    assert slopes == approx([-misclassified(logit, True).item(), misclassified(logit, False).item()], rel=1e-12, abs=1e-300)
    assert misclassified(logit, True).item() + misclassified(logit, False).item() == approx(1)


def test_the_logit_is_exact_for_a_volume_that_would_overflow():
    outliers = Outliers(log_volume=2000.0, alpha=0.25)           # L = e^2000
    assert outliers.logit(torch.tensor(-2000.0, dtype=torch.float64)).item() == approx(math.log(3), abs=1e-12)


def test_the_volume_of_the_box_is_the_product_of_the_ranges():
    points = torch.tensor([[0.0, 1.0, -5.0], [2.0, 4.0, 5.0], [1.0, 2.0, 0.0]])
    box = Outliers.around(points, 0.2)
    assert box.log_volume == approx(math.log(2 * 3 * 10), rel=1e-15) and box.alpha == 0.2
    many = torch.rand(50, 300, generator=torch.Generator().manual_seed(0)) * 1e3
    assert Outliers.around(many).log_volume > 710                # exp would overflow


def test_a_box_without_volume_and_invalid_outliers_are_refused():
    with pytest.raises(ParameterError, match="has no volume: all 4 features are equal in dimension 1 and 1 more;"):
        Outliers.around(torch.tensor([[0.0, 1, 2]] * 3 + [[1.0, 1, 2]]))
    with pytest.raises(ParameterError, match="some features are NaN or infinite"):
        Outliers.around(torch.tensor([[0.0, math.nan], [1, 1]]))
    for alpha in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ParameterError, match="must be between 0 and 1"):
            Outliers(1.0, alpha)
    with pytest.raises(ParameterError, match="must be finite"):
        Outliers(math.inf)


# --- the filter ---------------------------------------------------------------------------------------------------------

def filtered_by_hand(logits: list[float], tenths: int) -> list[bool]:
    """Those outside, or the fraction with the lowest likelihood one by one; in whole tenths, so that nothing is rounded."""
    outside = [x < 0 for x in logits]
    if 10 * sum(outside) >= tenths * len(logits):
        return outside
    chosen = [False] * len(logits)
    while 10 * sum(chosen) < tenths * len(logits):
        chosen[min((i for i in range(len(logits)) if not chosen[i]), key=lambda i: logits[i])] = True
    return chosen


@given(st.lists(st.one_of(numbers, st.sampled_from([0.0, 1.0, 2.0])), max_size=60), st.integers(1, 10))
@settings(max_examples=300, deadline=None)
def test_the_filter_equals_the_loop(logits, tenths):
    mask = outlier_filter(torch.tensor(logits, dtype=torch.float64), tenths / 10)
    assert mask.dtype == torch.bool and mask.tolist() == filtered_by_hand(logits, tenths)
    assert int(mask.sum()) >= len(logits) * tenths / 10 - 1e-9


def test_negatives_outside_pass_and_the_boundary_counts_as_inside():
    assert outlier_filter(torch.tensor([-3.0, -1e-9, 0.0, 2.0])).tolist() == [True, True, False, False]


def test_if_all_are_inside_the_tenth_with_the_lowest_likelihood_passes():
    logits = torch.arange(30.0, 0, -1)
    assert outlier_filter(logits).nonzero().flatten().tolist() == [27, 28, 29]
    assert 0.07 * 100 > 7 and int(outlier_filter(torch.arange(1.0, 101), 0.07).sum()) == 7  # the product is rounded up
    assert outlier_filter(logits[:1]).tolist() == [True] and outlier_filter(logits[:0]).tolist() == []


def test_a_negative_that_the_filter_stops_gets_no_gradient():
    gmm, outliers = mixture(), Outliers(6.0)
    u = near(gmm).requires_grad_()
    logit = outliers.logit(gmm(u))
    mask = outlier_filter(logit)
    assert not mask.requires_grad and 0 < int(mask.sum()) < len(mask)
    (gradient,) = torch.autograd.grad(negative_loss(logit[mask]).mean(), u)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any(1).all()


def test_nan_logits_and_fractions_outside_0_to_1_are_refused():
    with pytest.raises(ParameterError, match=r"^1 of 2 logits for the outlier filter are NaN$"):
        outlier_filter(torch.tensor([0.0, math.nan]))
    for fraction in (0.0, 1.1, math.nan):
        with pytest.raises(ParameterError, match="must be above 0 and at most 1"):
            outlier_filter(torch.zeros(3), fraction)
