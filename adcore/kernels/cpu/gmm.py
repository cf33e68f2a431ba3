"""Density of a Gaussian mixture and its gradient, one block of points at a time. Symbols as in adcore/kernels/gmm.py.

The whitened points of all components take K times the memory of the points, so they exist for one block only. Within a block
they are a single matrix product, with m the mean of the component means:

    [y_1 ... y_K] = [1, u - m] [(m - mu_1) U_1 ... (m - mu_K) U_K]
                               [         U_1   ...            U_K]

The product is made in a few groups of columns, which leaves out most of the zeros below the diagonals of U_k. If a mean is far
from m for the width of its component, the sum would lose digits, and u - mu_k is computed first instead. h uses the whitened
points again, so it is computed in the same pass.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

NARROWEST = 32               # columns for which a separate product pays off
CACHED_BYTES = 8 * 2**20     # of a block: enough for the threads of a CPU
BATCHED_BYTES = 256 * 2**20  # of a block on a GPU
FAR = 64.0                   # whitened distance of a mean from m; in float32 a whitened point then loses 1e-5


def gmm(points: Tensor, constants: Tensor, means: Tensor, factors: Tensor, graded: bool,
        chunk_bytes: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density (n,), responsibilities (n, K) and, if `graded`, h (n, d), else an empty tensor.

    points (n, d), constants (K,) as `log_constants` gives them, means (K, d), factors (K, d, d)
    """
    n, d = points.shape
    k = len(means)
    if chunk_bytes is None:
        chunk_bytes = CACHED_BYTES if points.device.type == "cpu" else BATCHED_BYTES
    rows = max(1, chunk_bytes // max(1, k * d * points.element_size()))
    middle = means.mean(0)
    offsets = torch.bmm((middle - means)[:, None], factors)                                             # (K, 1, d)
    near = k > 0 and bool(offsets.norm(dim=2).max() <= FAR)
    parts = _column_parts(factors, offsets)
    # The same buffers for all blocks, because new memory takes time.
    buffers = [points.new_empty(min(rows, n) if near else 0, matrix.shape[1]) for _, _, matrix in parts]
    log_density, responsibilities = points.new_empty(n), points.new_empty(n, k)
    h = torch.empty_like(points, memory_format=torch.contiguous_format) if graded else points.new_empty(0)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        u = points[block]
        if near:
            centered = torch.cat([u.new_ones(len(u), 1), u - middle], 1)                                # (rows, 1 + d)
            flat = [torch.mm(centered[:, :1 + end], matrix, out=buffer[:len(u)])
                    for (_, end, matrix), buffer in zip(parts, buffers, strict=True)]
        else:
            whole = torch.bmm(u - means[:, None], factors).transpose(0, 1)                              # (rows, K, d)
            flat = [whole[..., begin:end].reshape(len(u), -1) for begin, end, _ in parts]
        whitened = [part.view(len(u), k, -1) for part in flat]
        lengths = sum(torch.linalg.vector_norm(part, dim=2).square_() for part in whitened)
        joint = torch.add(constants, lengths, alpha=-0.5)                                               # (rows, K)
        log_density[block] = joint.logsumexp(1)
        weights = torch.softmax(joint, 1, out=responsibilities[block])
        if graded:
            h[block] = 0
            for (_, end, matrix), part, y in zip(parts, flat, whitened, strict=True):
                y.mul_(weights[:, :, None])                                                             # also changes `part`
                h[block, :end].addmm_(part, matrix[1:].T, alpha=-1)
    return log_density, responsibilities, h


def _column_parts(factors: Tensor, offsets: Tensor) -> list[tuple[int, int, Tensor]]:
    """Columns begin..end of all factors side by side, under the offsets' columns: (begin, end, matrix (1 + end, K * width)).

    Below row `end` a triangular factor is zero in these columns: two parts save a quarter of the product, four three eighths.
    """
    k, d = len(factors), factors.shape[-1]
    count = min(4, max(1, d // NARROWEST))
    edges = [round(i * d / count) for i in range(count + 1)]
    return [(begin, end, torch.cat([offsets[:, 0, begin:end].reshape(1, -1),
                                    factors[:, :end, begin:end].transpose(0, 1).reshape(end, k * (end - begin))]))
            for begin, end in itertools.pairwise(edges)]
