"""frameattn: Matrix Attention and VMonarch attention for video diffusion transformers, as PyTorch operators.

Importing the package registers ``torch.ops.frameattn.*``. The documented functions are in ``frameattn.functional``,
readable definitions in ``frameattn.reference``, layers in ``frameattn.modules``, networks in ``frameattn.models``.
``frameattn.adapters`` puts VMonarch attention into video models of other libraries, ``frameattn.parallel`` shares a
video out among processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from frameattn._load import build_info, cuda_devices, library_path
from frameattn._version import find_version
from frameattn.functional import matrix_attention, matrix_linear, vmonarch_attention

__version__ = find_version()


if TYPE_CHECKING:
    from frameattn import adapters, parallel
else:

    def __getattr__(name: str):
        if name in ("adapters", "parallel"):  # at their first use: they take torch's compiler, which takes a second
            return import_module(f"frameattn.{name}")
        raise AttributeError(f"module 'frameattn' has no attribute {name!r}")


__all__ = [
    "__version__",
    "adapters",
    "build_info",
    "cuda_devices",
    "library_path",
    "matrix_attention",
    "matrix_linear",
    "parallel",
    "vmonarch_attention",
]
