"""Which file of csrc may include which: CONTRIBUTING.md has the rules in words."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ("shared", "trust", "device", "gemm", "frame_attention")  # each may include those before it, families all
FOLDERS = {"": {""}, "cpu": {"", "cpu"}, "cuda": {"", "cuda", "kernels"}, "kernels": {"kernels"}}
EXCEPTIONS = {
    # The kernels' ways out of csrc.
    ("csrc/shared/kernels/ptx.h", "tools/emulator/ptx_host.h"),
    ("csrc/shared/kernels/ptx_sm90.h", "tools/emulator/ptx_host_sm90.h"),
    # Under #ifdef: what a CUDA build says of itself.
    ("csrc/device/build_info.cpp", "csrc/device/cuda/device_info.h"),
    ("csrc/device/build_info.cpp", "csrc/gemm/cuda/gemm.h"),
}


def place(path: str) -> tuple[str, str]:
    """Family and kind of a file: csrc/<family>/<file>, csrc/<family>/cuda/kernels/<file>."""
    family, *folders = path.removeprefix("csrc/").split("/")[:-1]
    return family, folders[-1] if folders else ""


def may_include(file: str, header: str) -> bool:
    family, folder = place(file)
    if not header.startswith("csrc/"):
        return not (header.startswith("tools/") or (folder == "kernels" and re.match("torch/|ATen/|c10/", header)))
    other, its_folder = place(header)
    others = SHARED[: SHARED.index(family)] if family in SHARED else SHARED
    if folder == "kernels":
        others = ("shared",)
    return its_folder in FOLDERS[folder] and other in (family, *others)


def test_files_include_what_the_floor_plan_lets_them():
    broken = set()
    for path in ROOT.glob("csrc/*/**/*.*"):
        file = path.relative_to(ROOT).as_posix()
        if place(file)[0] in ("bindings", "include", "units") or path.suffix == ".md":
            continue
        headers = re.findall(r'^ *# *include [<"]([^>"]+)', path.read_text(), re.MULTILINE)
        broken |= {(file, header) for header in headers if not may_include(file, header)}
    assert broken == EXCEPTIONS
