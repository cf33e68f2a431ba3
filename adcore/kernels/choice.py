"""Who computes a kernel: Triton on a GPU, torch elsewhere, unless someone says otherwise.

    ADCORE_KERNELS=torch python ...          for a whole program
    with kernels("torch"): ...               for a few lines, and stronger than the variable

    auto    Triton for those kernels that have won against torch on a GPU (`WON`), for tensors on a GPU of compute capability 8
            or more where triton is installed; else torch
    torch   torch, wherever the tensors are
    triton  Triton, or an error that says why not. With TRITON_INTERPRET=1 in the environment before triton is imported its
            interpreter runs the kernels on the CPU: slowly, for tests

What no Triton kernel is written for (float64, dropout, more than one neighbor, ...; each kernel's `takes` says it) is
computed by torch under all three.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.switch import Switch

KERNELS = Switch("kernels", "ADCORE_KERNELS", ("auto", "torch", "triton"))
# Kernels that were faster than torch on a GPU, by benchmarks/bench_kernels.py. None has been timed on one so far: what has
# not won replaces nothing.
WON: frozenset[str] = frozenset()
CAPABILITY = (8, 0)  # bfloat16 and TF32 products; older GPUs stay with torch unless told otherwise


def kernels(choice: str) -> AbstractContextManager[None]:
    """Within the block the kernels run as `choice` says: 'auto', 'torch' or 'triton'.

    Raises:
        ParameterError: another word.
    """
    return KERNELS.turned_to(choice)


def use_triton(x: Tensor, kernel: str) -> bool:
    """Whether a computation on `x` goes to Triton; its device decides, not its shape or dtype.

    kernel  'attention', 'nearest', 'kcenter', 'gmm' or 'color'

    Raises:
        ParameterError: the choice is 'triton' and cannot be met, or ADCORE_KERNELS holds an unknown word.
    """
    choice = KERNELS()
    if choice == "auto":
        return x.is_cuda and kernel in WON and _serves(x.device)
    if choice == "torch":
        return False
    if _triton_error():
        raise ParameterError(f"kernels are to run in triton, which cannot be imported here ({_triton_error()}): install it, or "
                             f"set {KERNELS.variable}=auto")
    if not x.is_cuda and not _interpreted():
        raise ParameterError(f"kernels are to run in triton, which needs a GPU and found a tensor on '{x.device}': set "
                             f"{KERNELS.variable}=auto, or TRITON_INTERPRET=1 before triton is imported to run them slowly on "
                             f"the CPU")
    return True


@functools.lru_cache
def _serves(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= CAPABILITY and not _triton_error()


@functools.lru_cache(maxsize=1)
def _triton_error() -> str:
    """Why triton cannot be imported; '' when it can."""
    try:
        import triton.language  # noqa: F401
    except Exception as error:  # a half-installed triton raises more than ImportError, and must not stop torch
        return f"{type(error).__name__}: {error}"
    return ""


def _interpreted() -> bool:
    from adcore.kernels.triton.launch import INTERPRETED
    return INTERPRETED
