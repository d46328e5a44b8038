"""Linear: torch.nn.Linear, which on x86-64 takes float32 through our matrix_linear."""

import torch
from torch import Tensor, nn

from frameattn import functional
from frameattn.modules.block_gemm import has_block_gemm


class Linear(nn.Linear):
    """y = x W^T + b with the parameters, arguments and results of torch.nn.Linear.

    torch multiplies float32 matrices by MKL, which takes its AVX2 path on AMD CPUs: 90 GFLOP/s on one thread of a Zen
    5, where matrix_linear has 220. bfloat16 torch gives to oneDNN, which is at least as fast as matrix_linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        float32 = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (float32 and has_block_gemm(x) and x.dim() > 1):
            return super().forward(x)
        return functional.matrix_linear(x, None, self.weight.t(), None if self.bias is None else self.bias.unsqueeze(0))
