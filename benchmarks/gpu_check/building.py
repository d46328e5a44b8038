"""Stage: the package in place, and the programs that run the kernels without torch, on the emulator and on the GPU.

All at once: most of the time is g++ reading torch's headers, and the programs include none. Each part has a verdict of
its own, since the stages after this one need different parts.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu_check import ROOT, parse_stage, show
from benchmarks.gpu_check.machine import architecture

INFO = [sys.executable, "-m", "frameattn", "info"]


def commands(arch: str) -> dict[str, list[str]]:
    # No pip: it would install into an environment that is not ours. PYTHONPATH leads the stages to the built package.
    return {
        "extension": [sys.executable, "setup.py", "build_ext", "--inplace"],
        "emulator-program": ["make", "-j8", "emulator-program"],
        "device-program": ["make", "-j8", "device-program", f"GPU={machine_code(arch)}"],
    }


def main() -> int:
    options, record = parse_stage(__doc__)
    settings = build_settings(options.dry_run)
    print(" ".join(f"{name}={value}" for name, value in settings.items()))
    listed = {name: show(command) for name, command in commands(settings["TORCH_CUDA_ARCH_LIST"]).items()}
    if options.dry_run:
        return dry_run(record, listed["emulator-program"])
    environment = {**os.environ, **settings}
    with ThreadPoolExecutor() as pool:
        built = dict(zip(listed, pool.map(lambda command: build(command, environment), listed.values()), strict=True))
    for name, (output, returncode, seconds) in built.items():
        print(f"---- {name}: exit status {returncode} after {seconds:.0f} s\n{output}", flush=True)
    parts = {name: "passed" if returncode == 0 else "failed" for name, (_, returncode, _) in built.items()}
    if parts["extension"] == "passed":
        info, returncode, _ = build(INFO, environment)
        parts["extension"] = "passed" if returncode == 0 else "failed"
        record.values["info"] = info.splitlines()
        print(info)
    failed = [name for name, status in parts.items() if status == "failed"]
    record.save(parts=parts, settings=settings, seconds={name: seconds for name, (_, _, seconds) in built.items()})
    if failed:
        record.save(failed=f"{', '.join(failed)} failed")
    return int(bool(failed))


def machine_code(arch: str) -> str:
    """nvcc's word for what TORCH_CUDA_ARCH_LIST calls 9.0a."""
    return f"sm_{arch.replace('.', '')}"


def build_settings(dry_run: bool) -> dict[str, str]:
    import torch

    if dry_run and not torch.cuda.is_available():
        arch = "<of the GPU>"
    else:
        arch = architecture(*torch.cuda.get_device_capability())
    jobs = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    return {"FRAMEATTN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch, "MAX_JOBS": jobs}


def build(command: list[str], environment: dict[str, str]) -> tuple[str, int, float]:
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        return str(error), 127, 0.0
    return done.stdout, done.returncode, time.monotonic() - start


def dry_run(record, emulator: list[str]) -> int:
    """The emulator's program is the one part that needs neither nvcc nor a GPU."""
    _, unknown, _ = build([*emulator, "--dry-run"], dict(os.environ))
    if unknown:
        return record.skip(f"make does not know how to make {emulator[-1]}")
    output, returncode, seconds = build(emulator, dict(os.environ))
    print(f"emulator-program: exit status {returncode} after {seconds:.0f} s\n{output}")
    record.save(parts={"emulator-program": "passed" if returncode == 0 else "failed"})
    if returncode:
        record.save(failed="emulator-program failed")
    return returncode


if __name__ == "__main__":
    sys.exit(main())
