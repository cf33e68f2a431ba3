"""Computations that decide the speed of the methods: one a file, a fast path and a plain reference side by side."""

from adcore.kernels.attention import masked_attention
from adcore.kernels.dropout import Dropout, dropout
from adcore.kernels.gmm import gmm
from adcore.kernels.kcenter import kcenter
from adcore.kernels.nearest import nearest

__all__ = ["Dropout", "dropout", "gmm", "kcenter", "masked_attention", "nearest"]
