"""Loads a kernel of make hub-kernel beside the installed frameattn and compares them: a program of test_hub_kernel.py,
in a process of its own since nothing unloads operators.

python hub_kernel_beside.py FOLDER kernel|frameattn      (which of the two is imported first)
"""

import importlib
import sys
from pathlib import Path

import torch
from kernels import get_local_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

FOLDER, FIRST = Path(sys.argv[1]), sys.argv[2]
if FIRST == "kernel":
    kernel, frameattn = get_local_kernel(FOLDER), importlib.import_module("frameattn")
else:
    frameattn, kernel = importlib.import_module("frameattn"), get_local_kernel(FOLDER)
functional = importlib.import_module("frameattn.functional")
modules = importlib.import_module("frameattn.modules")

B, T, N, D, H = 2, 4, 24, 64, 2
CALLS = {
    "matrix_linear": ([(B, T, N, D), (N, 8), (D, 48), (8, 48)], {}),
    "matrix_attention": ([(B, T, 8, D)] * 3, {"row_heads": 2, "col_heads": 4}),
    "vmonarch_attention": ([(B, H, T * N, 32)] * 3, {"frames": T, "return_lse": True}),
    "modulated_layer_norm": ([(B, T, N, D), (B, D), (B, D)], {}),
    "gated_add": ([(B, T, N, D), (B, D), (B, T, N, D)], {}),
    "gelu_tanh": ([(B, N, D)], {}),
}


class Called(TorchDispatchMode):
    """The namespaces of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


def forward_and_backward(function, name: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes, options = CALLS[name]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    outputs = function(*inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(outputs, inputs, [torch.randn_like(out) for out in outputs])
    return [*outputs, *grads]


def operators_of(namespace: str) -> set[str]:
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return {operator for space, _, operator in names if space == namespace}


namespace = kernel.__name__
assert namespace != "frameattn" and kernel.__file__.startswith(str(FOLDER.resolve())), kernel
assert Path(kernel.library_path()).parent == Path(kernel.__file__).parent
assert Path(frameattn.library_path()) != Path(kernel.library_path())
assert operators_of(namespace) == operators_of("frameattn") != set()
assert set(CALLS) == set(functional.__all__) < set(kernel.__all__)
assert get_local_kernel(FOLDER) is kernel

for name in CALLS:
    ours, its = getattr(functional, name), getattr(kernel, name)
    with Called() as called, FlopCounterMode(display=False) as flops:
        expected = forward_and_backward(ours, name)
    with Called() as called_by_kernel, FlopCounterMode(display=False) as flops_of_kernel:
        found = forward_and_backward(its, name)
    assert "frameattn" in called.namespaces and namespace not in called.namespaces, called.namespaces
    assert namespace in called_by_kernel.namespaces and "frameattn" not in called_by_kernel.namespaces
    assert flops.get_total_flops() == flops_of_kernel.get_total_flops()
    assert len(expected) == len(found) > 1
    for tensor, same in zip(expected, found, strict=True):
        assert tensor.abs().max() > 0
        torch.testing.assert_close(same, tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")

for name in ("matrix_linear", "vmonarch_attention"):
    compiled = torch.compile(getattr(kernel, name), fullgraph=True)
    expected = forward_and_backward(getattr(functional, name), name)
    for tensor, same in zip(expected, forward_and_backward(compiled, name), strict=True):
        torch.testing.assert_close(same, tensor, msg=lambda text, name=name: f"{name}, compiled: {text}")

torch.manual_seed(0)
layer = modules.MatrixAttention(D, N, 8, 16, num_row_heads=2, num_col_heads=4)
layer_of_kernel = kernel.modules.MatrixAttention(D, N, 8, 16, num_row_heads=2, num_col_heads=4)
assert type(layer_of_kernel).__module__ == f"{namespace}.modules.matrix_attention"
layer_of_kernel.load_state_dict(layer.state_dict())
x = torch.randn(B, T, N, D)
torch.testing.assert_close(layer_of_kernel(x), layer(x), rtol=0, atol=0)
print("the same")
