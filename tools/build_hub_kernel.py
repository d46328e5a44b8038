"""A kernel in the format of Hugging Face's Hub, for the torch of this Python: make hub-kernel (docs/hub_kernel.md).

It has the operators, their functions, layers and definitions: the package's own files, with imports that do not name
the package, since `kernels` imports a kernel under a name that is made of its sources. The operators' namespace is the
same name: a process may have several kernels of this package, and the package itself.
"""

import argparse
import ast
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from runpy import run_path

try:
    import torch
except ImportError:
    raise SystemExit(
        f"build_hub_kernel: {sys.executable} has no torch, for which the kernel would be. Install it there with "
        "setuptools>=77 and ninja, or name another Python: make hub-kernel PYTHON=my-env/bin/python"
    ) from None

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "frameattn"
NAME = "frameattn"
VERSION = 0  # of the kernel's API; by the Hub's convention 0 is for what may still change
PARTS = ("_load.py", "_operators.py", "functional/*.py", "modules/*.py", "reference/*.py")
GENERATED = ("_build.py", "_C.py")  # by setup.py; the latter is a library

INIT = '''"""Matrix Attention and VMonarch attention for video diffusion transformers, as PyTorch operators.

``functional`` has the documented functions, ``modules`` layers, ``reference`` definitions in plain torch.
"""

from . import functional, modules, reference
from ._load import build_info, cuda_devices, library_path
from .functional import {functions}

__all__ = [
    {public},
]
'''
# Releases of `kernels` before the one of which docs/hub_kernel.md speaks import this folder instead of the one above.
COMPATIBLE_INIT = """import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parents[1] / "__init__.py")
    sys.modules["{id}"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules["{id}"])
    except BaseException:
        del sys.modules["{id}"]
        raise
kernel = sys.modules["{id}"]
__all__ = kernel.__all__
globals().update({{name: getattr(kernel, name) for name in __all__}})
"""


def make_relative(file: str, text: str) -> str:
    """The text of a file of the package, whose path is given from there, with relative imports of the package."""
    lines = text.splitlines(keepends=True)
    root = "." * len(PurePosixPath(file).parts)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.partition(".")[0] == NAME:
            line, end = lines[node.lineno - 1], node.col_offset + len(f"from {node.module}")
            within = node.module.removeprefix(NAME).removeprefix(".")
            lines[node.lineno - 1] = f"{line[: node.col_offset]}from {root}{within}{line[end:]}"
    return "".join(lines)


