"""Stage: which GPU, driver, CUDA, torch and compiler this is. Without a GPU that torch sees the run ends here."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu_check import parse_stage

SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
OPTIONAL = ("numpy", "triton", "opt_einsum", "pytest", "hypothesis", "matplotlib", "ninja", "setuptools")
TOOLS = ("nvcc", "g++", "make", "compute-sanitizer", "ncu")


def main() -> int:
    options, record = parse_stage(__doc__)
    if importlib.util.find_spec("torch") is None:
        return fail(record, f"torch is not installed in {sys.executable}")
    import torch

    values = {**software(), "gpu": None}
    record.save(**values)
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} sees no CUDA device"
        return record.skip(reason) if options.dry_run else fail(record, reason)
    values |= describe_gpu()
    record.save(**values, table=[f"{name:<20} {value}" for name, value in values.items()])
    print(*record.values["table"], sep="\n")
    return 0


def fail(record, reason: str) -> int:
    record.save(failed=reason)
    print(reason)
    return 1


def software() -> dict[str, Any]:
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "cores": len(os.sched_getaffinity(0)),
        "packages": {name: package_version(name) for name in OPTIONAL},
        "tools": {name: shutil.which(name) for name in TOOLS},
    }


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_gpu() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "capability": 10 * gpu.major + gpu.minor,
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        **smi(),
    }


def smi() -> dict[str, str | None]:
    """Driver and clocks, idle or not, as they are at this moment; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(SMI_FIELDS)
    return dict(zip(SMI_FIELDS, (word.strip() for word in answer.split(",")), strict=False))


def architecture(major: int, minor: int) -> str:
    """TORCH_CUDA_ARCH_LIST of the image that a full build would run on this GPU, and no other.

    setup.py builds 8.0, 9.0a and 12.0: sm_80 code is what 8.6 and 8.9 run, 9.0a has Hopper's own instructions. GPUs
    for which it has PTX alone, 10.0, get machine code of their own here.
    """
    return {8: "8.0", 9: "9.0a", 12: "12.0"}.get(major, f"{major}.{minor}")


if __name__ == "__main__":
    sys.exit(main())
