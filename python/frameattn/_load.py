"""Loads the compiled operators once. A missing or mismatched build explains itself instead of failing in the linker."""

import sysconfig

import torch

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
_AGAIN = f"install its wheel for what is here, or from its source folder run `{_REBUILD}` (docs/install.md)"


def _of_torch(version: str, cuda: str | None) -> str:
    """What a library of one torch and another must have in common: "2.13", "2.13 with CUDA 13"."""
    minor = ".".join(version.split(".")[:2])
    return f"{minor} with CUDA {cuda.split('.')[0]}" if cuda else minor


try:
    from frameattn._build import CUDA_VERSION, PYTHON_ABI, TORCH_VERSION
except ImportError:
    raise ImportError(
        f"frameattn is not built: from its source folder run `{_REBUILD}` (or `pip install --no-build-isolation -e .`)."
    ) from None

# A library without CUDA code runs beside a CUDA torch, too.
_needed, _found = (
    _of_torch(TORCH_VERSION, CUDA_VERSION),
    _of_torch(torch.__version__, CUDA_VERSION and torch.version.cuda),
)
if _needed != _found:
    raise ImportError(f"frameattn was built for torch {_needed}, but torch {torch.__version__} is installed: {_AGAIN}.")

try:
    from frameattn import _C
except ImportError as error:
    _why = str(error)
    if (_of_this_python := sysconfig.get_config_var("SOABI")) != PYTHON_ABI:
        _why = f"it was built for {PYTHON_ABI}, and this Python is {_of_this_python}"
    raise ImportError(f"frameattn's compiled library does not load ({_why}): {_AGAIN}.") from error


def operator_namespace() -> str:
    """Where in ``torch.ops`` the operators are: "frameattn", unless the build was given another name."""
    return _C.OPERATOR_NAMESPACE


def build_info() -> dict[str, str]:
    """What the compiled library was built with: torch, compiler, C++ standard, OpenMP, CUDA (or why not)."""
    return dict(_C.build_info())


def cuda_devices() -> list[str]:
    """One line for each NVIDIA GPU that the compiled library sees; empty in a CPU build."""
    return _C.cuda_devices()


def current_device_loads_sm90a() -> bool | None:
    """Whether the current device can run the kernels with Hopper's own instructions; None if the build has none."""
    return _C.current_device_loads_sm90a()


def kernel_choice() -> str:
    """Which CUDA kernels may run, by FRAMEATTN_KERNELS: "checked" (or not set), "composed" or "unchecked"."""
    return _C.kernel_choice()


def only_portable_kernels() -> bool:
    """Whether kernels for one architecture alone are left out, by FRAMEATTN_KERNELS."""
    return _C.only_portable_kernels()


def trusted_kernels(capability: int) -> dict[str, list[str]]:
    """CUDA kernels that passed their checks on GPUs of a compute capability (90 is 9.0), and in which dtypes."""
    return _C.trusted_kernels(capability)


def library_path() -> str:
    """The file of the compiled library."""
    return _C.__file__
