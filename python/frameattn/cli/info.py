"""Print versions, the build and the devices: paste it into a bug report.

examples:
  frameattn info
  python -m frameattn info
"""

import argparse
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

import frameattn
from frameattn._errors import UsageError
from frameattn._load import current_device_loads_sm90a, kernel_choice, only_portable_kernels, trusted_kernels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: info takes none")
    sections = {
        "frameattn": {"version": frameattn.__version__, "library": frameattn.library_path()},
        "built with": frameattn.build_info(),
        "running on": running_on(),
        "optional packages": optional_packages(),
    }
    width = max(len(name) for values in sections.values() for name in values)
    for title, values in sections.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:<{width}}  {value}")
    return 0


def running_on() -> dict[str, str]:
    """Interpreter, torch, processor and GPUs of this process."""
    try:
        choice = kernel_choice()
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    values = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "processor": f"{_processor_name()}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    architectures = frameattn.build_info()["cuda architectures"]
    if not torch.cuda.is_available():
        loads = current_device_loads_sm90a()
        return {**values, "gpu": "torch sees none", "sm_90a kernels": describe_sm90a(architectures, loads, None)}
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        values[f"gpu {i}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        values[f"kernels on gpu {i}"] = describe_kernels(choice, gpu.major, gpu.minor)
        with torch.cuda.device(i):
            loads = current_device_loads_sm90a()
        values[f"sm_90a kernels on gpu {i}"] = describe_sm90a(architectures, loads, (gpu.major, gpu.minor))
        if only_portable_kernels():
            values[f"sm_90a kernels on gpu {i}"] += "; not used: FRAMEATTN_KERNELS=portable"
    return values


def describe_kernels(choice: str, major: int, minor: int) -> str:
    """Which of the package's CUDA kernels run on a GPU of a compute capability."""
    if choice == "composed" or major < 8:
        return "none: " + ("FRAMEATTN_KERNELS=composed" if major >= 8 else "they need compute capability 8.0")
    if choice == "unchecked":
        return "all, none of them checked: FRAMEATTN_KERNELS=unchecked"
    by_dtypes: dict[str, list[str]] = {}
    for kernel, dtypes in trusted_kernels(10 * major + minor).items():
        by_dtypes.setdefault(" and ".join(sorted(dtypes)), []).append(kernel)
    trusted = "; ".join(f"{', '.join(kernels)} in {dtypes}" for dtypes, kernels in by_dtypes.items())
    checked = "compared with torch's operators at their first use"
    return f"trusted are {trusted}; others are {checked}" if trusted else f"all are {checked}"


def describe_sm90a(architectures: str, loads: bool | None, capability: tuple[int, int] | None) -> str:
    """Whether the kernels with Hopper's own instructions are in a build for these architectures (loads is None where
    they are not), and whether they run on a GPU of this compute capability, or on None."""
    if loads is None:
        cpu = architectures == "none"
        return "not in this build: " + ("it is a CPU build" if cpu else "9.0a is not among its architectures")
    if loads:
        usable = "yes"
    elif capability is None:
        usable = "no: there is no GPU"
    elif capability == (9, 0):
        usable = "no: the driver does not load them, or makes no tensor maps"
    else:
        usable = f"no: the GPU has compute capability {capability[0]}.{capability[1]}"
    return f"in this build, usable here: {usable}"


def optional_packages() -> dict[str, str]:
    """The packages of the extras ``video``, ``text`` and ``lora``, and their versions."""
    try:
        requirements = requires("frameattn") or []
    except PackageNotFoundError:  # run from a source folder that was never installed
        requirements = []
    names = re.findall(r"^([\w.-]+).*extra == ['\"](?:video|text|lora)\b", "\n".join(requirements), re.MULTILINE)
    return {name: _version(name) for name in names if name != "frameattn"}  # one extra names another


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
