"""Check the machine code of the CUDA kernels, without a GPU.

Every .cu file of csrc/sources.txt is compiled for every architecture, or for the one that it names. A kernel fails
when the compiler warns, spills registers, uses a stack frame, ignores setmaxnreg or serializes wgmma, and when its
machine code holds other numbers of tensor core instructions and of their loads than tools/kernel_table.csv says: an
unrolled loop has as many of them as its tile needs, so a number that changes is a loop that was not unrolled or a load
that was split. Where a kernel computes exponentials while products are in flight, their number is in the table too: the
compiler may move a wait for the products above them, which undoes that without a word.

examples:
  python tools/check_kernels.py
  python tools/check_kernels.py --arch sm_80 --file csrc/frame_attention/cuda/kernels/frame_attention_forward_sm80.cu
  python tools/check_kernels.py --update        writes the table; read its diff before you commit it
  python tools/check_kernels.py --built FOLDER  reads what a build left there, and compiles nothing (see BUILT_WITH)

Column local_memory_allowed of the table, written by hand as "16 bytes: the reason", lets one kernel spill so much.
"""

import argparse
import csv
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from runpy import run_path
from typing import Any

from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("kernel_table.csv")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_120", "compute_80")  # those of setup.py; the last is PTX
NOT_CHECKED = ("csrc/device/cuda/device_image.cu",)  # an empty kernel
# What a build has to have in NVCC_APPEND_FLAGS, besides --keep-dir FOLDER; and its output has to be in FOLDER/log.
BUILT_WITH = "--keep -Werror all-warnings -Xptxas -v"
NOT_IN_FILE = 8  # kind of an ELF section that has a size alone: shared memory
REGISTERS_MORE = 8  # than in the table, before it is a failure: they come and go with every change

# The low 9 bits of an instruction say what it does, the next 3 where its operands are: STL is 0x387, and 0x987 with an
# address in a uniform register. nvdisasm 13.5 agrees for all three architectures.
OPCODES = {
    "HMMA": 0x03C,
    "HGMMA": 0x1F0,
    "LDSM": 0x03B,
    "LDGSTS": 0x1AE,
    "LDL": 0x183,
    "STL": 0x187,
    "LDG": 0x181,
    "STG": 0x186,
    "MUFU": 0x108,
}
MUFU, EXP2 = 0x108, 8  # and which function, in bits 8 to 13 of the second word
WARPGROUP, DEPBAR = 0x1C5, 1 << 47  # the wait for products: of all groups but the last few, in bits 8 to 11 there
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "beside_products")
COLUMNS = ("file", "kernel", "arch", "registers", "shared", *COUNTED, "local_memory_allowed")
Key = tuple[str, str, str]  # file, kernel, arch


@dataclass
class Resources:
    """What ptxas says about a kernel. Sizes are in bytes, shared memory without what the launch adds."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


@dataclass
class Compiled:
    """One file, compiled for one architecture."""

    file: str
    arch: str
    seconds: float = 0.0
    kernels: dict[Key, tuple[Resources, Counter[str]]] = field(default_factory=dict)
    ptx_kernels: int = 0
    problems: list[str] = field(default_factory=list)

    def fail(self, message: str, kernel: str = "") -> None:
        self.problems.append(f"{self.file} {kernel or '-'} {self.arch}: {message}")


# ---- Reading what the compiler made ----------------------------------------------------------------------------------


def read_sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every section of a cubin, which is an ELF file."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, entries, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(entries)]
    names = headers[names_index][4]
    for name_offset, kind, _, _, offset, size in headers:
        start = names + name_offset
        name = cubin[start : cubin.index(b"\0", start)].decode()
        yield name, bytes(size) if kind == NOT_IN_FILE else cubin[offset : offset + size]


def read_kernels(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and machine code of every kernel of a cubin: the sections .text.<name>."""
    for name, content in read_sections(cubin):
        if name.startswith(".text."):
            yield name.removeprefix(".text."), content


def count_instructions(code: bytes) -> Counter[str]:
    """How often each instruction of OPCODES occurs in machine code, whose instructions have 128 bits."""
    instructions = list(struct.iter_unpack("<QQ", code))
    found = Counter(first & 0x1FF for first, _ in instructions)
    counts = Counter({name: found[opcode] for name, opcode in OPCODES.items()})
    counts["beside_products"] = count_beside_products(instructions)
    return counts


