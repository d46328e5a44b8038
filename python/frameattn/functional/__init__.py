"""The operators as documented Python functions. Each calls ``torch.ops.frameattn``: torch.compile sees through it."""

from frameattn.functional import _flops  # noqa: F401  registers the formulas
from frameattn.functional.matrix_attention import matrix_attention, matrix_linear
from frameattn.functional.vmonarch_attention import vmonarch_attention

__all__ = ["matrix_attention", "matrix_linear", "vmonarch_attention"]
