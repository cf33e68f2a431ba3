"""What the Triton kernels share: where they run, in which precision they multiply, and how tiles are measured."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

# triton looks at TRITON_INTERPRET when a function is decorated, its own functions at its import: later is too late.
INTERPRETED = bool(triton.knobs.runtime.interpret) and not isinstance(tl.zeros, JITFunction)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # sums are float32, so float64 stays with torch


def on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current GPU: make it that of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def precision() -> str:
    """How float32 tiles are multiplied: as torch's own products, see torch.set_float32_matmul_precision.

    'highest' takes three TF32 products on an NVIDIA GPU, nearly float32's digits at tensor cores' speed.
    """
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee" if torch.version.hip else "tf32x3"


def widen(x: Tensor) -> bool:
    """Whether tiles must become float32 before they are multiplied: the interpreter cannot multiply bfloat16."""
    return INTERPRETED and x.dtype == torch.bfloat16


def tile(size: int, smallest: int = 16) -> int:
    """The power of two that holds `size`; a product of tiles takes none below 16."""
    return max(smallest, triton.next_power_of_2(size))
