"""Losses between images' vectors against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor

from adcore.papers.ds2.instance_losses import byol_loss, info_nce, rotation_loss, simclr_loss


def unit(count: int, seed: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def surprise(logits: list[float], right: int) -> float:
    """-log of the share that the right one has."""
    return -math.log(math.exp(logits[right]) / sum(math.exp(x) for x in logits))


def test_byol_compares_each_prediction_with_the_other_view_s_key():
    (p1, p2), (z1, z2) = (unit(6, 0), unit(6, 1)), (unit(6, 2), unit(6, 3))
    a, b, c, d = (x.double().numpy() for x in (p1, p2, z1, z2))
    by_hand = np.mean([-2 * a[i] @ d[i] - 2 * b[i] @ c[i] for i in range(6)])
    assert float(byol_loss((p1, p2), (z1, z2))) == approx(by_hand, abs=1e-6)
    assert float(byol_loss((p1, p2), (p2, p1))) == approx(-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_query_is_looked_for_among_its_key_and_the_negatives(temperature):
    q, k, negatives = unit(4, 0), unit(4, 1), unit(9, 2)
    by_hand = np.mean([surprise([float(q[i] @ other) / temperature for other in (k[i], *negatives)], 0) for i in range(4)])
    assert float(info_nce(q, k, negatives, temperature)) == approx(by_hand, rel=1e-5)
    assert float(info_nce(q, k, negatives)) == float(info_nce(q, k, negatives, 0.2))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_view_is_looked_for_among_all_others_of_the_batch(temperature):
    first, second = unit(5, 0), unit(5, 1)
    views, losses = torch.cat([first, second]), []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        logits = [float(views[i] @ views[j]) / temperature for j in others]
        losses.append(surprise(logits, others.index((i + 5) % 10)))
    assert float(simclr_loss(first, second, temperature)) == approx(np.mean(losses), rel=1e-5)
    assert float(simclr_loss(first, second)) == float(simclr_loss(first, second, 0.2))


def test_finite_gradients_come_from_identical_views():
    first = unit(4, 0).requires_grad_()
    simclr_loss(first, first).backward()
    assert torch.isfinite(first.grad).all()


def test_rotations_are_told_from_outputs_of_unit_length():
    outputs, quarters = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 3, 0])
    by_hand = np.mean([surprise([float(x) / float(row.norm()) / 0.2 for x in row], int(right))
                       for row, right in zip(outputs, quarters, strict=True)])
    assert float(rotation_loss(outputs, quarters)) == approx(by_hand, rel=1e-5)
    assert float(rotation_loss(100 * outputs, quarters)) == approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("loss", [lambda a, b, c: byol_loss((a, b), (c, a)), info_nce, lambda a, b, c: simclr_loss(a, b),
                                  lambda a, b, c: rotation_loss(a[:, :4], torch.arange(4))],
                         ids=["byol", "info_nce", "simclr", "rotation"])
def test_no_loss_is_rounded_by_autocast(loss):
    vectors = [unit(4, seed) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*vectors)
        of_narrow = loss(*(x.bfloat16() for x in vectors))
    assert torch.equal(found, loss(*vectors)) and torch.equal(of_narrow, loss(*(x.bfloat16().float() for x in vectors)))
