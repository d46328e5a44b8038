"""Stage `build` of --prebuilt: are the package and the programs that are there of these sources, and for this machine?

Nothing is built. What a build says of itself is in python/frameattn/_build.py (setup.py) and in the files beside each
program (tools/emulator/Makefile). docs/gpu_check.md says how to build elsewhere.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path
from runpy import run_path

import torch

from benchmarks.gpu_check import DEVICE_PROGRAM, EMULATOR_PROGRAM, ROOT, parse_stage
from benchmarks.gpu_check.building import INFO, machine_code
from benchmarks.gpu_check.machine import architecture
from csrc.source_digest import source_digest

PACKAGE = ROOT / "python" / "frameattn"
PARTS = ("extension", "emulator-program", "device-program")
OF_PACKAGE, OF_PROGRAMS = ("csrc", "setup.py"), ("csrc", "tools/emulator")
NOT_BUILT, OTHER_SOURCES = "was not built", "was built of other sources"


def fault_of_extension(package: Path, digest: str, arch: str | None) -> str:
    """Empty if it can be used. arch: what the GPU needs, None where there is no GPU to ask."""
    file = package / "_build.py"
    built = run_path(str(file)) if file.exists() else {}
    if not built or not list(package.glob("_C.*")):
        return NOT_BUILT
    if built.get("SOURCE_DIGEST") != digest:  # if they agree, this setup.py has written the rest
        return OTHER_SOURCES
    abi, architectures = sysconfig.get_config_var("SOABI"), built["CUDA_ARCHITECTURES"]
    if built["PYTHON_ABI"] != abi:
        return f"is for {built['PYTHON_ABI']}, this is {abi}"
    if built["TORCH_VERSION"] != torch.__version__:
        return f"was built for torch {built['TORCH_VERSION']}, this is {torch.__version__}"
    if architectures == "none":
        return "is a CPU build"
    if arch and arch not in architectures.replace("+PTX", "").replace(";", " ").split():
        return f"has machine code for {architectures}, the GPU needs {arch}"
    return fault_of_start(INFO)


def fault_of_program(program: Path, digest: str, gpu: str | None = None) -> str:
    if not program.exists():
        return NOT_BUILT
    if said_of(program, "sources") != digest:
        return OTHER_SOURCES
    if gpu and said_of(program, "gpu") != gpu:
        return f"has machine code for {said_of(program, 'gpu')}, the GPU needs {gpu}"
    return fault_of_start([str(program), "--list"])


def said_of(program: Path, what: str) -> str:
    file = program.with_suffix(f".{what}")
    return file.read_text().strip() if file.exists() else ""


def fault_of_start(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        return f"does not start: {error.strerror}"
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return f"does not start: {' '.join(last)}" if done.returncode else ""


def faults(arch: str | None) -> dict[str, str]:
    of_programs = source_digest(ROOT, OF_PROGRAMS)
    found = (
        fault_of_extension(PACKAGE, source_digest(ROOT, OF_PACKAGE), arch),
        fault_of_program(EMULATOR_PROGRAM, of_programs),
        fault_of_program(DEVICE_PROGRAM, of_programs, arch and machine_code(arch)),
    )
    return dict(zip(PARTS, found, strict=True))


def main() -> int:
    _, record = parse_stage(__doc__)  # a dry run is told all but whether it fits the GPU
    # What holds if this stage does not get to its end: then nothing is taken.
    record.save(parts=dict.fromkeys(PARTS, "failed"), faults=dict.fromkeys(PARTS, "was not looked at"))
    found = faults(architecture(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None)
    for part, fault in found.items():
        print(f"{part} {fault or 'is of these sources'}")
    wrong = {part: fault for part, fault in found.items() if fault}
    record.save(parts={part: "failed" if fault else "passed" for part, fault in found.items()}, faults=wrong)
    if wrong:
        record.save(failed="; ".join(f"{part} {fault}" for part, fault in wrong.items()))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