def imports_of(file: str, node: ast.AST) -> tuple[list[str], list[str]]:
    """What a statement of a file imports: modules by their names, and by their paths within the kernel."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names], []
    if not isinstance(node, ast.ImportFrom):
        return [], []
    if node.level == 0:
        return [node.module], []
    folder = PurePosixPath(file).parents[node.level - 1]
    within = [node.module.replace(".", "/")] if node.module else [alias.name for alias in node.names]
    return [], [str(folder / path) for path in within]


def find_problems(files: dict[str, str]) -> list[str]:
    """What keeps Python files from being a kernel, which may import torch, the standard library and itself, the latter
    by relative imports."""
    problems = []
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            absolute, relative = imports_of(file, node)
            for name in absolute:
                if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}:
                    problems.append(f"{file}:{node.lineno}: imports {name}, which is neither torch's nor Python's")
            for path in relative:
                if not {f"{path}.py", f"{path}/__init__.py"} & {*files, *GENERATED}:
                    problems.append(f"{file}:{node.lineno}: imports {path}, which the kernel does not have")
            if isinstance(node, ast.Attribute) and ast.unparse(node) == f"torch.ops.{NAME}":
                problems.append(f"{file}:{node.lineno}: names torch.ops.{NAME}; take operators of _operators.py")
    return problems


def read_python() -> dict[str, str]:
    """The kernel's Python files but for what the build writes: path -> text.

    Raises:
        SystemExit: one of them imports what a kernel cannot import.
    """
    paths = sorted(path for part in PARTS for path in PACKAGE.glob(part))
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in paths}
    files = {file: make_relative(file, text) for file, text in files.items()}
    assignments = [node for node in ast.parse(files["functional/__init__.py"]).body if isinstance(node, ast.Assign)]
    functions = next(ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == "__all__")
    public = sorted([*functions, "build_info", "cuda_devices", "functional", "library_path", "modules", "reference"])
    files["__init__.py"] = INIT.format(
        functions=", ".join(functions), public=",\n    ".join(f'"{name}"' for name in public)
    )
    if problems := find_problems(files):
        raise SystemExit("build_hub_kernel: " + "\nbuild_hub_kernel: ".join(problems))
    return files


def kernel_id(backend: str) -> str:
    """The name of the kernel's module and of its operators' namespace: another one for other sources and backends."""
    hashes = run_path(str(ROOT / "csrc" / "source_digest.py"))["source_hashes"](
        ROOT, ["csrc", "setup.py", "VERSION", "tools/build_hub_kernel.py"]
    )
    sources = {**hashes, **read_python()}
    digest = hashlib.sha1("".join(f"{file}\n{sources[file]}\n" for file in sorted(sources)).encode())
    return f"{NAME}_{backend}_{digest.hexdigest()[:8]}"


def variant(cuda: str | None) -> str:
    """The folder of a kernel for this torch and machine, and for this version of CUDA or for CPUs."""
    torch_version = "".join(torch.__version__.split(".")[:2])
    abi = "cxx11" if torch.compiled_with_cxx11_abi() else "cxx98"
    backend = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    return f"torch{torch_version}-{abi}-{backend}-{platform.machine()}-{platform.system().lower()}"


def decide() -> tuple[str | None, list[str]]:
    """The version of CUDA that setup.py builds for, with the architectures, or None.

    Raises:
        SystemExit: torch has CUDA, and the kernel would be one for CPUs without anybody having said so.
    """
    values = run_path(str(ROOT / "setup.py"))
    if values["TOOLKIT"]:
        return torch.version.cuda, re.split("[; ]", os.environ["TORCH_CUDA_ARCH_LIST"])
    if torch.version.cuda and os.environ.get("FRAMEATTN_CUDA") != "0":
        raise SystemExit(
            f"build_hub_kernel: torch is a CUDA build, but CUDA cannot be built ({values['CUDA']}). Set CUDA_HOME, or "
            "FRAMEATTN_CUDA=0 for a kernel for CPUs"
        )
    return None, []


def build_library(namespace: str, folder: Path) -> None:
    """_C*.so and _build.py."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", folder],
        cwd=ROOT,
        env={**os.environ, "FRAMEATTN_NAMESPACE": namespace},
        check=True,
    )


def digest_of(folder: Path) -> dict[str, object]:
    """What metadata.json says of the files beside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "algorithm": "sha256",
        "files": {
            path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
            for path in files
        },
    }


def write_kernel(out: Path) -> Path:
    """Builds a variant.

    Args:
        out: a folder as a repository on the Hub is one; variants that are there stay.

    Returns:
        the variant's folder.
    """
    cuda, architectures = decide()
    backend = {"type": "cuda", "archs": architectures} if cuda else {"type": "cpu"}
    name = kernel_id(backend["type"])
    files = {**read_python(), f"{NAME}/__init__.py": COMPATIBLE_INIT.format(id=name)}
    built = ROOT / "build" / "hub-kernel-library"
    build_library(name, built)

    folder = out / "build" / variant(cuda)
    shutil.rmtree(folder, ignore_errors=True)
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    for path in (built / NAME).iterdir():
        shutil.copy(path, folder)
    repository = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    metadata = {
        "name": NAME,
        "id": name,
        "version": VERSION,
        "license": "Apache-2.0",
        "upstream": repository,
        "python-depends": [],
        "backend": backend,
        "digest": digest_of(folder),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    shutil.copy(ROOT / "LICENSE", out)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "hub-kernel", help="default: build/hub-kernel")
    folder = write_kernel(parser.parse_args().out)
    print(f"{folder}: torch.ops.{json.loads((folder / 'metadata.json').read_text())['id']}")


if __name__ == "__main__":
    main()
