"""Readable definitions in plain PyTorch, for any dtype: documentation, oracle of the tests and baseline in one.

They are differentiable any number of times and work under torch.func, which the compiled operators are not.
"""

from frameattn.reference.activation import gelu_tanh
from frameattn.reference.matrix_attention import matrix_attention, matrix_linear
from frameattn.reference.modulation import gated_add, modulated_layer_norm
from frameattn.reference.vmonarch_attention import monarch_factors, monarch_matrix, vmonarch_attention

__all__ = [
    "gated_add",
    "gelu_tanh",
    "matrix_attention",
    "matrix_linear",
    "modulated_layer_norm",
    "monarch_factors",
    "monarch_matrix",
    "vmonarch_attention",
]
