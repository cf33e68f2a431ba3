"""Time a UniAD training step on cached features against the same network with torch.nn.MultiheadAttention.

    python benchmarks/bench_uniad.py --batch 32 --rounds 5

The peer is the usual code, and how the published code calls it: MultiheadAttention with a float mask, which returns its
weights, and torch's own dropout and AdamW. Both networks have the same weights and must give the same output before they are
timed in turns, each timed step after an untimed one. Ours keeps its memory between steps, as in `adcore.training.train`. The
same step under torch.compile, where the compiler fuses torch's attention and dropout, and under bfloat16 autocast on processors
that support it, is timed against ours as well; the minute for compilation is not counted. `Reconstruction.fit` uses neither.

The cost of a training is written to training_cost.csv: seconds for several numbers of images and of epochs, both linear.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import RESULTS, alternate, machine, merge, row
from torch import Tensor, nn

from adcore.experiments.provenance import commit
from adcore.files import write_text
from adcore.kernels import Dropout
from adcore.memory import kept_memory
from adcore.papers.uniad2022.losses import mse
from adcore.papers.uniad2022.transformer import Attention, FeedForward
from adcore.papers.uniad2022.uniad import UniADConfig, UniADNetwork, jitter_features
from adcore.training import Run, seeded, train


class Plain(nn.Module):
    """An `Attention` as nn.MultiheadAttention, with its weights."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        dim = ours.out.in_features
        self.attention = nn.MultiheadAttention(dim, ours.heads, ours.dropout, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(ours.in_weight)
            self.attention.in_proj_bias.copy_(ours.in_bias)
            self.attention.out_proj.load_state_dict(ours.out.state_dict())

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        mask = None if visible is None else torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
        return self.attention(query.expand_as(key), key, value, attn_mask=mask)[0]


def networks(config: UniADConfig, channels: int, grid: tuple[int, int]) -> tuple[UniADNetwork, UniADNetwork]:
    """Ours and the plain one, with equal weights."""
    with seeded(0):
        ours = UniADNetwork(channels, grid, config)
        plain = UniADNetwork(channels, grid, config)
    plain.load_state_dict(ours.state_dict())
    return ours, plainly(plain)


def plainly(network: UniADNetwork) -> UniADNetwork:
    """The network with torch's attention and dropout in place of ours, and the same weights."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Attention):
                setattr(module, name, Plain(child))
            elif isinstance(child, FeedForward):
                setattr(module, name, nn.Sequential(*(nn.Dropout(x.p) if isinstance(x, Dropout) else x for x in child)))
            elif isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return network


def stepper(network: UniADNetwork, tokens: Tensor, config: UniADConfig, *, fused: bool = True, amp: bool = False,
            compiled: bool = False) -> Callable[[], None]:
    """One training step: jitter, forward, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay, fused=fused)
    network.train()
    forward = torch.compile(network) if compiled else network

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = mse(tokens, forward(jitter_features(tokens, config.jitter_scale)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
    return step


def training_cost(path: Path, config: UniADConfig, channels: int, grid: tuple[int, int]) -> None:
    """Seconds of trainings for several numbers of images and epochs, one csv row each."""
    lines = ["images,epochs,seconds,seconds_an_image_pass,machine,torch,commit"]
    for images, epochs in ((16, 1), (32, 1), (64, 1), (16, 2), (16, 4)):
        with seeded(0):
            network, data = UniADNetwork(channels, grid, config), torch.randn(images, channels, *grid)
        optimizer = torch.optim.AdamW(network.parameters(), config.lr, fused=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, config.lr_drop)

        def loss(features: Tensor, network: UniADNetwork = network) -> Tensor:
            tokens = features.flatten(2).transpose(1, 2)
            return mse(tokens, network(jitter_features(tokens, config.jitter_scale)))
        start = time.perf_counter()
        train(network, loss, data, optimizer, scheduler, epochs=epochs, batch_size=8, seed=0, clip_norm=config.clip_norm,
              run=Run(progress=False))
        seconds = time.perf_counter() - start
        origin = f'"{machine()}",{torch.__version__},{commit()}'
        lines.append(f"{images},{epochs},{seconds:.2f},{seconds / images / epochs:.4f},{origin}")
        print(lines[-1])
    write_text(path, "\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config, grid, rounds = UniADConfig(), (14, 14), arguments.rounds
    ours, plain = networks(config, 272, grid)
    tokens = torch.randn(arguments.batch, 196, 272, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((ours.eval()(tokens) - plain.eval()(tokens)).abs().max())
    if difference > 1e-4:
        print(f"the networks differ by {difference:g}; not timed", file=sys.stderr)
        return 1
    size = f"batch {arguments.batch}, 196 tokens, 272 channels"
    peers = {"torch nn.MultiheadAttention, eager": stepper(plain, tokens, config, fused=False),
             "the same step under torch.compile": stepper(ours, tokens, config, compiled=True)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # on other processors a step takes minutes
        peers["the same step in bfloat16 autocast"] = stepper(ours, tokens, config, amp=True)
    step = stepper(ours, tokens, config)
    step()
    for title, peer in peers.items():
        try:
            peer()
        except Exception as error:  # torch.compile needs a compiler, which some machines lack
            print(f"{title}: not timed ({type(error).__name__})")
            continue
        ours_s, peer_s = alternate(step, peer, rounds, setting=kept_memory)
        print(f"UniAD training step, {size}, {machine()}: {title} {peer_s:.2f} s, adcore {ours_s:.2f} s, "
              f"ratio {peer_s / ours_s:.2f}, {1 / ours_s:.2f} steps a second")
        merge(arguments.out, [row("uniad.training_step", title, ours_s, peer_s, rounds, size, ["torch"])])
    print(f"outputs equal to {difference:.0e}")
    training_cost(arguments.out.with_name("training_cost.csv"), config, 272, grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