def count_beside_products(instructions: Sequence[tuple[int, int]]) -> int:
    """Exponentials after a wait for all but one group of products and before the one for all of them."""
    total, since = 0, None
    for first, second in instructions:
        if first & 0x1FF == WARPGROUP and first & DEPBAR:
            if second >> 8 & 0xF:
                since = 0
            elif since is not None:
                total, since = total + since, None
        elif since is not None and first & 0x1FF == MUFU and second >> 8 & 0x3F == EXP2:
            since += 1
    return total


def parse_ptxas(output: str, arch: str) -> dict[str, Resources]:
    """The resources of each kernel for an architecture, from the output of ptxas -v. Functions that a kernel calls are
    printed after it and count."""
    kernels: dict[str, Resources] = {}
    kernel = Resources()
    for line in output.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel = Resources()
            if found[2] == arch:
                kernels[found[1]] = kernel
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.stack = max(kernel.stack, int(found[1]))
            kernel.spill_stores = max(kernel.spill_stores, int(found[2]))
            kernel.spill_loads = max(kernel.spill_loads, int(found[3]))
        elif found := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(found[1])
            smem = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(smem[1]) if smem else 0
    return kernels


def complaints(output: str) -> list[str]:
    """Lines of a compiler's output that must not be there. C7504, C7506, C7508: setmaxnreg was ignored."""
    return [line.strip() for line in output.splitlines() if re.search(r"\b(warning|serialized|C750[468])\b", line)]


