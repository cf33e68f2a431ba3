"""What color transport and contrastive fine-tuning compute, written a second time as slow loops in plain Python.

Each test has three parts: a loop made from the description of the method, a few frozen numbers, and the code. The loop and the
code must both give the frozen numbers. The inputs are values of the sine, so that no random generator can change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor

from adcore.papers.artola2024.color import chroma, color_map, color_moments, transport
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

EXACT = {"rel": 1e-10, "abs": 1e-12}


def wave(*shape: int, start: float = 0.0, pace: float = 0.7) -> np.ndarray:
    """sin(start), sin(start + pace), ... in this shape."""
    return np.sin(start + pace * np.arange(math.prod(shape))).reshape(shape)


def tensor(values: object) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


# A mixture of two Gaussians in the plane, the uniform outlier component, and points around both.
WEIGHTS, MEANS = [0.6, 0.4], [[0.0, 0.5], [2.0, -1.0]]
COVARIANCES = [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.9]]]
ALPHA, LOG_L = 0.3, 4.0
POINTS = (1.5 * wave(6, 2, pace=1.9) + [1.0, 0.0]).tolist()


def mixture() -> Mixture:
    return Mixture.of(tensor(WEIGHTS), tensor(MEANS), tensor(COVARIANCES))


# --- loops --------------------------------------------------------------------------------------------------------------

def gaussian(u: list[float], mean: list[float], covariance: list[list[float]]) -> float:
    """Density of a Gaussian in the plane, with the inverse written out."""
    (a, b), (_, d) = covariance
    x, y = u[0] - mean[0], u[1] - mean[1]
    determinant = a * d - b * b
    return math.exp(-(d * x * x - 2 * b * x * y + a * y * y) / determinant / 2) / (2 * math.pi * math.sqrt(determinant))


def density(u: list[float]) -> float:
    return sum(w * gaussian(u, m, c) for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True))


def shares(u: list[float]) -> list[float]:
    """P(z = k | u) of both Gaussians."""
    return [w * gaussian(u, m, c) / density(u) for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)]


def normal(u: list[float]) -> float:
    """P(z = + | u): the share of the mixture against the uniform component of density 1 / L and prior alpha."""
    inside, outside = (1 - ALPHA) * density(u), ALPHA / math.exp(LOG_L)
    return inside / (inside + outside)


def slope(function: Callable[[list[float]], float], u: list[float], step: float = 1e-5) -> list[float]:
    """Gradient by central differences."""
    x, y = u
    return [(function([x + step, y]) - function([x - step, y])) / (2 * step),
            (function([x, y + step]) - function([x, y - step])) / (2 * step)]


def moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population covariance of colors: (n, 3) -> (3,), (3, 3)."""
    mean = sum(pixels) / len(pixels)
    return mean, sum(np.outer(p - mean, p - mean) for p in pixels) / len(pixels)


