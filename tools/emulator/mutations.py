"""Breaks the CUDA kernels in one place at a time and sees whether the emulated cases notice: make check-emulator.

  python tools/emulator/mutations.py [NAME ...]      only mutations whose names contain one of these
  python tools/emulator/mutations.py --part 2/3      the second of every three

A mutation replaces one piece of text of one file. Only the broken kernel is compiled, everything else is linked as it
is. It counts as caught if a case fails, or does not end. The unbroken kernels must pass all cases first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flash_backward_sm90_mutations import FLASH_BACKWARD_SM90
from flash_mutations import FLASH
from flash_sm90_mutations import FLASH_SM90
from frame_mutations import FRAMES
from modulation_mutations import MODULATION
from mutation import Mutation

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
MUTATIONS = FRAMES + FLASH + FLASH_SM90 + FLASH_BACKWARD_SM90 + MODULATION
TIMEOUT = 120


def choose(wanted: Sequence[str], part: str) -> list[Mutation]:
    named = [m for m in MUTATIONS if not wanted or any(text in m.name for text in wanted)]
    first, parts = map(int, part.split("/"))
    return named[first - 1 :: parts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", metavar="NAME")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="default: %(default)s, which is all")
    parser.add_argument("--known-sound", action="store_true", help="the unbroken kernels have passed all cases before")
    options = parser.parse_args(arguments)
    wanted, chosen = options.wanted, choose(options.wanted, options.part)
    if not chosen:
        print(f"mutations.py: no mutation is called {wanted}", file=sys.stderr)
        return 2
    for program in ("emulator", "sanitized"):
        subprocess.run(["make", "-s", "-C", ROOT / "tools/emulator", f"-j{jobs()}", program], check=True)
    if not options.known_sound:
        print("unbroken kernels ...", flush=True)
        subprocess.run([BUILD / "emulator/kernels", "--quiet"], check=True)
    start, missed = time.monotonic(), []
    with ThreadPoolExecutor(jobs()) as pool:
        for mutation, verdict in zip(chosen, pool.map(try_mutation, chosen), strict=True):
            caught = verdict is not None
            print(f"{'caught' if caught else 'MISSED'}  {mutation.name}: {verdict or 'every case passes'}", flush=True)
            if not caught:
                missed.append(mutation.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def try_mutation(mutation: Mutation) -> str | None:
    """What the first failing case says, None if none fails."""
    text = (ROOT / mutation.file).read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.file} has {text.count(mutation.old)} places like {mutation.old!r}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broken = folder / mutation.file
        broken.parent.mkdir(parents=True)
        broken.write_text(text.replace(mutation.old, mutation.new))
        program = build(mutation, folder)
        command = [program, "--quiet", "--stop", "--case", mutation.task]
        if mutation.cases:
            return first_failure([*command, "--case", mutation.cases])
        # In the usual schedule all cases, then some in all schedules.
        return first_failure(command) or first_failure([*command, "--thorough", "--case", mutation.thorough])


def first_failure(command: list) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, errors="replace")
    except subprocess.TimeoutExpired:
        return f"does not end within {TIMEOUT} s"
    if run.returncode == 0:
        return None
    if run.returncode == 2:
        raise SystemExit(f"no case was run: {run.args}")
    lines = (run.stdout + run.stderr).splitlines()
    return next((line for line in lines if "FAILED" in line or "ERROR" in line), f"exit status {run.returncode}")


def build(mutation: Mutation, folder: Path) -> Path:
    built = BUILD / ("sanitized" if mutation.sanitized else "emulator")
    sanitize = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"] * mutation.sanitized
    source = mutation.source
    compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-w", *sanitize]
    broken = folder / "kernel.o"
    include = ["-I", folder, "-I", ROOT]  # the broken file hides the sound one
    whole = folder / source if mutation.file == str(source) else ROOT / source
    subprocess.run([*compiler, *include, "-x", "c++", "-c", whole, "-o", broken], check=True)
    sound = [path for path in built.glob("*.o") if path.name != f"{source.name}.o" and "test_" not in path.name]
    subprocess.run([*compiler, broken, *sound, "-o", folder / "program"], check=True)
    return folder / "program"


if __name__ == "__main__":
    sys.exit(main())
