"""Moments of an image's colors in one pass, and affine maps of colors, in Triton.

    _sums    sum_p a_i(p) - s_i  and  sum_p (a_i(p) - s_i) (b_j(p) - t_j)     over the pixels p that count
    _affine  y_i(p) = m_i + sum_j A_ij (x_j(p) - c_j)

If a = b is an image, the sums give its moments. If a is the gradient of a mapped image and b the image, they give the gradient
of the map. The gradient of the moments is an affine map of the image. So these two kernels also compute the backward passes.

Sums over a uint8 image use integers and are exact. Other sums are float32 within a program, which reads at most 8192 pixels,
and float64 over the programs.

Tested in Triton's interpreter and compiled for a GPU; it has not run on one yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.kernels.triton.launch import FLOATS, on

BLOCK, BLOCKS = 1024, 8  # pixels per step, and steps per program at most: int32 can hold 8192 * 255^2


def takes(images: Tensor) -> bool:
    """Whether the kernels support these images (B, 3, H, W): no float64, at least one image."""
    return (images.dtype in FLOATS or images.dtype == torch.uint8) and len(images) > 0


def moments(images: Tensor, mask: Tensor | None, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 3) and covariance (B, 3, 3), float32, and number of pixels (B,), float64, of each image's colors.

    images  (B, 3, H, W) float32, float16 or bfloat16, any strides
    mask    (B, H, W) bool or None: only pixels where it is True count; at least one per image
    shift   (B, 3) a color near the image's, subtracted before squares are summed, so that they keep their digits

    Differentiable once, with respect to the images.
    """
    if mask is None:
        number = torch.full((len(images),), images[0, 0].numel(), dtype=torch.float64, device=images.device)
    else:
        number = mask.flatten(1).sum(1).double()
    mean, covariance = _Moments.apply(images, mask, shift, number)
    return mean, covariance, number


