"""A plugin of pytest that runs these tests without a GPU: make test-cuda-on-emulator.

Tensors stay on the CPU, whose operators are replaced by those of build/operators/operators.so: the host code of the
CUDA operators, with their kernels in the emulator. Tests marked `gpu_only` are left out.
"""

import ctypes
import functools
from pathlib import Path

import pytest
import torch

import frameattn

LIBRARY = Path(__file__).parents[3] / "build" / "operators" / "operators.so"
FACTORIES = ("empty", "ones", "zeros", "full", "arange", "randn")


def pytest_configure(config: pytest.Config) -> None:
    if not frameattn.build_info()["cuda"].startswith("no"):
        raise pytest.UsageError(
            "frameattn is a CUDA build, whose kernels are launched on a GPU: FRAMEATTN_CUDA=0 make build"
        )
    config.is_emulated = True
    ctypes.CDLL(frameattn.library_path(), ctypes.RTLD_GLOBAL)  # the library calls functions of the package
    torch.ops.load_library(LIBRARY)

    torch.Tensor.cuda = lambda tensor, *arguments, **keywords: tensor
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.autocast = functools.partial(_autocast, torch.autocast)
    torch.cuda.synchronize = lambda *arguments: None
    torch.cuda.mem_get_info = lambda *arguments: (2**36, 2**36)  # large tensors are hardly written to


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("gpu_only")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _on_cpu(factory):
    def create(*arguments, **keywords):
        if keywords.get("device") == "cuda":
            keywords["device"] = "cpu"
        return factory(*arguments, **keywords)

    return create


def _autocast(autocast, device, *arguments, **keywords):
    return autocast("cpu", *arguments, **keywords)
