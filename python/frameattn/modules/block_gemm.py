"""Where the operators stand on a block GEMM and beat what torch has for the same formula."""

import torch
from torch import Tensor

_IN_THIS_CPU = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def has_block_gemm(x: Tensor) -> bool:
    """x is on an x86-64 CPU: other CPUs have no block GEMM, and GPUs have kernels of their own."""
    return _IN_THIS_CPU and x.device.type == "cpu"
