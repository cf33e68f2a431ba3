"""Scaled dot-product attention under a mask that all heads and images share.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j        over the keys j that query i may see
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.kernels.choice import use_plain, use_triton
from adcore.kernels.cpu import attention as fast


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, p: float = 0.0) -> Tensor:
    """`masked_attention`, equation by equation.

    >>> q = k = torch.zeros(1, 1, 2, 4)                                    # equal logits
    >>> plain_attention(q, k, torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[True, True], [False, True]])).flatten()
    tensor([2., 3.])
    """
    logits = q @ k.mT * q.shape[-1] ** -0.5                                 # (B, heads, N, M)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return F.dropout(logits.softmax(-1), p) @ v                             # (B, heads, N, d)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, p: float = 0.0) -> Tensor:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, M, d): (B, heads, N, d).

    visible  (N, M) bool, True where a query may see a key; every query must see at least one. None: every key
    p        probability with which an attention weight is dropped

    torch's own fused kernel computes it, except for dropout on a CPU (adcore/kernels/cpu/attention.py) and, where Triton is
    selected, attention without dropout (adcore/kernels/triton/masked_attention.py).

    >>> q = k = torch.zeros(1, 1, 2, 4)                                    # equal logits
    >>> masked_attention(q, k, torch.tensor([[[[1.0], [3.0]]]]).expand(1, 1, 2, 4)).mean(-1)
    tensor([[[2., 2.]]])

    Raises:
        ValueError: p is not a probability.
        RuntimeError: shapes that do not fit together.
    """
    if use_plain():
        return plain_attention(q, k, v, visible, p)
    if p == 0 and use_triton(q, "attention"):
        from adcore.kernels.triton import masked_attention as fused
        operands = _under_autocast(q, k, v)
        if fused.takes(*operands, visible):
            return fused.masked_attention(*operands, visible)
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, visible, p)
    if fast.takes(q, p):
        return fast.masked_attention(q, k, v, visible, p)
    return plain_attention(q, k, v, visible, p)         # for torch.compile, which fuses these lines, and for p = 1


def _under_autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in the dtype that torch would use under automatic mixed precision."""
    if torch.is_autocast_enabled(q.device.type) and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v
