"""Carry the lines of trusted_kernels.inc over to kernels that were moved, renamed or counted up, without a GPU.

A kernel that passed its checks on a GPU keeps its line as long as its machine code is the same, whatever it is called
and wherever its source lies. The CUDA kernels of a revision and those of the working tree are compiled by the same
nvcc, each with the flags of its setup.py, for the architectures that the lines speak of. A line is carried over if a
kernel of the working tree has the same functions for that dtype, under the name and with the version that the working
tree gives it. A line whose code differs is dropped. A line that the working tree alone has stays if the revision knew
no such kernel or version: it comes from a later run.

Of a function these are compared: machine code, constant banks (the size of its parameters is that of bank 0), shared
memory of fixed size, and constants and variables of its file. Parameters that swap places show in the offsets of the
machine code. Not compared: names, the order of functions, and the host code that fills the parameters and launches;
its tests run on the emulator.

examples:
  python tools/carry_trust.py --from HEAD              rewrites trusted_kernels.inc
  python tools/carry_trust.py --from HEAD --check      writes nothing; exit status 1 if the table would change

Take the revision that has the table and the kernels as they were checked, and commit what was carried: a later call
from the same revision cannot tell it from the lines of a run.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from check_kernels import (
    ROOT,
    compile_command,
    demangle,
    find_nvcc,
    in_parallel,
    listed_files,
    read_sections,
    short_name,
)

sys.path.insert(0, str(ROOT))
from benchmarks.gpu_check import KERNEL_DTYPES
from benchmarks.gpu_check.machine import architecture
from benchmarks.gpu_report import trust

UNPACKED = ("csrc", "setup.py", "benchmarks/__init__.py", "benchmarks/gpu_check")  # what is needed of the revision
NAMED = 3  # functions in a message


class Line(NamedTuple):
    kernel: str
    version: int
    capability: int
    dtype: str

    @property
    def arch(self) -> str:
        return "sm_" + architecture(*divmod(self.capability, 10)).replace(".", "")

    def __str__(self) -> str:
        major, minor = divmod(self.capability, 10)
        return f"{self.kernel}, {self.dtype}, {major}.{minor}"


class Function(NamedTuple):
    name: str  # flash_forward_kernel<(FrameElement)0, 64>
    code: str  # a digest


@dataclass
class Tree:
    """What a state of the repository says of its kernels."""

    versions: dict[str, int]  # of each kernel
    table: set[Line]
    functions: dict[str, list[Function]] = field(default_factory=lambda: defaultdict(list))  # by architecture

    def functions_of(self, kernel: str, line: Line) -> list[Function]:
        """Those of a kernel for the architecture and dtype of a line."""
        functions = self.functions[line.arch]
        return [f for f in functions if kernel_of(f.name, self.versions) == kernel and line.dtype in dtypes_of(f.name)]


def kernel_of(function: str, kernels: Iterable[str]) -> str:
    """The longest name that the function's begins with: flash_backward is also flash_backward_query_kernel."""
    return max((kernel for kernel in kernels if function.startswith(f"{kernel}_")), key=len, default="")


def dtypes_of(function: str) -> Sequence[str]:
    """The one argument of an enumeration says the dtype; a function without one belongs to all."""
    values = re.findall(r"\([A-Z]\w*\)(\d+)", function)
    return [dtype for value, dtype in enumerate(KERNEL_DTYPES) if str(value) in values] or KERNEL_DTYPES


# ---- Comparing -------------------------------------------------------------------------------------------------------


def carry(old: Tree, new: Tree) -> tuple[set[Line], list[str]]:
    """The table that the new tree may have, and what becomes of lines."""
    table, dropped, messages = set(), [], []
    known = {line for line in old.table | new.table if old.versions.get(line.kernel) == line.version}
    for line in sorted(known):
        kernel, reason = counterpart(line, old, new)
        if reason:
            dropped.append(line)
            messages.append(f"dropped {line}: {reason}")
            continue
        carried = line._replace(kernel=kernel, version=new.versions[kernel])
        table.add(carried)
        if carried not in new.table:
            messages.append(f"carried {line}: to {kernel}, version {carried.version}")
    for line in sorted(new.table - known - table):
        # It may have been carried to this name by an earlier call, and the kernel may have changed since.
        gone = [lost.kernel for lost in dropped if lost.kernel not in new.versions and lost[2:] == line[2:]]
        if new.versions.get(line.kernel) != line.version:
            messages.append(f"dropped {line}: the working tree has no version {line.version} of it")
        elif gone and line.kernel not in old.versions:
            messages.append(f"dropped {line}: it may be what {' or '.join(gone)} was")
        else:
            table.add(line)
            messages.append(f"kept {line}: of a later run")
    return table, messages


def counterpart(line: Line, old: Tree, new: Tree) -> tuple[str, str]:
    """The kernel of the new tree that is most like that of a line of the old one, and what differs, or ""."""
    before = old.functions_of(line.kernel, line)

    def likeness(kernel: str) -> tuple[bool, bool, int]:
        after = codes(new.functions_of(kernel, line))
        return after == codes(before), kernel == line.kernel, sum((after & codes(before)).values())

    kernel = max(new.versions, key=likeness)
    return kernel, difference(before, new.functions_of(kernel, line))


