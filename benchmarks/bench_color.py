"""Time adcore.papers.artola2024.color.transport_uint8 against other libraries' linear color transport, uint8 to uint8.

    python benchmarks/bench_color.py --side 1024 --rounds 7

All compute the moments of both images, the Monge-Kantorovich map, and the mapped image, rounded and clipped to 0..255. Peers
use pixels (N, 3) in float64; the change of layout is not timed, the conversion from uint8 and back is. Each timed call follows
an untimed one of the same code, as in a loop over images.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import Tensor

from adcore.papers.artola2024.color import transport_uint8

Bytes = npt.NDArray[np.uint8]


def photograph(side: int, seed: int) -> Tensor:
    """(1, 3, H, W) uint8 with correlated channels; few pixels are clipped."""
    g = torch.Generator().manual_seed(seed)
    mix = 0.1 * torch.randn(3, 3, generator=g)
    noise = torch.randn(3, side * side, generator=g)
    return (255 * (mix @ noise + 0.5).clamp(0, 1)).byte().reshape(1, 3, side, side)


def as_bytes(colors: npt.NDArray[np.floating]) -> Bytes:
    return np.round(255 * np.clip(colors, 0, 1)).astype(np.uint8)


def pot(source: Bytes, target: Bytes) -> Callable[[], Bytes]:
    from ot.da import LinearTransport
    u, v = source.reshape(-1, 3), target.reshape(-1, 3)

    def run() -> Bytes:
        colors = u / 255
        return as_bytes(LinearTransport().fit(Xs=colors, Xt=v / 255).transform(Xs=colors)).reshape(source.shape)
    return run


def color_matcher(source: Bytes, target: Bytes) -> Callable[[], Bytes]:
    from color_matcher import ColorMatcher
    return lambda: as_bytes(ColorMatcher().transfer(src=source / 255, ref=target / 255, method="mkl"))


def disagreement(ours: Tensor, theirs: Bytes) -> str | None:
    """Compares images (1, 3, H, W) and (H, W, 3); a difference of 1 is rounding."""
    steps = int((ours[0].permute(1, 2, 0).int() - torch.from_numpy(theirs).int()).abs().max())
    return f"differs by {steps} steps of 255" if steps > 1 else None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=1024, help="of both images, in pixels (default 1024)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds per peer (default 7)")
    parser.add_argument("--small", action="store_true", help="images of 16 x 16")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    side = 16 if arguments.small else arguments.side
    u, v = photograph(side, 0), photograph(side, 1)
    source, target = (np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()) for image in (u, v))
    peers = [Peer("POT LinearTransport", lambda: pot(source, target), ("pot",)),
             Peer("color-matcher, mkl", lambda: color_matcher(source, target), ("color-matcher",))]
    merge(arguments.out, race("color.transport_uint8", f"{side}x{side}", lambda: transport_uint8(u, v), peers, disagreement,
                              arguments.rounds, setting=contextlib.nullcontext))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
