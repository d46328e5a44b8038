"""Linear: torch.nn.Linear, which takes through our matrix_linear what torch does slowly.

On x86-64 those are products (`_dtypes_that_torch_multiplies_slowly`), on CUDA the gradient of the bias: torch sums the
rows of grad_out in a launch of its own, at a third of a copy's rate on an H100, where cublasLt has the sums beside the
product for the weight's gradient. Compiled code is torch's there: inductor joins that sum with what stands before it.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from frameattn import functional
from frameattn.modules.block_gemm import has_block_gemm


def _dtypes_that_torch_multiplies_slowly() -> frozenset[torch.dtype]:
    """Of this x86-64 CPU.

    float32 torch gives to MKL, which on AMD CPUs with AVX-512 takes its AVX2 path: 90 GFLOP/s on one thread of a Zen 5,
    where matrix_linear has 220. On AVX2 alone MKL is the faster one, by up to 30 %. 16 bits torch gives to oneDNN where
    that has instructions for them, and is at least as fast as matrix_linear; else to loops of its own: 8 to 10 GFLOP/s
    on an EPYC with AVX2, where matrix_linear has 70.
    """
    slow = {torch.float32} if torch.backends.cpu.get_cpu_capability() == "AVX512" else set()
    has_onednn = torch.backends.mkldnn.is_available()
    if not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        slow.add(torch.bfloat16)
    if not (has_onednn and torch.ops.mkldnn._is_mkldnn_fp16_supported()):
        slow.add(torch.float16)
    return frozenset(slow)


_SLOW = _dtypes_that_torch_multiplies_slowly()


def _are_plain(*tensors: Tensor | None) -> bool:
    """No subclasses (DTensor, quantized weights), torch.func or forward mode, of which a C++ operator knows nothing."""
    return (
        all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)
        # Neither a truth value nor `is None`: dynamo knows of what peek_interpreter_stack returns only the type.
        and not isinstance(torch._C._functorch.peek_interpreter_stack(), torch._C._functorch.CInterpreter)
        and forward_ad._current_level < 0
    )


class Linear(nn.Linear):
    """y = x W^T + b with the parameters, arguments and results of torch.nn.Linear.

    Within torch.func, in forward mode, and where x or a parameter is of a subclass of Tensor it is torch's layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        takes = self._sums_bias_on_cuda if x.is_cuda else self._multiplies_slowly
        if not (x.dim() > 1 and takes(x) and _are_plain(x, self.weight, self.bias)):
            return super().forward(x)
        return functional.matrix_linear(x, None, self.weight.t(), None if self.bias is None else self.bias.unsqueeze(0))

    def _multiplies_slowly(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled("cpu"):
            slow = torch.get_autocast_dtype("cpu") in _SLOW
        else:
            slow = x.dtype == self.weight.dtype and x.dtype in _SLOW
        return slow and has_block_gemm(x)

    def _sums_bias_on_cuda(self, x: Tensor) -> bool:
        if self.bias is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        autocast = torch.is_autocast_enabled("cuda")
        if not autocast and x.dtype != self.weight.dtype:
            return False
        if (
            x.numel() < x.size(-1) ** 2
        ):  # few rows: what is saved is less than the copy of a gradient that lies by columns
            return False
        dtype = torch.get_autocast_dtype("cuda") if autocast else x.dtype
        return dtype.itemsize == 2 and self.weight.requires_grad and self.bias.requires_grad
