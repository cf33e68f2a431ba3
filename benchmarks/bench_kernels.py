"""Time each Triton kernel on a GPU against torch, eager and compiled, and print the fraction of the GPU's limit it reaches.

    python benchmarks/bench_kernels.py --rounds 20

The limit of a computation is the larger of two times: to read and write each of its numbers once, and to do its additions and
multiplications, at speeds that are measured first with a copy and a matrix product. The results of torch and of the kernel must
agree before they are timed in turns. A kernel that is not faster is to be removed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side import RESULTS, alternate, merge, row
from torch import Tensor

from adcore.experiments.provenance import machine
from adcore.kernels import gmm, kcenter, kernels, masked_attention, nearest
from adcore.kernels.color import moments
from adcore.kernels.kcenter import TRITON_POOL
from adcore.papers.artola2024.color import transport_uint8
from adcore.papers.uniad2022.uniad import neighbor_mask

COLUMNS = ("kernel", "size", "ms", "eager", "compiled", "limit", "fraction", "bound by", "verdict")


@dataclass(frozen=True)
class Cost:
    """The least that a computation needs: bytes to and from memory, each counted once, and additions plus multiplications."""

    moved: int
    flops: int

    def limit(self, bandwidth: float, speed: float) -> tuple[float, str]:
        """Seconds at `bandwidth` bytes and `speed` operations per second, and which of the two is slower."""
        return max((self.moved / bandwidth, "memory"), (self.flops / speed, "arithmetic"))


@dataclass(frozen=True)
class Case:
    """A call of a public function, which runs in Triton or in torch as `kernels` selects."""

    name: str
    size: str
    call: Callable[[], Any]
    cost: Cost
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-3


def attention_cost(batch: int, heads: int, n: int, d: int, itemsize: int, backward: bool) -> Cost:
    """q, k, v in and one out, two products; backward q, k, v, out and its gradient in, three out, five products."""
    tensors, products = (4 + 8, 2 + 5) if backward else (4, 2)
    return Cost(tensors * batch * heads * n * d * itemsize + n * n, products * 2 * batch * heads * n * n * d)


def nearest_cost(n: int, m: int, d: int, itemsize: int) -> Cost:
    """Queries and bank in, a distance and an index out; one product."""
    return Cost((n + m) * d * itemsize + n * (itemsize + 8), 2 * n * m * d)


def kcenter_cost(k: int, pool: int, d: int, itemsize: int) -> Cost:
    """The pool once per pick: a difference, a square and a sum for each number. The passes over all points are not counted."""
    return Cost(k * pool * (d * itemsize + 8), 3 * k * pool * d)


def gmm_cost(n: int, k: int, d: int, itemsize: int) -> Cost:
    """Points and mixture in; log-density, responsibilities and gradient out; two products per component."""
    return Cost((2 * n * d + n + n * k + k * (d * d + d + 1)) * itemsize, 2 * 2 * n * k * d * d)


def color_cost(pixels: int, mapped: bool) -> Cost:
    """Images of 3 bytes per pixel in, 3 sums and 6 products; mapped: in again and out, 3 rows of 3 products and a sum."""
    return Cost(pixels * 3 * (3 if mapped else 1), pixels * (3 + 12 + (18 if mapped else 0)))


def cases(device: torch.device, *, batch: int = 64, grid: int = 14, queries: int = 8 * 784, bank: int = 16384,
          points: int = 160_000, side: int = 512) -> list[Case]:
    """The sizes of a UniAD step, of PatchCore's bank and search, of the contrastive method's mixture and negatives."""
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)
    n, found = grid * grid, []
    visible = ~neighbor_mask(grid, grid, 7).to(device)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (random(batch, n, 8, 32).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3))
        weight = random(batch, 8, n, 32).to(dtype)

        def step(q: Tensor = q, k: Tensor = k, v: Tensor = v, weight: Tensor = weight) -> tuple[Tensor, ...]:
            return torch.autograd.grad(masked_attention(q, k, v, visible), (q, k, v), weight)

        def forward(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            with torch.no_grad():
                return masked_attention(q, k, v, visible)
        size = f"{batch} x 8 heads x {n} x 32, {str(dtype).removeprefix('torch.')}"
        near = 1e-3 if dtype == torch.float32 else 5e-2
        for name, call, backward in (("masked_attention", forward, False), ("masked_attention, with backward", step, True)):
            cost = attention_cost(batch, 8, n, 32, dtype.itemsize, backward)
            found.append(Case(name, size, call, cost, dtype, near))
    asked, known = random(queries, 1024), random(bank, 1024)
    found.append(Case("nearest", f"{queries} of {bank}, d 1024", lambda: nearest(asked, known)[0],
                      nearest_cost(queries, bank, 1024, 4)))
    cloud = random(points, 128)
    picks = max(1, points // 100)
    found.append(Case("kcenter", f"{picks} of {points}, d 128", lambda: kcenter(cloud, picks, progress=False),
                      kcenter_cost(picks, min(TRITON_POOL, points), 128, 4), tolerance=float("inf")))  # rounding may swap picks
    u, factors = random(max(1, points // 4), 64).requires_grad_(), torch.eye(64, device=device).expand(20, 64, 64).contiguous()
    mixture = torch.zeros(20, device=device).log_softmax(0), random(20, 64), factors
    found.append(Case("gmm, with gradient", f"{len(u)} points, K 20, d 64",
                      lambda: torch.autograd.grad(gmm(u, *mixture)[0].sum(), u)[0], gmm_cost(len(u), 20, 64, 4)))
    photographs = (255 * torch.rand(max(1, batch // 2), 3, side, side, generator=g)).byte().to(device)
    target = photographs.flip(0) // 2
    pixels, size = len(photographs) * side * side, f"{len(photographs)} x {side} x {side}, uint8"
    found.append(Case("color moments", size, lambda: moments(photographs)[1], color_cost(pixels, False)))
    found.append(Case("color transport", size, lambda: transport_uint8(photographs, target[:1]), color_cost(pixels, True),
                      tolerance=1.0))
    return found


def difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of tensors or tuples of them."""
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def run_as(choice: str, call: Callable[[], Any], times: int = 1) -> Callable[[], Any]:
    """A function that makes the call `times` times with the kernels set to `choice`, and waits for the GPU."""
    def timed() -> Any:
        with kernels(choice):
            for _ in range(times):
                result = call()
        torch.cuda.synchronize()
        return result
    return timed


