"""The mixture in Triton's interpreter against torch in float64; run by test_triton.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import gmm, kernels
from adcore.kernels.triton import gmm as fused


def mixture(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights (K,), means (K, d) and upper triangular factors (K, d, d), in float32."""
    g = torch.Generator().manual_seed(seed)
    factors = torch.randn(k, d, d, generator=g).div_(d**0.5).triu_(1) + torch.diag_embed(0.5 + torch.rand(k, d, generator=g))
    return torch.randn(k, generator=g).log_softmax(0), torch.randn(k, d, generator=g), factors


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agree(points: Tensor, *parts: Tensor, error: float = 1e-5) -> None:
    """Log-density, responsibilities and gradient against torch's in float64 of the same numbers. The error allowed grows with
    the largest value: the gradient is a sum of products, and processors round its parts differently."""
    weight = torch.linspace(-1, 2, len(points), dtype=torch.float64)
    runs = []
    for choice, dtype in (("triton", points.dtype), ("torch", torch.float64)):
        leaf = points.detach().to(dtype).requires_grad_() if dtype != points.dtype else points.detach().requires_grad_()
        with kernels(choice):
            density, responsibilities = gmm(leaf, *(part.to(torch.promote_types(dtype, torch.float32)) for part in parts))
        (gradient,) = torch.autograd.grad((density * weight.to(density.dtype)).sum(), leaf)
        runs.append((density, responsibilities, gradient))
    assert runs[0][0].dtype == torch.float32 and not runs[0][1].requires_grad
    for found, expected in zip(*runs, strict=True):
        largest = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(found.double(), expected, rtol=error, atol=error * largest)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 3, 2), (65, 4, 33), (33, 5, 64), (33, 2, 65), (5, 2, 128)])
def test_density_responsibilities_and_gradient_equal_torchs(n, k, d):
    agree(random(n, d), *mixture(k, d))


def test_half_precision_is_computed_in_float32():
    u, parts = random(9, 5).bfloat16(), mixture(3, 5)
    with kernels("triton"):
        for ours, theirs in zip(gmm(u, *parts), gmm(u.float(), *parts), strict=True):
            assert torch.equal(ours, theirs)
    agree(u, *parts, error=1e-2)                                # the gradient is bfloat16


def test_transposed_and_strided_inputs_are_supported():
    log_weights, means, factors = mixture(6, 8)
    parts = log_weights[::2], means.T.contiguous().T[::2, ::2], factors[::2, ::2, ::2]
    for points in (random(4, 40).T, random(80, 8)[::2, ::2]):
        assert not points.is_contiguous()
        agree(points, *parts)


def test_far_mixtures_and_far_points_keep_their_digits():
    log_weights, means, factors = mixture(3, 16)
    agree(random(20, 16) + 1000, log_weights, means + 1000, factors, error=1e-4)
    one = torch.tensor([[3.0, -1.0]])
    far = (one + torch.tensor([[1e4, 0.0]])).requires_grad_()
    with kernels("triton"):
        density, responsibilities = gmm(far, torch.zeros(1), one, torch.eye(2)[None])
    assert density.item() == pytest.approx(-0.5e8 - math.log(2 * math.pi), rel=1e-7) and responsibilities.item() == 1
    assert torch.autograd.grad(density.sum(), far)[0].tolist() == [[-1e4, 0]]


@pytest.mark.parametrize("position", [0, 3])
def test_a_component_that_is_switched_off_changes_nothing(position):
    parts, u = mixture(3, 5), random(33, 5)
    extra = (torch.tensor([-math.inf]), u[:1], parts[2][:1])
    wider = [torch.cat([part[:position], more, part[position:]]) for part, more in zip(parts, extra, strict=True)]
    with kernels("triton"):
        (density, responsibilities), (alone, _) = gmm(u, *wider), gmm(u, *parts)
    torch.testing.assert_close(density, alone)
    assert not responsibilities[:, position].any()


def test_torch_computes_what_the_kernel_does_not_support_and_refusals_are_the_same(monkeypatch):
    parts = mixture(2, 3)
    with kernels("triton"), pytest.raises(ParameterError, match="are not \\(n, d\\)"):
        gmm(random(4, 2), *parts)

    def ran(*_: object) -> None:
        raise ZeroDivisionError
    monkeypatch.setattr(fused, "gmm", ran)
    with kernels("triton"):
        assert gmm(random(0, 3), *parts)[0].shape == (0,)
        gmm(random(4, 3).double(), *parts)
        gmm(random(2, 129), *mixture(1, 129))
        with pytest.raises(ZeroDivisionError):
            gmm(random(4, 3), *parts)
    with kernels("torch"):
        gmm(random(4, 3), *parts)
