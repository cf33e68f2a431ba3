"""Time adcore.kernels.nearest, the search of PatchCore's scores, against other exact searches in float32.

    python benchmarks/bench_nearest.py --size 784x100000x1024 --rounds 5

A size is queries x bank x dimensions. The index of faiss, a copy of the bank, is built before the timing; ours uses the bank.
The peer in torch alone has all distances in memory at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import nearest

SIZE, SMALL = "784x100000x1024", "5x70x8"


def parsed(size: str) -> tuple[int, int, int]:
    """Queries, entries and dimensions of a size.

    Raises:
        ParameterError: not three numbers of at least 1.
    """
    words = size.split("x")
    if len(words) != 3 or not all(word.isdigit() and int(word) for word in words):
        raise ParameterError(f"size '{size}' is not queries x bank x dimensions, such as {SIZE}")
    n, m, d = map(int, words)
    return n, m, d


def faiss_flat(queries: Tensor, bank: Tensor) -> Callable[[], Tensor]:
    import faiss
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    asked = queries.numpy()
    return lambda: torch.from_numpy(index.search(asked, 1)[0][:, 0]).sqrt()


def disagreement(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> str | None:
    """Compares distances (n,), relative to the largest."""
    error = float((ours - theirs).abs().max() / theirs.max().clamp_min(1e-30))
    return f"differs by {error:g} of the largest distance" if not error <= tolerance else None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default=SIZE, help=f"queries x bank x dimensions (default {SIZE})")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per peer (default 5)")
    parser.add_argument("--small", action="store_true", help="a size of milliseconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    size = SMALL if arguments.small else arguments.size
    n, m, d = parsed(size)
    g = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(n, d, generator=g), torch.randn(m, d, generator=g)
    peers = [Peer("faiss IndexFlatL2", lambda: faiss_flat(queries, bank), ("faiss-cpu",)),
             Peer("torch cdist and min", lambda: lambda: torch.cdist(queries, bank).min(1).values)]
    merge(arguments.out, race("kernels.nearest", size, lambda: nearest(queries, bank)[0][:, 0], peers, disagreement,
                              arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
