"""Images and hypothesis strategies for the tests of color transport."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 10_000)
few = settings(max_examples=20, deadline=None)


def images(seed: int, batch: int = 1, size: tuple[int, int] = (9, 7), dtype: torch.dtype = torch.float64) -> Tensor:
    """Images with correlated channels and a covariance of full rank, with colors in [0, 1] or slightly outside."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator, dtype=torch.float64)).Q
    mix = turn * (0.03 + 0.17 * torch.rand(batch, 1, 3, generator=generator, dtype=torch.float64))
    mean = 0.3 + 0.4 * torch.rand(batch, 3, 1, 1, generator=generator, dtype=torch.float64)
    return (torch.einsum("bij,bjhw->bihw", mix, noise) + mean).to(dtype)


def gray(seed: int, size: tuple[int, int] = (8, 11), dtype: torch.dtype = torch.float64) -> Tensor:
    return images(seed, size=size, dtype=dtype)[:, :1].expand(-1, 3, -1, -1).contiguous()


def plain(*color: float, size: tuple[int, int] = (5, 6), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(color, dtype=dtype)[None, :, None, None].expand(1, 3, *size).contiguous()
