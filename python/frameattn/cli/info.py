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
from frameattn.cli.errors import UsageError


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
    values = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "processor": f"{_processor_name()}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    if not torch.cuda.is_available():
        return {**values, "gpu": "torch sees none"}
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        values[f"gpu {i}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    return values


def optional_packages() -> dict[str, str]:
    """The packages of the extra ``video`` and their versions."""
    try:
        requirements = requires("frameattn") or []
    except PackageNotFoundError:  # run from a source folder that was never installed
        requirements = []
    names = [re.match(r"[\w.-]+", line)[0] for line in requirements if re.search(r"extra == ['\"]video", line)]
    return {name: _version(name) for name in names}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
