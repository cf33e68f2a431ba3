"""Time feature extraction against the same network in eager torch, called in the usual way.

    python benchmarks/bench_features.py --batch 16 --rounds 5

Wide ResNet-50 at 256 pixels (three stages) and EfficientNet-B4 at 224 (four stages), random weights, float32 throughout. The
peer is the network of torchvision or timm with its own feature extractor. Ours runs as in a loop over a data set, which keeps
its memory from batch to batch (adcore/memory.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import timm.models
import torch
from side_by_side import RESULTS, Peer, merge, race, status_of
from torch import Tensor

from adcore.features import FeatureExtractor
from adcore.memory import kept_memory

CASES = (("wide_resnet50_2", (1, 2, 3), 256), ("efficientnet_b4", (1, 2, 3, 4), 224))
SMALL = (("resnet18", (1, 2), 64),)


def extracted(extractor: FeatureExtractor, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return extractor(images)


def eager(extractor: FeatureExtractor, images: Tensor) -> Callable[[], list[Tensor]]:
    """The network as its library builds it, with our weights, in torch's default memory layout."""
    network = extractor.backbone.build().eval()
    plain = timm.models.create_feature_extractor(network, return_nodes=list(extractor.nodes))
    plain.load_state_dict(extractor.network.state_dict())

    @torch.inference_mode()
    def call() -> list[Tensor]:
        found = plain((images - extractor.mean) / extractor.std)
        return [found[node] for node in extractor.nodes]
    return call


def disagreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """What differs by more than float32 rounding."""
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    return f"differs by {worst:.1e} of the largest feature" if worst > 1e-4 else None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images at a time (default 16, as extraction over a data set)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a size of milliseconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    rows = []
    for name, taps, side in SMALL if arguments.small else CASES:
        extractor = FeatureExtractor(name, taps, "random")
        images = torch.rand(arguments.batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        peer = Peer("torch, eager", partial(eager, extractor, images), ("torchvision", "timm"))
        rows += race("features.FeatureExtractor", f"{name}, batch {arguments.batch}, {side}x{side}",
                     partial(extracted, extractor, images), [peer], disagreement, arguments.rounds, setting=kept_memory)
    merge(arguments.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
