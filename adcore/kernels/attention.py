"""Attention under a mask that is the same for all heads and images.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j        over the keys j that query i may see

torch's fused kernel serves every case but two. Dropout on a CPU: it falls back to a path that spends most of its time on random
numbers and on looking for queries that see nothing, so that case is written out here. A mask on a GPU: its fastest kernel takes
none, so without dropout adcore/kernels/triton/masked_attention.py does it where Triton is chosen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.kernels.choice import use_triton
from adcore.kernels.dropout import dropout


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, p: float = 0.0) -> Tensor:
    """Scaled dot-product attention: (B, heads, N, d), (B, heads, M, d) x 2 -> (B, heads, N, d).

    visible  (N, M) bool, True where a query may look; every query must see a key. None: everywhere
    p        probability with which an attention weight is dropped
    """
    if p == 0 and use_triton(q, "attention"):
        from adcore.kernels.triton import masked_attention as fused
        operands = _under_autocast(q, k, v)
        if fused.takes(*operands, visible):
            return fused.masked_attention(*operands, visible)
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, visible, p)
    return _dropped(q, k, v, visible, p)


def _under_autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype in which automatic mixed precision would have torch compute them."""
    if torch.is_autocast_enabled(q.device.type) and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v


def _dropped(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))                 # (B*heads, N, d)
    if visible is None:
        logits = torch.bmm(q, k.transpose(1, 2))                                         # (B*heads, N, M)
    else:
        hidden = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
        logits = torch.baddbmm(hidden, q, k.transpose(1, 2))
    weights = dropout(logits.softmax(-1), p)
    return torch.bmm(weights, v).unflatten(0, heads)
