"""Computations that decide the speed of the methods: one a file, in torch; in triton/ the same for GPUs, and `choice` picks."""

from adcore.kernels.attention import masked_attention
from adcore.kernels.choice import kernels, use_triton
from adcore.kernels.dropout import Dropout, dropout, relu_dropout
from adcore.kernels.gmm import gmm
from adcore.kernels.kcenter import kcenter
from adcore.kernels.nearest import nearest

__all__ = ["Dropout", "dropout", "gmm", "kcenter", "kernels", "masked_attention", "nearest", "relu_dropout", "use_triton"]
