"""Layers around the operators: parameters, and the ways FrameDiT (arXiv 2603.09721) combines Matrix Attention."""

from frameattn.modules.attention import SpatialAttention, TemporalAttention
from frameattn.modules.linear import Linear
from frameattn.modules.local_global import FUSE_MODES, LocalGlobalAttention
from frameattn.modules.matrix_attention import MatrixAttention
from frameattn.modules.matrix_linear import BIAS_TYPES, U_TYPES, MatrixLinear
from frameattn.modules.vmonarch_attention import ATTENTIONS, VMonarchAttention

__all__ = [
    "ATTENTIONS",
    "BIAS_TYPES",
    "FUSE_MODES",
    "U_TYPES",
    "Linear",
    "LocalGlobalAttention",
    "MatrixAttention",
    "MatrixLinear",
    "SpatialAttention",
    "TemporalAttention",
    "VMonarchAttention",
]
