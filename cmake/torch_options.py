"""Prints the CMake options that find the torch of this Python: cmake -B build $(python cmake/torch_options.py)

A CUDA torch brings the CUDA toolkit into every CMake project that uses it, also one without CUDA sources. Its package
finds neither a toolkit behind a wrapper script called nvcc nor the libnvrtc that pip installs, so both are named here.
"""

import os
from pathlib import Path
from runpy import run_path

import torch


def torch_options() -> list[str]:
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    if torch.version.cuda is None:
        return options
    toolkit = run_path(str(Path(__file__).parents[1] / "setup.py"))["find_cuda_toolkit"]()
    if toolkit is None:
        raise SystemExit(
            f"torch {torch.__version__} is a CUDA build: its CMake package needs the CUDA toolkit; nvcc was not found. "
            "Install the toolkit, set CUDA_HOME, or use a CPU build of torch. The Python package needs none of this."
        )
    options.append(f"-DCUDA_TOOLKIT_ROOT_DIR={toolkit}")
    options.append(f"-DTORCH_CUDA_ARCH_LIST={os.environ['TORCH_CUDA_ARCH_LIST'].replace(' ', ';')}")
    packages = Path(torch.__file__).parents[1] / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "lib"
    options += [f"-DCUDA_nvrtc_LIBRARY={path}" for path in sorted(packages.glob("libnvrtc.so*"))[:1]]
    return options


if __name__ == "__main__":
    print(*torch_options())