def moments_uint8(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` of (B, 3, H, W) uint8 where 0..255 stands for [0, 1]: float64, from exact sums."""
    count = images[0, 0].numel()
    first, second = (part / (count * 255) for part in _sum(images, images))
    mean = first                                                                    # (B, 3)
    covariance = second / 255 - mean[:, :, None] * mean[:, None, :]
    return mean, covariance, torch.full((len(images),), count, dtype=torch.float64, device=images.device)


def affine(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """A (x - center) + goal for each pixel: (B, 3, H, W) -> (B, 3, H, W) of the same dtype, contiguous.

    A (B, 3, 3), center and goal (B, 3), any floating dtype; computed in float32.

    Differentiable once, with respect to all four.
    """
    return _Affine.apply(images, A, center, goal)


def affine_uint8(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """`affine` of (B, 3, H, W) uint8 where 0..255 stands for [0, 1], rounded (halves up) and clipped to 0..255."""
    return _map(images, A, center, goal, None)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, mask: Tensor | None, shift: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        first, second = _sum(images, images, shift, shift, mask)
        off, square = first / number[:, None], second / number[:, None, None]
        mean = (shift + off).float()
        ctx.save_for_backward(images, mask, mean, number)
        return mean, (square - off[:, :, None] * off[:, None, :]).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_covariance: Tensor) -> tuple[Tensor | None, ...]:
        images, mask, mean, number = ctx.saved_tensors
        # The mean inside the covariance contributes nothing: deviations from a mean sum to zero.
        A = (by_covariance + by_covariance.mT) / number[:, None, None]
        return _map(images, A, mean, by_mean / number[:, None], mask), None, None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
        ctx.save_for_backward(images, A, center, goal)
        return _map(images, A, center, goal, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, A, center, goal = ctx.saved_tensors
        nothing = torch.zeros_like(center)
        by_images = _map(gradient, A.mT, nothing, nothing, None).to(images.dtype) if ctx.needs_input_grad[0] else None
        first, second = _sum(gradient, images, nothing, center)
        by_center = -(A.double().mT @ first[:, :, None])[:, :, 0]
        return by_images, second.to(A.dtype), by_center.to(center.dtype), first.to(goal.dtype)


def _sum(a: Tensor, b: Tensor, s: Tensor | None = None, t: Tensor | None = None,
         mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums of a - s, (B, 3), and of products of a - s and b - t, (B, 3, 3), over pixels; float64."""
    images, _, height, width = a.shape
    blocks = min(BLOCKS, triton.cdiv(height * width, BLOCK))
    parts = triton.cdiv(height * width, BLOCK * blocks)
    integer = a.dtype == torch.uint8
    sums = torch.empty(images, parts, 12, dtype=torch.int32 if integer else torch.float32, device=a.device)
    shifts = a if s is None or t is None else torch.cat([s, t], 1).float()          # (B, 6); not read for integers
    inside = a if mask is None else mask.contiguous().view(torch.uint8)
    with on(a):
        _sums[(images * parts,)](a, b, shifts, inside, sums, height * width, width, parts, *a.stride(), *b.stride(),
                                 INTEGER=integer, MASKED=mask is not None, BLOCK=BLOCK, BLOCKS=blocks)
    total = sums.double().sum(1)
    return total[:, :3], total[:, 3:].unflatten(1, (3, 3))


def _map(x: Tensor, A: Tensor, center: Tensor, goal: Tensor, mask: Tensor | None) -> Tensor:
    """A (x - center) + goal, and 0 outside the mask."""
    images, _, height, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    numbers = torch.cat([A.flatten(1), center, goal], 1).float()                    # (B, 15)
    inside = x if mask is None else mask.contiguous().view(torch.uint8)
    parts = triton.cdiv(height * width, BLOCK)
    with on(x):
        _affine[(images * parts,)](x, numbers, inside, out, height * width, width, parts, *x.stride(),
                                   INTEGER=x.dtype == torch.uint8, MASKED=mask is not None, BLOCK=BLOCK)
    return out


@triton.jit
def _sums(a, b, shifts, inside, sums, pixels, width, parts,
          ab, ac, ah, aw, bb, bc, bh, bw, INTEGER: tl.constexpr, MASKED: tl.constexpr,
          BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    image = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    c = tl.arange(0, 4)                                                             # channels; the fourth is zero
    kind = tl.int32 if INTEGER else tl.float32
    first = tl.zeros((4,), kind)
    second = tl.zeros((4, 4), kind)
    s = tl.zeros((4,), kind)
    t = tl.zeros((4,), kind)
    if not INTEGER:
        s = tl.load(shifts + image * 6 + c, mask=c < 3, other=0.0)
        t = tl.load(shifts + image * 6 + 3 + c, mask=c < 3, other=0.0)
    for block in range(0, BLOCKS):
        p = (part * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        counts = p < pixels
        if MASKED:
            counts = tl.load(inside + image * pixels + p, mask=counts, other=0) != 0
        y, x = (p // width).to(tl.int64), (p % width).to(tl.int64)
        known = (c < 3)[:, None] & counts[None, :]
        u = tl.load(a + image * ab + c[:, None] * ac + (y * ah + x * aw)[None, :], mask=known, other=0).to(kind)
        u = tl.where(known, u - s[:, None], 0)
        first += tl.sum(u, 1)
        for j in tl.static_range(3):
            v = tl.load(b + image * bb + j * bc + y * bh + x * bw, mask=counts, other=0).to(kind)
            v = tl.where(counts, v - tl.sum(tl.where(c == j, t, 0), 0), 0)
            second += tl.where((c == j)[None, :], tl.sum(u * v[None, :], 1)[:, None], 0)
    to = sums + tl.program_id(0).to(tl.int64) * 12
    tl.store(to + c, first, mask=c < 3)
    tl.store(to + 3 + c[:, None] * 3 + c[None, :], second, mask=(c < 3)[:, None] & (c < 3)[None, :])


@triton.jit
def _affine(x, numbers, inside, out, pixels, width, parts,
            xb, xc, xh, xw, INTEGER: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    image = (tl.program_id(0) // parts).to(tl.int64)
    p = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    counts = p < pixels
    at = x + image * xb + (p // width).to(tl.int64) * xh + (p % width).to(tl.int64) * xw
    A = numbers + image * 15
    full = 255.0 if INTEGER else 1.0
    red = tl.load(at, mask=counts, other=0).to(tl.float32) / full - tl.load(A + 9)
    green = tl.load(at + xc, mask=counts, other=0).to(tl.float32) / full - tl.load(A + 10)
    blue = tl.load(at + 2 * xc, mask=counts, other=0).to(tl.float32) / full - tl.load(A + 11)
    for i in tl.static_range(3):
        y = tl.load(A + 3 * i) * red + tl.load(A + 3 * i + 1) * green + tl.load(A + 3 * i + 2) * blue + tl.load(A + 12 + i)
        if INTEGER:
            y = tl.minimum(tl.maximum(tl.floor(y * full + 0.5), 0.0), full)
        if MASKED:
            y = tl.where(tl.load(inside + image * pixels + p, mask=counts, other=0) != 0, y, 0.0)
        tl.store(out + (image * 3 + i) * pixels + p, y.to(out.dtype.element_ty), mask=counts)
