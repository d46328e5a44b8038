"""tools/build_hub_kernel.py, and the kernel that `make hub-kernel` left, loaded by the package `kernels`.

Here nothing is compiled. FRAMEATTN_HUB_KERNEL names the folder, and then it is an error if there is no kernel of these
sources; else tests of build/hub-kernel are skipped where it has none.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("build_hub_kernel", ROOT / "tools" / "build_hub_kernel.py")
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


# ---- The tool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, before, after",
    [
        ("_load.py", "from frameattn import _C", "from . import _C"),
        ("_load.py", "from frameattn._build import A", "from ._build import A"),
        ("functional/x.py", "from frameattn.functional.y import z  # why", "from ..functional.y import z  # why"),
        ("functional/x.py", "if a:\n    from frameattn import (\n        b,\n    )", None),
        ("a/b/c.py", "from frameattn.d import e", "from ...d import e"),
        ("x.py", "from frameattn_other import y", "from frameattn_other import y"),
        ("x.py", "text = 'from frameattn import y'", "text = 'from frameattn import y'"),
        ("x.py", "from .frameattn import y", "from .frameattn import y"),
    ],
)
def test_imports_of_the_package_become_relative(file, before, after):
    expected = before.replace("from frameattn import", "from .. import") if after is None else after
    assert tool.make_relative(file, before) == expected


@pytest.mark.parametrize(
    "text, problem",
    [
        ("import frameattn", "imports frameattn, which is neither torch's nor Python's"),
        ("import frameattn.functional as f", "imports frameattn.functional, which is neither"),
        ("def f():\n    from numpy.linalg import norm", "imports numpy.linalg, which is neither"),
        ("from ..missing import y", "imports missing, which the kernel does not have"),
        ("from .. import missing", "imports missing, which the kernel does not have"),
        ("import torch\ntorch.ops.frameattn.matrix_linear(x)", "names torch.ops.frameattn"),
    ],
)
def test_what_a_kernel_cannot_do_is_found(text, problem):
    files = {"functional/x.py": text, "other.py": "import torch.nn.functional\nfrom pathlib import Path"}
    (found,) = tool.find_problems(files)
    assert found.startswith(f"functional/x.py:{text.count(chr(10)) + 1}: {problem}")


def test_the_package_has_all_that_a_kernel_needs():
    files = tool.read_python()
    assert {"__init__.py", "_load.py", "_operators.py", "functional/_flops.py", "modules/linear.py"} <= set(files)
    assert tool.find_problems(files | {"x.py": "from . import _C, functional\nfrom ._build import TORCH_VERSION"}) == []


def test_the_name_is_of_the_sources_and_of_the_backend(monkeypatch):
    name = tool.kernel_id("cpu")
    assert re.fullmatch(r"frameattn_cpu_[0-9a-f]{8}", name) and tool.kernel_id("cpu") == name
    other = tool.kernel_id("cuda")
    assert other.split("_")[1:] == ["cuda", name.split("_")[2]]
    files = tool.read_python()
    monkeypatch.setattr(tool, "read_python", lambda: files | {"_load.py": files["_load.py"] + "#"})
    assert tool.kernel_id("cpu") != name


def test_a_cuda_torch_without_nvcc_gives_no_kernel_for_cpus_unasked(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.delenv("FRAMEATTN_CUDA", raising=False)
    with pytest.raises(SystemExit, match="nvcc was not found.*FRAMEATTN_CUDA=0"):
        tool.decide()
    monkeypatch.setenv("FRAMEATTN_CUDA", "0")
    assert tool.decide() == (None, [])


def test_without_torch_it_says_what_to_do(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    command = [sys.executable, ROOT / "tools" / "build_hub_kernel.py"]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 1 and "make hub-kernel PYTHON=" in result.stderr.splitlines()[-1]


# ---- What `kernels` makes of it --------------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "FRAMEATTN_HUB_KERNEL" in os.environ:
        return importlib.import_module("kernels")
    return pytest.importorskip("kernels")


@pytest.mark.parametrize("cuda, archs", [(None, None), ("13.0", ["8.0+PTX", "9.0a", "12.0"])])
def test_kernels_finds_the_variant(kernels, monkeypatch, cuda, archs):
    """On a GPU of each architecture that a build is for, and one that came after it."""
    from kernels.archs import _supports_cuda_capability
    from kernels.variants import parse_variant, resolve_variant

    monkeypatch.setattr(torch.version, "cuda", cuda)
    ours = parse_variant(tool.variant(cuda))
    others = [parse_variant(tool.variant(version)) for version in {None, "12.6", "13.0"} - {cuda}]
    assert resolve_variant([*others, ours])[0] == ours
    if archs:
        assert all(_supports_cuda_capability(archs, capability) for capability in ((8, 0), (9, 0), (12, 0), (13, 1)))
        assert not _supports_cuda_capability(archs, (7, 5))


@pytest.fixture
def folder(kernels) -> Path:
    """The folder of make hub-kernel, with a variant of these sources for this torch."""
    named = os.environ.get("FRAMEATTN_HUB_KERNEL")
    folder = Path(named) if named else ROOT / "build" / "hub-kernel"
    cuda = torch.version.cuda if (folder / "build" / tool.variant(torch.version.cuda)).exists() else None
    metadata = folder / "build" / tool.variant(cuda) / "metadata.json"
    problem = ""
    if not metadata.is_file():
        problem = f"{folder} has no kernel for this torch: make hub-kernel"
    elif (found := json.loads(metadata.read_text())["id"]) != tool.kernel_id("cuda" if cuda else "cpu"):
        problem = f"{found} in {folder} is of other sources: make hub-kernel"
    if problem and named:
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    return folder


@pytest.mark.parametrize("first", ["frameattn", "kernel"])
def test_the_kernel_computes_the_same_beside_the_package(folder, first):
    command = [sys.executable, Path(__file__).with_name("hub_kernel_beside.py"), folder, first]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "the same\n"), result.stdout + result.stderr


def test_its_metadata_is_that_of_its_files(folder):
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    for variant in (folder / "build").iterdir():
        metadata = Metadata.read_from_file(variant / "metadata.json")
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
        assert variant.name.split("-")[2][:2] == str(metadata.backend.backend_type).lower()[:2]


def test_releases_that_import_the_inner_folder_get_the_same(folder):
    code = (
        "import importlib.util as u, sys; from pathlib import Path\n"
        "variant = next(Path(sys.argv[1]).glob('build/torch*'))\n"
        "spec = u.spec_from_file_location('frameattn', variant / 'frameattn' / '__init__.py')\n"
        "inner = u.module_from_spec(spec); spec.loader.exec_module(inner)\n"
        "from kernels import get_local_kernel\n"
        "kernel = get_local_kernel(Path(sys.argv[1]))\n"
        "assert inner.__all__ == kernel.__all__ and inner.matrix_linear is kernel.matrix_linear\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True)
