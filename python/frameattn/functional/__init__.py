"""The operators as documented Python functions. Each calls ``torch.ops.frameattn``: torch.compile sees through it."""

from frameattn.functional import _flops  # noqa: F401  registers the formulas
from frameattn.functional.activation import gelu_tanh
from frameattn.functional.matrix_attention import matrix_attention, matrix_linear
from frameattn.functional.modulation import gated_add, modulated_layer_norm
from frameattn.functional.vmonarch_attention import vmonarch_attention

__all__ = ["gated_add", "gelu_tanh", "matrix_attention", "matrix_linear", "modulated_layer_norm", "vmonarch_attention"]
