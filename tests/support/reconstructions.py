"""A small UniAD, and a network whose output is given."""

from __future__ import annotations

from torch import nn

from adcore.models import UniAD, UniADConfig


class Answer(nn.Module):
    """Returns the tokens it was built with; without any, a copy of its input."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, tokens):
        return tokens if self.answer is None else self.answer


def small():
    return UniAD(UniADConfig(backbone="efficientnet_lite0", taps=(2, 4), image_size=64, hidden=16, heads=2, ffn=16,
                             encoder_layers=1, decoder_layers=1, neighbors=3))
