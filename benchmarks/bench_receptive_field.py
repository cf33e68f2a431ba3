"""Time the receptive fields of the four taps of Wide ResNet-50 against one forward and one backward pass per tap.

    python benchmarks/bench_receptive_field.py --size 1024 --rounds 3

Both compute the exact gradient of the network, which has random weights here, with respect to the image; they must agree before
they are timed. The peer computes no gradient of the weights, so it is faster than `loss.backward()`. Ours computes each tap on
the part of the image that affects it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from adcore.papers.heckler2023.receptive_field import TABLE_2, measure

Gradients = dict[str, npt.NDArray[np.float32]]


def one_pass_a_tap(network: nn.Module, taps: tuple[str, ...], image: torch.Tensor) -> Gradients:
    """Norm over colors of the gradient of each tap's center, scaled to a maximum of 1."""
    found = {}
    for tap in taps:
        pixels = image.clone().requires_grad_()
        features = create_feature_extractor(network, [tap])(pixels)[tap]
        y, x = ((n - 1) // 2 for n in features.shape[2:])
        (gradient,) = torch.autograd.grad(features[0, :, y, x].mean(), pixels)
        norm = gradient[0].norm(dim=0)
        found[tap] = (norm / norm.max()).numpy()
    return found


def disagreement(ours: Gradients, theirs: Gradients) -> str | None:
    """Differences above half of the paper's threshold, in words: in float32, rounding in fifty layers changes the sign of a few
    ReLU inputs. The tests compare both in float64, to 1e-6."""
    for tap, gradient in theirs.items():
        difference = float(np.abs(ours[tap] - gradient).max())
        if difference > 5e-3:
            return f"differs by {difference:.1e} of the largest gradient at {tap}"
    return None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="wide_resnet50_2", choices=sorted(TABLE_2))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a size of milliseconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    network = models.get_model(arguments.network).eval()
    side, taps = (192, TABLE_2[arguments.network][:2]) if arguments.small else (arguments.size, TABLE_2[arguments.network])
    image = torch.randn(1, 3, side, side)

    def ours() -> Gradients:
        return {tap: field.gradient for tap, field in measure(network, taps, image=image).items()}

    def prepared() -> Callable[[], Gradients]:
        return partial(one_pass_a_tap, network, taps, image)

    size = f"{arguments.network}, {len(taps)} taps, {side}x{side}"
    peer = Peer("one forward and one backward pass a tap", prepared, ("torchvision",))
    merge(arguments.out, race("receptive_field.measure", size, ours, [peer], disagreement, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