def limits(device: torch.device, rounds: int = 10) -> tuple[float, dict[torch.dtype, float]]:
    """Bytes per second of a large copy, read and write, and operations per second of a large product, by dtype."""
    def fastest(call: Callable[[], Any]) -> float:
        timed = run_as("torch", call)
        timed()
        return min(alternate(timed, timed, rounds))
    source = torch.zeros(2**28, dtype=torch.float32, device=device)
    to = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / fastest(lambda: to.copy_(source))
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device=device).to(dtype)
        speeds[dtype] = 2 * 8192**3 / fastest(lambda a=a: a @ a)
    return bandwidth, speeds


def as_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells under COLUMNS, each column as wide as its widest cell."""
    everything = [COLUMNS, *lines]
    widths = [max(len(line[column]) for line in everything) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in everything)


def line(case: Case, ours: float, eager: float, compiled: float | None, limit: tuple[float, str]) -> tuple[str, ...]:
    """A row of the table; times in seconds, None for a peer that could not be timed."""
    best = min(eager, eager if compiled is None else compiled)
    times = ("-" if seconds is None else f"{1e3 * seconds:.3f}" for seconds in (ours, eager, compiled, limit[0]))
    return (case.name, case.size, *times, f"{limit[0] / ours:.0%}", limit[1],
            f"{best / ours:.2f}x faster" if ours < best else f"{ours / best:.2f}x slower: remove it")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds per peer (default 20)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("the Triton kernels are timed on a GPU, and torch finds none here: run this where torch.cuda.is_available()",
              file=sys.stderr)
        return 2
    device = torch.device("cuda")
    bandwidth, speeds = limits(device)
    print(f"{machine(device)}: {bandwidth / 1e9:.0f} GB/s, " + ", ".join(f"{dtype} {speed / 1e12:.0f} Tflop/s"
                                                                        for dtype, speed in speeds.items()))
    lines, rows = [], []
    for case in cases(device):
        error = difference(run_as("triton", case.call)(), run_as("torch", case.call)())
        if error > case.tolerance:
            print(f"{case.name}, {case.size}: results differ by {error:g}; not timed", file=sys.stderr)
            return 1
        times = 1 if case.name == "kcenter" else 10
        ours = run_as("triton", case.call, times)
        seconds: dict[str, tuple[float, float]] = {}
        for peer, call in (("torch eager", case.call), ("torch.compile", torch.compile(case.call))):
            theirs = run_as("torch", call, times)
            try:
                theirs()
            except Exception as problem:  # torch.compile does not support it, or there is no compiler
                print(f"{case.name}: {peer} not timed ({type(problem).__name__})")
                continue
            ours_s, peer_s = (value / times for value in alternate(ours, theirs, arguments.rounds))
            seconds[peer] = ours_s, peer_s
            rows.append(row(f"kernels.{case.name}", peer, ours_s, peer_s, arguments.rounds, case.size, ["torch", "triton"])
                        | {"machine": machine(device)})
        compiled = seconds["torch.compile"][1] if "torch.compile" in seconds else None
        lines.append(line(case, *seconds["torch eager"], compiled, case.cost.limit(bandwidth, speeds[case.dtype])))
    print(as_table(lines))
    merge(arguments.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
