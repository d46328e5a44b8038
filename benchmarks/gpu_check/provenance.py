"""What was run: the commit, and git's own hash of each source, since a copied tree may have no .git.

gpu_report compares the hashes with its checkout: results of other sources than those of a commit are of no use.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import KERNELS
from csrc import source_digest

SOURCES = ("csrc", "python/frameattn", "tools/emulator", "tests/python/cuda", "benchmarks/gpu_check", "setup.py")
BUILT = {"python/frameattn/_build.py"}
VERSIONS = {  # where a family of kernels has its version, by the first word of their names
    "frame": ("csrc/frame_attention/cuda/kernels/frame_attention.h", "kFrameKernelVersion"),
    "flash": ("csrc/monarch_attention/cuda/kernels/flash_attention.h", "kFlashKernelVersion"),
    "modulation": ("csrc/modulation/cuda/kernels/modulation_params.h", "kModulationKernelVersion"),
}


def describe(root: Path) -> dict[str, Any]:
    return {"commit": commit(root), "sources": source_hashes(root), "kernel_versions": kernel_versions(root)}


def commit(root: Path) -> str:
    """The commit of the checkout, with "-dirty" if files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a tree without .git
        return "unknown"


def source_hashes(root: Path) -> dict[str, str]:
    """Path -> the name that git gives to its content."""
    hashes = source_digest.source_hashes(root, SOURCES)
    return {path: name for path, name in hashes.items() if path not in BUILT}


def committed_hashes(root: Path, revision: str) -> dict[str, str] | None:
    """The same of a commit; None where git does not know it."""
    command = ["git", "-C", str(root), "ls-tree", "-r", revision, "--", *SOURCES]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode != 0:
        return None
    hashes = {}
    for line in listing.stdout.splitlines():
        (_, _, name), path = line.split("\t")[0].split(), line.split("\t")[1]
        if Path(path).suffix in source_digest.SUFFIXES:
            hashes[path] = name
    return hashes


def kernel_versions(root: Path) -> dict[str, int]:
    """Of each kernel: a recorded check holds for one version."""
    families = {family: constant_of(root / header, name) for family, (header, name) in VERSIONS.items()}
    return {kernel: families[kernel.split("_")[0]] for kernel in KERNELS}


def constant_of(header: Path, name: str) -> int:
    found = re.search(rf"\b{name}\s*=\s*(\d+)\s*;", header.read_text())
    if not found:
        raise SystemExit(f"gpu_check: {header} defines no {name}")
    return int(found[1])
