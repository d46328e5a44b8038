"""Without a GPU, or with a CPU build, these tests skip and say why.

The kernels themselves are tested: FRAMEATTN_KERNELS=unchecked keeps our operators from falling back to torch's where a
kernel fails the check at its first use.
"""

import pytest
import torch

import frameattn
from benchmarks.gpu_check.cases import has_kernels_of_its_own


def reason_to_skip() -> str | None:
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if frameattn.build_info()["cuda"].startswith("no"):
        return f"frameattn is a CPU build: {frameattn.build_info()['cuda']}"
    return None


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "is_emulated"):  # on_emulator.py
        return
    if reason := reason_to_skip():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc):
    """VMonarch's forward by the kernels of this GPU's architecture alone, and by those for all GPUs."""
    if metafunc.module.__name__ in ("test_spatial_step", "test_vmonarch"):
        metafunc.fixturenames.append("forward_kernels")
        both = hasattr(metafunc.config, "is_emulated") or has_kernels_of_its_own()
        metafunc.parametrize("forward_kernels", ["own", "portable"] if both else ["portable"], indirect=True)


@pytest.fixture
def forward_kernels(request, monkeypatch, kernels_without_a_first_check):
    if request.param == "portable":
        monkeypatch.setenv("FRAMEATTN_KERNELS", "portable,unchecked")


@pytest.fixture(autouse=True)
def kernels_without_a_first_check(monkeypatch):
    monkeypatch.setenv("FRAMEATTN_KERNELS", "unchecked")