def root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric matrix; eigenvalues that rounding makes negative count as zero."""
    values, vectors = np.linalg.eigh(matrix)
    return sum(math.sqrt(max(value, 0)) * np.outer(v, v) for value, v in zip(values, vectors.T, strict=True))


def optimal(Su: np.ndarray, Sv: np.ndarray) -> np.ndarray:
    """T = Su^-1/2 (Su^1/2 Sv Su^1/2)^1/2 Su^-1/2."""
    inverse = np.linalg.inv(root(Su))
    return inverse @ root(root(Su) @ Sv @ root(Su)) @ inverse


# --- mixture and online EM ----------------------------------------------------------------------------------------------

def test_the_density_and_the_responsibilities_are_those_of_two_gaussians():
    frozen_log = [-2.834556815064, -4.069086673175, -3.039265348494]
    frozen_shares = [0.9643546444582, 0.9398477151556, 0.01679908850097]
    assert [math.log(density(u)) for u in POINTS[:3]] == approx(frozen_log, **EXACT)
    assert mixture()(tensor(POINTS[:3])).tolist() == approx(frozen_log, **EXACT)
    assert [shares(u)[0] for u in POINTS[:3]] == approx(frozen_shares, **EXACT)
    assert mixture().responsibilities(tensor(POINTS[:3]))[:, 0].tolist() == approx(frozen_shares, **EXACT)


@pytest.mark.parametrize(("gamma", "frozen"), [
    (None, [[0.6266103946671, 0.380028483393, 0.3701845858059, 0.4134471828554, 0.582128403603],
            [0.643241281788, 0.3980149132281, 0.7896983511255, 0.2680320915342, 0.628904777269]]),
    (0.05, [[0.6020166908019, 0.02997734824199, 0.4897599205098, 0.3053643717395, 0.8989160312146],
            [0.6041704493295, 0.04954159630422, 0.5256264684113, 0.308444425355, 0.8839734450487]])])
def test_two_steps_of_online_em_blend_the_statistics_and_the_default_first_step_has_the_size_2_to_the_minus_0_6(gamma, frozen):
    """S <- (1 - gamma) S + gamma * means of r, r u, r u u^T; by default gamma is (t + 2)^-0.6 at step t = 0, 1, ..."""
    found, weights, means, covariances = mixture(), WEIGHTS, MEANS, COVARIANCES
    s0 = [np.float64(w) for w in weights]
    s1 = [w * np.array(m) for w, m in zip(weights, means, strict=True)]
    s2 = [w * (np.array(c) + np.outer(m, m)) for w, m, c in zip(weights, means, covariances, strict=True)]
    for t, batch in enumerate((POINTS[:3], POINTS[3:])):
        step = (t + 2) ** -0.6 if gamma is None else gamma
        each = [[w * gaussian(u, m, c) for w, m, c in zip(weights, means, covariances, strict=True)] for u in batch]
        each = [[part / sum(parts) for part in parts] for parts in each]
        for k in range(2):
            s0[k] = (1 - step) * s0[k] + step * sum(r[k] for r in each) / 3
            s1[k] = (1 - step) * s1[k] + step * sum(r[k] * np.array(u) for r, u in zip(each, batch, strict=True)) / 3
            s2[k] = (1 - step) * s2[k] + step * sum(r[k] * np.outer(u, u) for r, u in zip(each, batch, strict=True)) / 3
        center = sum(s1)
        ridge = 1e-6 * (np.trace(sum(s2)) - center @ center) / 2              # a millionth of the mean variance of all points
        weights, means = list(s0), [s1[k] / s0[k] for k in range(2)]
        covariances = [s2[k] / s0[k] - np.outer(means[k], means[k]) + ridge * np.eye(2) for k in range(2)]
        found.update(tensor(batch), gamma)
        assert [weights[0], *means[0], covariances[0][0, 1], covariances[1][1, 1]] == approx(frozen[t], **EXACT)
        assert [float(found.weights[0]), *found.means[0].tolist(), float(found.covariances[0, 0, 1]),
                float(found.covariances[1, 1, 1])] == approx(frozen[t], **EXACT)


# --- posterior, losses and gradients ------------------------------------------------------------------------------------

def test_the_posterior_and_both_losses_compare_the_mixture_with_a_uniform_density():
    frozen_positive = [0.1254177357158, 0.3779066705517, 0.1518421096987]
    frozen_negative = [2.138158781039, 1.156117857764, 1.959874621592]
    logit = Outliers(LOG_L, ALPHA).logit(mixture()(tensor(POINTS[:3])))
    assert [-math.log(normal(u)) for u in POINTS[:3]] == approx(frozen_positive, **EXACT)          # Eq. (2)
    assert positive_loss(logit).tolist() == approx(frozen_positive, **EXACT)
    assert [-math.log(1 - normal(u)) for u in POINTS[:3]] == approx(frozen_negative, **EXACT)      # Eq. (4)
    assert negative_loss(logit).tolist() == approx(frozen_negative, **EXACT)
    assert misclassified(logit, positive=True).tolist() == approx([1 - normal(u) for u in POINTS[:3]], **EXACT)
    assert misclassified(logit, positive=False).tolist() == approx([normal(u) for u in POINTS[:3]], **EXACT)


def test_the_gradients_are_those_of_the_losses_by_finite_differences():
    one, points = mixture(), tensor(POINTS[:2])
    h, logit = one.direction(points), Outliers(LOG_L, ALPHA).logit(one(points))
    cases = {"(16)": (lambda u: math.log(density(u)), h),
             "(9)": (lambda u: -math.log(normal(u)), positive_gradient(h, logit)),
             "(13)": (lambda u: -math.log(1 - normal(u)), negative_gradient(h, logit))}
    frozen = {"(16)": [-0.4602360603426, -1.545377133529, -0.7124819202957, 3.117207431424],
              "(9)": [0.05424879344201, 0.182156184903, 0.2242220104345, -0.9810024609818],
              "(13)": [-0.4059872669006, -1.363220948626, -0.4882599098612, 2.136204970442]}
    for equation, (function, found) in cases.items():
        assert [s for u in POINTS[:2] for s in slope(function, u)] == approx(frozen[equation], rel=1e-7, abs=1e-8), equation
        assert found.flatten().tolist() == approx(frozen[equation], **EXACT), equation
    for i, u in enumerate(POINTS[:2]):                                          # the closed forms as printed
        away = [np.linalg.solve(COVARIANCES[k], np.array(u) - MEANS[k]) for k in range(2)]
        direction = -sum(shares(u)[k] * away[k] for k in range(2))              # Eq. (16)
        assert direction.tolist() == approx(frozen["(16)"][2 * i:2 * i + 2], **EXACT)
        assert (-direction * (1 - normal(u))).tolist() == approx(frozen["(9)"][2 * i:2 * i + 2], **EXACT)
        assert (direction * normal(u)).tolist() == approx(frozen["(13)"][2 * i:2 * i + 2], **EXACT)


@pytest.mark.parametrize(("shift", "frozen"), [(0.0, [3, 4, 8, 9, 13, 14, 17, 18, 19, 22, 23, 24]), (0.99, [13, 18, 23])])
def test_negatives_outside_the_mixture_pass_the_filter_or_the_tenth_farthest_outside_if_they_are_fewer(shift, frozen):
    logits = (wave(25, pace=1.3) + shift).tolist()
    outside = [i for i, value in enumerate(logits) if 1 / (1 + math.exp(value)) > 0.5]             # P(z = - | u) > 1/2
    fewest = math.ceil(0.1 * 25)
    farthest = sorted(sorted(range(25), key=lambda i: logits[i])[:fewest])
    assert (outside if len(outside) >= fewest else farthest) == frozen
    assert outlier_filter(tensor(logits)).nonzero().flatten().tolist() == frozen


# --- color transport ----------------------------------------------------------------------------------------------------

U = 0.5 + 0.1 * wave(3, 4, 5, pace=1.7) + 0.1 * wave(4, 5, pace=0.9)              # (3, H, W)
V = 0.4 + 0.08 * wave(3, 3, 4, start=1.0, pace=2.1) - 0.1 * wave(3, 4, pace=1.1)
GRAY = np.repeat(0.3 + 0.1 * wave(1, 3, 4, pace=1.3), 3, axis=0)


def test_the_monge_kantorovich_map_is_the_symmetric_map_between_both_covariances():
    (_, Su), (_, Sv) = (moments(image.reshape(3, -1).T) for image in (U, V))
    frozen = [0.474934884211, 0.4220254449323, 0.3687809150042, 0.4211025336357, 0.4176011539759, 0.4662183707525]
    by_hand = optimal(Su, Sv)
    found = color_map(color_moments(tensor(U)[None]), color_moments(tensor(V)[None]))[0].numpy()
    assert by_hand[np.triu_indices(3)].tolist() == approx(frozen, **EXACT)
    assert found[np.triu_indices(3)].tolist() == approx(frozen, **EXACT)
    assert (found @ Su @ found).tolist() == [approx(row, **EXACT) for row in Sv.tolist()]          # reaches the target


@pytest.mark.parametrize(("rho", "frozen"), [
    (0.5, [0.4428082418509, 0.4672340129945, 0.393802674924, 0.4063327006688, 0.4836494894562, 0.3870244352053]),
    (1.0, [0.3856164837019, 0.381559757377, 0.3773981179169, 0.3727977225129, 0.3715746925693, 0.3701577818392])])
def test_displacement_interpolation_moves_each_color_a_fraction_of_its_way(rho, frozen):
    """x_rho = (1 - rho) x + rho t(x) with t(x) = T (x - mu_u) + mu_v."""
    (mu, Su), (nu, Sv) = (moments(image.reshape(3, -1).T) for image in (U, V))
    T = optimal(Su, Sv)
    by_hand = [[(1 - rho) * x + rho * y for x, y in zip(color, T @ (color - mu) + nu, strict=True)]
               for color in U.reshape(3, -1).T[[0, 7]]]
    found = transport(tensor(U)[None], tensor(V)[None], rho=rho)[0].reshape(3, -1).T[[0, 7]]
    assert [c for color in by_hand for c in color] == approx(frozen, **EXACT)
    assert found.flatten().tolist() == approx(frozen, **EXACT)


def test_a_gray_target_whose_covariance_has_rank_one_leaves_no_color():
    """T maps every color to the line R = G = B: the result is the mean of the channels in the target's spread."""
    mean = [sum(color) / 3 for color in U.reshape(3, -1).T]
    level, goal = sum(mean) / len(mean), GRAY[0].sum() / 12
    spread = math.sqrt(sum((m - level) ** 2 for m in mean) / len(mean))
    wanted = math.sqrt(((GRAY[0] - goal) ** 2).sum() / 12)
    frozen = [0.2954339387342, 0.4021518342705, 0.4066975944364, 0.3261120782972]
    found = transport(tensor(U)[None], tensor(GRAY)[None])
    assert [(m - level) / spread * wanted + goal for m in mean[:4]] == approx(frozen, rel=1e-9)
    assert found[0].reshape(3, -1)[:, :4].tolist() == [approx(frozen, rel=1e-7)] * 3
    assert float(chroma(found)) < 1e-7 < 0.01 < float(chroma(transport(tensor(U)[None], tensor(GRAY)[None], "diagonal")))
