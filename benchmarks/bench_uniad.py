"""Time a UniAD training step on cached features against the same network with torch.nn.MultiheadAttention.

    python benchmarks/bench_uniad.py --batch 16 --rounds 5

The peer is what one would write first, and how the published code calls it: MultiheadAttention with a float mask, which
returns its weights. Both networks get the same weights and must give the same output before they are timed in turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import RESULTS, alternate, machine, merge, row
from torch import Tensor, nn

from adcore.losses import mse
from adcore.models.uniad import Attention, UniADConfig, UniADNetwork, jitter_features
from adcore.training import seeded


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
        return self.attention(query, key, value, attn_mask=mask)[0]


def networks(config: UniADConfig, channels: int, grid: tuple[int, int]) -> tuple[UniADNetwork, UniADNetwork]:
    """Ours and the plain one, with equal weights."""
    with seeded(0):
        ours = UniADNetwork(channels, grid, config)
        plain = UniADNetwork(channels, grid, config)
    plain.load_state_dict(ours.state_dict())
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Attention):
                setattr(module, name, Plain(child))
    return ours, plain


def stepper(network: UniADNetwork, tokens: Tensor, config: UniADConfig) -> Callable[[], None]:
    """One training step: jitter, forward, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    network.train()

    def step() -> None:
        loss = mse(tokens, network(jitter_features(tokens, config.jitter_scale)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config, grid = UniADConfig(), (14, 14)
    ours, plain = networks(config, 272, grid)
    tokens = torch.randn(arguments.batch, 196, 272, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((ours.eval()(tokens) - plain.eval()(tokens)).abs().max())
    if difference > 1e-4:
        print(f"the networks differ by {difference:g}; not timed", file=sys.stderr)
        return 1
    step, plain_step = stepper(ours, tokens, config), stepper(plain, tokens, config)
    step(), plain_step()
    ours_s, peer_s = alternate(step, plain_step, arguments.rounds)
    print(f"UniAD training step, batch {arguments.batch}, {machine()}: nn.MultiheadAttention {peer_s:.2f} s, "
          f"adcore {ours_s:.2f} s, ratio {peer_s / ours_s:.2f}, {1 / ours_s:.2f} steps a second; "
          f"outputs equal to {difference:.0e}")
    size = f"batch {arguments.batch}, 196 tokens, 272 channels"
    merge(arguments.out, [row("uniad.training_step", "torch nn.MultiheadAttention, eager", ours_s, peer_s, arguments.rounds,
                              size, ["torch"])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
