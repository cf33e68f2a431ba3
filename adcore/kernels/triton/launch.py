"""Shared by the Triton kernels: the device they run on, the precision of products, and the sizes of tiles."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

# triton reads TRITON_INTERPRET when a function is decorated, and decorates its own when it is imported.
INTERPRETED = bool(triton.knobs.runtime.interpret) and not isinstance(tl.zeros, JITFunction)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # sums are float32, so torch computes float64


def on(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of `x` the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def precision() -> str:
    """How float32 tiles are multiplied: as torch multiplies, see torch.set_float32_matmul_precision.

    On an NVIDIA GPU 'highest' means three TF32 products, which keep nearly all digits of float32 and use the tensor cores.
    """
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee" if torch.version.hip else "tf32x3"


def widen(x: Tensor) -> bool:
    """Whether tiles must be converted to float32 before a product: the interpreter cannot multiply bfloat16."""
    return INTERPRETED and x.dtype == torch.bfloat16


def tile(size: int, smallest: int = 16) -> int:
    """The smallest power of two that is at least `size`; a product of tiles needs at least 16."""
    return max(smallest, triton.next_power_of_2(size))
