"""Linear: torch.nn.Linear, which on x86-64 takes float32 through our matrix_linear."""

import torch
from torch import Tensor, nn

from frameattn import functional

# torch multiplies float32 matrices by MKL, which takes its AVX2 path on AMD CPUs: 90 GFLOP/s on one thread of a Zen 5,
# where matrix_linear has 220 on oneDNN's block GEMM. With AVX2 alone both are equal, and so are they in bfloat16, where
# torch takes oneDNN too. Other CPUs have no block GEMM.
_BLOCK_GEMM = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class Linear(nn.Linear):
    """y = x W^T + b with the parameters, arguments and results of torch.nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        ours = _BLOCK_GEMM and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.dim() > 1
        if not ours or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return functional.matrix_linear(x, None, self.weight.t(), None if self.bias is None else self.bias.unsqueeze(0))