def short_name(demangled: str) -> str:
    """name<arguments> of a kernel: void frameattn::k<frameattn::A, (frameattn::E)1>(P) is k<A, (E)1>."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for i, sign in enumerate(name):
        depth += (sign == "<") - (sign == ">")
        if sign == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"\b\w+::", "", name)


def demangle(mangled: Sequence[str]) -> list[str]:
    if not mangled:
        return []
    demangled = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return demangled.stdout.splitlines()


def short_names(mangled: Sequence[str]) -> dict[str, str]:
    lines = demangle(mangled)
    names = [short_name(line) for line in lines]
    # Two kernels that only differ in what the short name leaves out keep all of theirs.
    return {
        key: name if names.count(name) == 1 else line for key, name, line in zip(mangled, names, lines, strict=True)
    }


# ---- Compiling -------------------------------------------------------------------------------------------------------


def find_nvcc() -> Path | None:
    toolkit = run_path(str(ROOT / "setup.py"))["find_cuda_toolkit"]()
    return toolkit / "bin" / "nvcc" if toolkit else None


def listed_files(root: Path = ROOT) -> dict[str, str]:
    """The .cu files of csrc/sources.txt, each with the one architecture that it is compiled for, or ""."""
    sources = (root / "csrc" / "sources.txt").read_text()
    lines = re.findall(r"^cuda (?:(\w+) )?(\S+\.cu)$", sources, re.MULTILINE)
    return {file: only for only, file in lines if file not in NOT_CHECKED}


def compile_command(nvcc: Path, root: Path, file: str, arch: str, output: Path) -> list[str | Path]:
    """With the flags of setup.py, among them those that torch adds."""
    target = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
    command = [nvcc, "-ptx" if arch.startswith("compute_") else "-cubin", "-gencode", target, *setup_flags(root)]
    return [*command, "-O3", *COMMON_NVCC_FLAGS, "-I", root, "-I", root / "csrc" / "include", root / file, "-o", output]


def setup_flags(root: Path) -> list[str]:
    """Those that setup.py gives to nvcc whatever the level of optimisation."""
    flags = re.search(r'flags\["nvcc"\] = \[(.*)\]', (root / "setup.py").read_text())
    if flags is None:
        raise ValueError(f'{root / "setup.py"} has no line flags["nvcc"] = [...]')
    return re.findall(r'"([^"]*)"', flags[1])


def compile_file(nvcc: Path, file: str, arch: str) -> Compiled:
    """Compiles and reads what came out."""
    compiled = Compiled(file, arch)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "kernels")
        command = [*compile_command(nvcc, ROOT, file, arch, output), "-Werror", "all-warnings", "-Xptxas", "-v"]
        start = time.perf_counter()
        nvcc_run = subprocess.run(command, capture_output=True, text=True)
        compiled.seconds = time.perf_counter() - start
        messages = nvcc_run.stdout + nvcc_run.stderr
        if nvcc_run.returncode:
            compiled.fail(f"nvcc failed\n{messages.strip()}")
        else:
            for line in complaints(messages):
                compiled.fail(line)
            read_output(compiled, output.read_bytes(), messages)
    return compiled


def read_output(compiled: Compiled, code: bytes, messages: str) -> None:
    """messages: of the compiler, perhaps of other files, too."""
    if compiled.arch.startswith("compute_"):
        compiled.ptx_kernels = len(re.findall(rb"^\s*(?:\.\w+ )*\.entry ", code, re.MULTILINE))
    else:
        resources = parse_ptxas(messages, compiled.arch)
        kernels = dict(read_kernels(code))
        if silent := sorted(kernels.keys() - resources.keys()):
            compiled.fail(f"the cubin holds kernels of which ptxas says nothing: {silent}")
        for mangled, name in short_names(sorted(resources.keys() & kernels.keys())).items():
            key = (compiled.file, name, compiled.arch)
            compiled.kernels[key] = resources[mangled], count_instructions(kernels[mangled])
    if not compiled.kernels and not compiled.ptx_kernels:
        compiled.fail("no kernel came out")


def compile_all(nvcc: Path, files: dict[str, str], architectures: Sequence[str]) -> list[Compiled]:
    jobs = [(nvcc, file, arch) for file, only in files.items() for arch in architectures if only in ("", arch)]
    return in_parallel(compile_file, jobs)


def read_built(folder: Path, files: dict[str, str], architectures: Sequence[str]) -> list[Compiled]:
    """What a build left in a folder: BUILT_WITH."""
    messages = (folder / "log").read_text()
    built = []
    for file, only in files.items():
        for arch in architectures:
            if only not in ("", arch):
                continue
            one = Compiled(file, arch)
            kept = next((path for path in kept_paths(folder, file, arch) if path.is_file()), None)
            if kept is None:
                one.fail(f"the build left nothing in {folder}")
            else:
                read_output(one, kept.read_bytes(), messages)
            built.append(one)
    for line in complaints(messages):
        if re.match(r"ptxas|nvcc|\S+\.cuh?\(", line):  # not what others say
            built[0].fail(line)
    return built


def kept_paths(folder: Path, file: str, arch: str) -> list[Path]:
    """What nvcc may call what it keeps: by the PTX that it is made of, and by itself where that has more to be made of
    it; by neither where a file is compiled for one architecture."""
    virtual = arch.replace("sm_", "compute_")
    ends = [f"{arch}.ptx"] if arch == virtual else [f"{virtual}.{arch}.cubin", f"{virtual}.cubin", "cubin"]
    return [folder / f"{Path(file).stem}.{end}" for end in ends]


def in_parallel(function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Any]:
    """function(*job) for each job, in their order."""
    workers = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


# ---- Comparing -------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> dict[Key, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="") as lines:
        return {(row["file"], row["kernel"], row["arch"]): row for row in csv.DictReader(lines)}


def write_table(path: Path, table: dict[Key, dict[str, str]]) -> None:
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for key in sorted(table, key=lambda key: (*key[:2], ARCHITECTURES.index(key[2]))):
            writer.writerow(table[key])


def update_table(table: dict[Key, dict[str, str]], compiled: Sequence[Compiled], files: set[str]) -> dict:
    """The table with the rows of what was compiled, and those of other files that are still there."""
    done = {(one.file, one.arch) for one in compiled if one.kernels}
    updated = {key: row for key, row in table.items() if key[0] in files and (key[0], key[2]) not in done}
    for one in compiled:
        for key, (resources, counts) in one.kernels.items():
            values = (*key, resources.registers, resources.shared, *(counts[name] for name in COUNTED))
            allowed = table[key]["local_memory_allowed"] if key in table else ""
            updated[key] = dict(zip(COLUMNS, (*map(str, values), allowed), strict=True))
    return updated


def check_against(table: dict[Key, dict[str, str]], one: Compiled) -> None:
    """Adds what is wrong with the kernels of one compilation to its problems."""
    for key, (resources, counts) in one.kernels.items():
        kernel, row = key[1], table.get(key)
        check_local_memory(one, kernel, resources, counts, row["local_memory_allowed"] if row else "")
        if row is None:
            one.fail("not in the table; --update adds it", kernel)
            continue
        for name in COUNTED:
            if counts[name] != int(row[name]):
                one.fail(f"{name}: expected {row[name]}, found {counts[name]}", kernel)
        if resources.registers > int(row["registers"]) + REGISTERS_MORE:
            expected = f"{row['registers']}, or up to {REGISTERS_MORE} more"
            one.fail(f"registers: expected {expected}, found {resources.registers}", kernel)
    for key in table:
        if one.kernels and (key[0], key[2]) == (one.file, one.arch) and key not in one.kernels:
            one.fail("in the table, but not in the file; --update drops it", key[1])


def check_local_memory(one: Compiled, kernel: str, resources: Resources, counts: Counter[str], allowed: str) -> None:
    reason = re.fullmatch(r"(\d+) bytes: \S.*", allowed)
    if allowed and not reason:
        one.fail(f'local_memory_allowed: expected "16 bytes: the reason", found "{allowed}"', kernel)
    limit = int(reason[1]) if reason else 0
    for name in ("stack", "spill_stores", "spill_loads"):
        if (size := getattr(resources, name)) > limit:
            one.fail(f"{name.replace('_', ' ')}: expected {limit} bytes, found {size}", kernel)
    for name in ("LDL", "STL"):
        if counts[name] and not limit:
            one.fail(f"{name}: expected 0, found {counts[name]}", kernel)


# ---- The command -----------------------------------------------------------------------------------------------------


def print_summary(compiled: Sequence[Compiled]) -> None:
    """One line for each file and architecture: the greatest registers and shared memory, the sums of instructions."""
    print(f"{'file':66} {'arch':10} kernels  regs shared   HMMA  HGMMA   LDSM LDGSTS    s")
    for one in compiled:
        resources = [resources for resources, _ in one.kernels.values()]
        numbers = [""] * 6
        if resources:
            sums = [sum(counts[name] for _, counts in one.kernels.values()) for name in COUNTED[:4]]
            numbers = [max(r.registers for r in resources), max(r.shared for r in resources), *sums]
        regs, shared, hmma, hgmma, ldsm, ldgsts = numbers
        kernels = len(one.kernels) or one.ptx_kernels
        print(
            f"{one.file:66} {one.arch:10} {kernels:7} {regs:>5} {shared:>6} {hmma:>6} {hgmma:>6} {ldsm:>6} {ldgsts:>6} "
            f"{one.seconds:4.1f}"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: %(default)s")
    parser.add_argument("--file", action="append", type=Path, metavar="FILE.cu", help="default: all of sources.txt")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table than kernel_table.csv")
    parser.add_argument("--built", type=Path, metavar="FOLDER", help="read what a build left there")
    parser.add_argument("--update", action="store_true", help="write the table")
    options = parser.parse_args(arguments)
    options.arch = options.arch.split(",")
    if unknown := [arch for arch in options.arch if arch not in ARCHITECTURES]:
        parser.error(f"no architecture {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    nvcc = find_nvcc()
    if nvcc is None and options.built is None:
        print("check_kernels.py: nvcc was not found", file=sys.stderr)
        return 2
    listed = listed_files()
    files = listed
    if options.file:
        paths = [path.resolve() for path in options.file]
        names = [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in paths]
        files = {name: listed.get(name, "") for name in names}

    start = time.perf_counter()
    if options.built is not None:
        compiled = read_built(options.built, files, options.arch)
    else:
        compiled = compile_all(nvcc, files, options.arch)
    seconds = time.perf_counter() - start

    table = read_table(options.table)
    if options.update:
        table = update_table(table, compiled, {*listed, *files})
        write_table(options.table, table)
    for one in compiled:
        check_against(table, one)
    problems = [problem for one in compiled for problem in one.problems]
    if options.file:
        elsewhere = {file: only for file, only in files.items() if only and only not in options.arch}
        problems += [f"{file}: csrc/sources.txt gives it to {only} alone" for file, only in elsewhere.items()]
    else:
        for file in sorted({key[0] for key in table} - set(listed)):
            problems.append(f"{file}: in the table, but not in csrc/sources.txt; --update drops it")

    print_summary(compiled)
    for problem in problems:
        print(f"FAILED {problem}")
    kernels = sum(len(one.kernels) for one in compiled)
    source = options.built or nvcc
    print(f"{kernels} kernels of {len(files)} files in {seconds:.1f} s with {source}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
