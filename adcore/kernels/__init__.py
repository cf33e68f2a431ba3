"""Kernels: the computations that take most of the methods' time, one per file.

Each file begins with the plain torch code of its equations; the public function after it chooses a backend (`choice`).
`cpu/` contains fast paths in torch, `triton/` kernels for GPUs.
"""

from adcore.kernels.attention import masked_attention
from adcore.kernels.choice import kernels, use_plain, use_triton
from adcore.kernels.dropout import Dropout, dropout, relu_dropout
from adcore.kernels.gmm import gmm
from adcore.kernels.kcenter import kcenter
from adcore.kernels.nearest import nearest

__all__ = ["Dropout", "dropout", "gmm", "kcenter", "kernels", "masked_attention", "nearest", "relu_dropout", "use_plain",
           "use_triton"]
