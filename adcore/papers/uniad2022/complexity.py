"""Learnable parameters and floating-point operations, counted and derived (Table S7 of uniad2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from adcore.papers.uniad2022.uniad import UniADConfig, UniADNetwork


def parameters(module: nn.Module) -> int:
    """Trainable numbers of a module, all of them."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def linear_weights(module: nn.Module) -> int:
    """Weights of linear maps alone: matrices that multiply features. No biases, norms, queries or positions."""
    from adcore.papers.uniad2022.transformer import Attention

    count = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            count += part.weight.numel()
        elif isinstance(part, Attention):
            count += part.in_weight.numel()
    return count


def flops(module: nn.Module, *inputs: Tensor) -> int:
    """Operations of one forward pass as torch counts them: two for each multiply-add of convolutions and products."""
    # Detached parameters: torch's counter trips over views of parameters that would need gradients.
    values = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, values, inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class UniADCost:
    """Multiply-adds of UniAD on one image, by part, from the formula; `flops` counts two for each.

    backbone   the whole backbone, classifier included, as the paper's count seems to have it
    linear     N tokens through every linear map: N * linear weights
    attention  queries by keys and weights by values: 2 * N^2 * D for each of the attentions
    """

    backbone: int
    linear: int
    attention: int

    @property
    def flops(self) -> int:
        """Two operations a multiply-add."""
        return 2 * (self.backbone + self.linear + self.attention)


def uniad_cost(network: UniADNetwork, config: UniADConfig, backbone_flops: int) -> UniADCost:
    """The cost of a UniAD network by the formula; `backbone_flops` as counted by `flops`."""
    tokens = len(network.position.rows) * len(network.position.columns)
    attentions = config.encoder_layers + 2 * config.decoder_layers
    return UniADCost(backbone_flops // 2, tokens * linear_weights(network), attentions * 2 * tokens**2 * config.hidden)


def padim_parameters(channels: int = 550, h: int = 56, w: int = 56) -> int:
    """Numbers that PaDiM learns: a mean and a covariance of `channels` features at each of h x w positions."""
    return h * w * (channels + channels**2)
