"""Learnable parameters and floating-point operations of Table S7 (uniad2022): counted, and derived from formulas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adcore.papers.uniad2022.transformer import Attention
from adcore.papers.uniad2022.uniad import UniADConfig, UniADNetwork


def parameters(module: nn.Module) -> int:
    """Number of all trainable values of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def linear_weights(module: nn.Module) -> int:
    """Number of weights of linear maps alone, without biases, norms, queries and positions."""
    count = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            count += part.weight.numel()
        elif isinstance(part, Attention):
            count += part.in_weight.numel()
    return count


def flops(module: nn.Module, *inputs: Tensor) -> int:
    """Operations of one forward pass as torch counts them: two per multiply-add of convolutions and matrix products."""
    # Parameters are detached: torch's counter fails on views of parameters that need gradients.
    values = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, values, inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class UniADCost:
    """Multiply-adds of UniAD on one image, by part, from the formula.

    backbone   the whole backbone with its classifier, which comes nearest to the paper's count
    linear     N tokens through every linear map: N * linear weights
    attention  queries times keys and attention weights times values: 2 * N^2 * D for each attention
    """

    backbone: int
    linear: int
    attention: int

    @property
    def flops(self) -> int:
        """Floating-point operations, two per multiply-add."""
        return 2 * (self.backbone + self.linear + self.attention)


def uniad_cost(network: UniADNetwork, config: UniADConfig, backbone_flops: int) -> UniADCost:
    """Cost of a UniAD network from the formula; `backbone_flops` as counted by `flops`."""
    tokens = len(network.position.rows) * len(network.position.columns)
    attentions = config.encoder_layers + 2 * config.decoder_layers
    return UniADCost(backbone_flops // 2, tokens * linear_weights(network), attentions * 2 * tokens**2 * config.hidden)


def padim_parameters(channels: int = 550, h: int = 56, w: int = 56) -> int:
    """Number of values that PaDiM learns: a mean and a covariance of `channels` features at each of h x w positions."""
    return h * w * (channels + channels**2)
