"""Which of torch's headers keep csrc from LibTorch's stable ABI, counted by a compiler: docs/stable_abi.md.

    python tools/stable_abi_errors.py -isystem /usr/local/cuda/include

With TORCH_TARGET_VERSION a header of torch outside of the stable ABI is nothing but an #error. Each .cpp file of csrc
is compiled so by itself, up to its syntax. Options are passed on to the compiler (CXX, else c++).
"""

import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[1]
TARGET = "0x020b000000000000"  # torch 2.11: a byte each for 2 and 11, as in torch/csrc/stable/version.h
INCLUDE = re.compile(r"^ *# *include <([^>]+)>", re.MULTILINE)
UNSTABLE = re.compile(r'include/([^:\s]+):\d+:\d+: error: #error "This file should not be included')
MISSING = re.compile(r"fatal error: ([^:\s]+): No such file")


def compile_stable(source: Path, options: list[str]) -> str:
    """What the compiler says of a source that may include the stable headers alone."""
    folders = [*include_paths("cpu"), sysconfig.get_path("include")]
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-fopenmp", "-fsyntax-only", "-w", "-fmax-errors=0"]
    command += [f"-DTORCH_TARGET_VERSION={TARGET}", f"-I{ROOT}", f"-I{ROOT}/csrc/include"]
    command += [word for folder in folders for word in ("-isystem", folder)]
    return subprocess.run([*command, *options, source], capture_output=True, text=True).stderr


def main(options: list[str]) -> None:
    paths = sorted(ROOT.glob("csrc/**/*.cpp"))
    sources = [path for path in paths if path.parent.name != "units"]  # those include these
    met: Counter[str] = Counter()
    free = 0
    for source in sources:
        messages = compile_stable(source, options)
        if missing := MISSING.search(messages):
            sys.exit(f"{source}: no {missing[1]}; give the folder that has it: -isystem FOLDER")
        headers = {name.removeprefix("torch/csrc/api/include/") for name in UNSTABLE.findall(messages)}
        if not headers and ": error: " in messages:
            sys.exit(f"{source} fails for another reason:\n{messages}")
        met.update(headers)
        free += not headers
    files = [*sources, *ROOT.glob("csrc/**/*.h")]
    direct = Counter(header for path in files for header in set(INCLUDE.findall(path.read_text())))
    print(f"{'header':60} files that include it, sources that meet it")
    for header, count in sorted(met.items(), key=lambda item: (-item[1], item[0])):
        print(f"{header:60} {direct[header]:21} {count:21}")
    print(f"{met.total()} errors by source and header; {free} of {len(sources)} sources have none")


if __name__ == "__main__":
    main(sys.argv[1:])