def codes(functions: Iterable[Function]) -> Counter[str]:
    return Counter(function.code for function in functions)


def difference(before: Sequence[Function], after: Sequence[Function]) -> str:
    if not before:
        return "no function has its name"
    left, changed = codes(after), []
    for function in before:
        if left[function.code]:
            left[function.code] -= 1
        else:
            changed.append(function.name)
    if changed:
        names = "; ".join(changed[:NAMED]) + ("; ..." if len(changed) > NAMED else "")
        return f"{len(changed)} of {len(before)} functions differ: {names}"
    return f"{len(after)} functions instead of {len(before)}" if len(after) > len(before) else ""


# ---- Reading a tree --------------------------------------------------------------------------------------------------


def unpack(revision: str, folder: Path) -> None:
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision, *UNPACKED], capture_output=True)
    if archive.returncode:
        raise ValueError(f"git archive {revision}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)


def read_tree(root: Path) -> Tree:
    """All but the functions."""
    # Its own code knows its names and versions best; two versions of it cannot be imported into one process.
    script = "import json, pathlib, benchmarks.gpu_check.provenance as tree\n"
    script += "print(json.dumps(tree.kernel_versions(pathlib.Path())))"
    answer = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"the versions of the kernels cannot be read in {root}\n{answer.stderr.strip()}")
    lines = (trust.LINE.fullmatch(line) for line in table_of(root).read_text().splitlines())
    return Tree(json.loads(answer.stdout), {Line(m[1], int(m[2]), int(m[3]), m[4]) for m in lines if m})


def table_of(root: Path) -> Path:
    found = list((root / "csrc").rglob("trusted_kernels.inc"))
    if len(found) != 1:
        raise ValueError(f"{root / 'csrc'} must have one file trusted_kernels.inc, found {len(found)}")
    return found[0]


def compile_trees(trees: dict[Path, Tree], architectures: Sequence[str]) -> None:
    """Adds the functions of every kernel for these architectures."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise ValueError("nvcc was not found")
    listed = [(root, file, only) for root in trees for file, only in listed_files(root).items()]
    jobs = [(nvcc, root, file, arch) for arch in architectures for root, file, only in listed if only in ("", arch)]
    for (_, root, _, arch), functions in zip(jobs, in_parallel(compile_functions, jobs), strict=True):
        trees[root].functions[arch] += functions


def compile_functions(nvcc: Path, root: Path, file: str, arch: str) -> list[Function]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels")
        nvcc_run = subprocess.run(compile_command(nvcc, root, file, arch, cubin), capture_output=True, text=True)
        if nvcc_run.returncode:
            raise ValueError(f"nvcc failed for {root / file}\n{nvcc_run.stderr.strip()}")
        return read_functions(cubin.read_bytes())


def read_functions(cubin: bytes) -> list[Function]:
    """Relocations name variables by their place in the file: a kernel that reads one may be dropped for that alone."""
    of_file: dict[str, bytes] = {}
    of_function: dict[str, dict[str, bytes]] = defaultdict(dict)
    for section, content in read_sections(cubin):
        if found := re.fullmatch(r"((?:\.rela?)?\.text|\.nv\.shared|\.nv\.constant\d+)\.(\w+)", section):
            of_function[found[2]][found[1]] = content
        elif re.fullmatch(r"(\.rela?)?\.nv\.(constant\d+|global|global\.init)", section):
            of_file[section] = content
    names = [short_name(name) for name in demangle(list(of_function))]
    parts = [sorted((of_file | own).items()) for own in of_function.values()]
    return [
        Function(name, hashlib.sha256(repr(part).encode()).hexdigest()) for name, part in zip(names, parts, strict=True)
    ]


# ---- The command -----------------------------------------------------------------------------------------------------


def carry_over(revision: str, check: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        unpack(revision, Path(folder))
        old, new = read_tree(Path(folder)), read_tree(ROOT)
        if lines := old.table | new.table:
            compile_trees({Path(folder): old, ROOT: new}, sorted({line.arch for line in lines}))
    table, messages = carry(old, new)
    for message in messages:
        print(message)
    path, changed = table_of(ROOT), table != new.table
    if changed and not check:
        lines = [f'{{"{line.kernel}", {line.version}, {line.capability}, "{line.dtype}"}},' for line in table]
        trust.update(path, lines, {})  # with versions of no kernel: none of the lines that stand there stays
    state = "unchanged" if not changed else "would change" if check else "written"
    print(f"{path.relative_to(ROOT)}: {len(table)} lines, {state}")
    return 1 if changed and check else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="revision", required=True, metavar="REVISION", help="a commit, branch or tag")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        return carry_over(options.revision, options.check)
    except ValueError as error:
        print(f"carry_trust.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
