"""Prints what a compiler needs to build and link a library for the torch of this interpreter."""

from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

LIBRARIES = ("torch", "torch_cpu", "c10")
ROOT = Path(__file__).resolve().parents[2]

folders = [*include_paths(), ROOT / "csrc/include"]
print(*(f"-isystem {folder}" for folder in folders), *(f"-L{folder}" for folder in library_paths()), end=" ")
print(*(f"-l{library}" for library in LIBRARIES))
