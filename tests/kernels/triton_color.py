"""Moments and maps of colors in Triton's interpreter against torch in float64; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.errors import DataError, ParameterError
from adcore.kernels import color, kernels
from adcore.kernels.triton import color as fused
from adcore.papers.artola2024.color import color_moments, transport, transport_uint8

# Largest error of moments, and of mapped colors and gradients, for colors in [0, 1].
ERRORS = {torch.float32: (1e-6, 2e-6), torch.float16: (1e-6, 1e-3), torch.bfloat16: (1e-6, 1e-2)}
SIZES_AND_DTYPES = [((1, 1), torch.float32), ((65, 129), torch.float32), *(((7, 33), dtype) for dtype in ERRORS)]


def images(*size: int, seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(batch, 3, 3, generator=g) / 8
    return (torch.einsum("bij,bjhw->bihw", mix, torch.randn(batch, 3, *size, generator=g)) + 0.5).clamp(0, 1).to(dtype)


def uint8_images(*size: int, seed: int) -> Tensor:
    return (images(*size, seed=seed) * 255).round().byte()


def some_mask(*size: int) -> Tensor:
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[:, -1, -1] = True
    return mask


def near(found: Tensor, expected: Tensor, error: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=error, atol=error)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "dtype"), SIZES_AND_DTYPES)
def test_moments_and_their_gradient_equal_torchs(size, masked, dtype):
    given, mask = images(*size, dtype=dtype), some_mask(*size) if masked else None
    by_mean, by_covariance = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    runs = []
    for choice, x in (("triton", given.clone().requires_grad_()), ("torch", given.double().requires_grad_())):
        with kernels(choice):
            mean, covariance, number = color.moments(x, mask)
        loss = (mean * by_mean.to(mean.dtype)).sum() + (covariance * by_covariance.to(mean.dtype)).sum()
        runs.append((mean, covariance, number, *torch.autograd.grad(loss, x)))
    assert runs[0][0].dtype == torch.float32 and torch.equal(runs[0][2], runs[1][2])
    near(runs[0][0], runs[1][0], ERRORS[dtype][0])
    near(runs[0][1], runs[1][1], ERRORS[dtype][0])
    near(runs[0][3], runs[1][3], ERRORS[dtype][1])


def test_pixels_outside_the_mask_may_have_any_value():
    given, mask = images(5, 7), some_mask(5, 7)
    broken = torch.where(mask[:, None], given, torch.nan).requires_grad_()
    with kernels("triton"):
        found, expected = color_moments(broken, mask), color_moments(given, mask)
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.covariance, expected.covariance)
        (gradient,) = torch.autograd.grad(found.covariance.sum(), broken)
    assert bool(torch.isfinite(gradient).all()) and not gradient[~mask[:, None].expand_as(gradient)].any()


def test_a_small_spread_beside_a_large_mean_keeps_its_digits():
    given = 0.9 + 1e-3 * images(64, 64)
    with kernels("triton"):
        found = color.moments(given)[1]
    with kernels("torch"):
        exact = color.moments(given.double())[1]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


def test_the_moments_of_uint8_images_are_exact():
    given = uint8_images(65, 129, seed=1)
    given[0, :, :40] = 255
    with kernels("triton"):
        mean, covariance, number = color.moments(given)
    pixels = given.double().flatten(2) / 255
    off = pixels - pixels.mean(2, keepdim=True)
    near(mean, pixels.mean(2), 1e-14)
    near(covariance, off @ off.mT / pixels.shape[2], 1e-14)
    assert number.tolist() == [65 * 129] * 2


@pytest.mark.parametrize(("size", "dtype"), SIZES_AND_DTYPES)
def test_the_map_and_its_gradients_equal_torchs(size, dtype):
    g = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, 3, 3, generator=g), torch.rand(2, 3, generator=g), torch.rand(2, 3, generator=g)]
    given, weight = images(*size, dtype=dtype), torch.randn(2, 3, *size, generator=g) / (size[0] * size[1])
    runs = []
    for choice, kind in (("triton", dtype), ("torch", torch.float64)):
        x = given.detach().to(kind).clone().requires_grad_()
        A, center, goal = (part.to(torch.promote_types(kind, torch.float32)).clone().requires_grad_() for part in parts)
        with kernels(choice):
            moved = color.affine(x, A, center, goal)
        assert moved.dtype == kind and ("_Affine" in moved.grad_fn.name()) == (choice == "triton")
        loss = (moved * weight.to(dtype).to(moved.dtype)).sum()
        runs.append((moved, *torch.autograd.grad(loss, (x, A, center, goal))))
    for found, expected in zip(*runs, strict=True):
        near(found, expected, ERRORS[dtype][1])


def test_transposed_strided_and_expanded_images_are_supported():
    views = (images(33, 20).transpose(2, 3), images(40, 66)[:, :, ::2, ::2], images(20, 33)[:, :1].expand(-1, 3, -1, -1),
             images(20, 33).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    mask = some_mask(33, 20).transpose(1, 2)
    for view in views:
        assert not view.is_contiguous()
        runs = []
        for choice, target in (("triton", view), ("torch", view.double())):
            with kernels(choice):
                runs.append((*color.moments(target)[:2], *color.moments(target, mask)[:2], transport(target, target[1:])))
        for found, expected in zip(*runs, strict=True):
            near(found, expected, 2e-5)
        eight = (view * 255).byte() if view.stride(1) else (view[:, :1] * 255).byte().expand(-1, 3, -1, -1)
        with kernels("triton"):
            for found, expected in zip(color.moments(eight), color.moments(eight.contiguous()), strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["diagonal", "monge_kantorovich"])
def test_transport_and_its_gradients_equal_torchs(method):
    runs = []
    for choice, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        u, v = (images(7, 33, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
        with kernels(choice):
            moved = transport(u, v, method, 0.8)
        runs.append((moved, *torch.autograd.grad(moved.square().mean(), (u, v))))
    for found, expected in zip(*runs, strict=True):
        near(found, expected, 5e-6)


@pytest.mark.parametrize("rho", [0.0, 0.75, 1.0])
def test_transported_uint8_images_equal_torchs(rho):
    u, v = uint8_images(33, 65, seed=0), uint8_images(7, 20, seed=1)
    with kernels("triton"):
        found = transport_uint8(u, v, rho=rho)
    with kernels("torch"):
        expected = transport_uint8(u, v, rho=rho)
        exact = 255 * transport(u.double() / 255, v.double() / 255, rho=rho, clip=True)
    assert found.dtype == torch.uint8 and found.is_contiguous() and found.shape == u.shape
    assert (found.double() - exact).abs().max() < 0.5 + 1e-3 and (found != expected).double().mean() < 1e-3
    assert rho > 0 or torch.equal(found, u)


def test_refusals_are_the_same():
    u = images(5, 7)
    with kernels("triton"):
        with pytest.raises(ParameterError, match="images takes shape"):
            transport_uint8(uint8_images(5, 7, seed=0)[0], uint8_images(5, 7, seed=0))
        with pytest.raises(ParameterError, match="target takes shape"):
            transport_uint8(uint8_images(5, 7, seed=0), uint8_images(5, 7, seed=0)[:, :, :0])
        u[1, 0, 2, 3] = torch.inf
        with pytest.raises(DataError, match=r"^image 1 has NaN or infinite values"):
            transport(u, images(5, 7))
        with pytest.raises(DataError, match="the mask of image 0 is empty"):
            color_moments(images(5, 7), torch.zeros(2, 5, 7, dtype=torch.bool))


def test_torch_computes_float64_empty_batches_and_masked_uint8_and_the_kernels_run_only_when_selected(monkeypatch):
    def ran(*_: object) -> None:
        raise ZeroDivisionError
    for name in ("_sum", "_map"):
        monkeypatch.setattr(fused, name, ran)
    given, mask = images(5, 7), some_mask(5, 7)
    with kernels("triton"):
        transport(given.double(), given.double())
        color.moments(given[:0])
        color.moments((given * 255).byte(), mask)
        still = torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3)
        for call in (lambda: color.moments(given), lambda: color.affine(given, *still)):
            with pytest.raises(ZeroDivisionError):
                call()
    with kernels("torch"):
        transport(given, given)
