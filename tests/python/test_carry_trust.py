"""tools/carry_trust.py: which lines of trusted_kernels.inc survive which change of the kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.report import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import carry_trust
from carry_trust import Function, Line, Tree, carry

FORWARD, BACKWARD = (Line(kernel, 1, 90, "bfloat16") for kernel in ("flash_forward", "flash_backward"))
CODE = {
    "flash_forward_kernel<(Element)0, 64>": "a",
    "flash_forward_kernel<(Element)0, 128>": "b",
    "flash_forward_kernel<(Element)1, 64>": "c",
    "flash_backward_query_kernel<(Element)0>": "d",
    "flash_backward_key_kernel<(Element)0>": "e",
}


def tree(*table: Line, code: dict[str, str] = CODE, **versions: int) -> Tree:
    functions = [Function(name, code) for name, code in code.items()]
    return Tree(versions or {"flash_forward": 1, "flash_backward": 1}, set(table), {"sm_90a": functions})


def test_lines_stay_with_their_code():
    table = {FORWARD, BACKWARD, FORWARD._replace(dtype="float16")}
    assert carry(tree(*table), tree(*table)) == (table, [])


def test_names_order_and_versions_do_not_matter():
    old = tree(FORWARD, FORWARD._replace(dtype="float16"))
    renamed = {name.replace("flash_forward", "flash_forward_sm80"): code for name, code in reversed(CODE.items())}
    renamed = {name.replace("(Element)", "(FrameElement)"): code for name, code in renamed.items()}
    new = tree(*old.table, code=renamed, flash_forward_sm80=2, flash_backward=2)
    carried = {Line("flash_forward_sm80", 2, 90, dtype) for dtype in ("bfloat16", "float16")}
    assert carry(old, new) == (
        carried,
        [f"carried flash_forward, {dtype}, 9.0: to flash_forward_sm80, version 2" for dtype in ("bfloat16", "float16")],
    )
    assert carry(old, tree(*carried, code=renamed, **new.versions)) == (carried, [])  # a second call


def test_code_that_changed_drops_the_lines_of_its_dtype():
    table = (FORWARD, FORWARD._replace(dtype="float16"), BACKWARD)
    changed = {**CODE, "flash_forward_kernel<(Element)0, 128>": "other"}
    assert carry(tree(*table), tree(*table, code=changed)) == (
        {*table[1:]},
        ["dropped flash_forward, bfloat16, 9.0: 1 of 2 functions differ: flash_forward_kernel<(Element)0, 128>"],
    )


@pytest.mark.parametrize(
    "before, after, reason",
    [
        ("aab", "aba", ""),
        ("aab", "abb", "1 of 3 functions differ: 1"),
        ("aab", "ab", "1 of 3 functions differ: 1"),
        ("ab", "abb", "3 functions instead of 2"),
        ("abcde", "e", "4 of 5 functions differ: 0; 1; 2; ..."),
        ("ab", "", "2 of 2 functions differ: 0; 1"),
        ("", "", "no function has its name"),
    ],
)
def test_difference_of_functions(before, after, reason):
    before, after = ([Function(str(i), code) for i, code in enumerate(codes)] for codes in (before, after))
    assert carry_trust.difference(before, after) == reason


def test_a_renamed_kernel_is_compared_with_the_one_most_like_it():
    code = {name.replace("flash_forward", "flash_front"): code for name, code in CODE.items()}
    code["flash_front_kernel<(Element)0, 64>"] = "other"
    table, messages = carry(tree(FORWARD), tree(code=code, flash_backward=1, flash_front=1))
    assert table == set()
    assert messages == [
        "dropped flash_forward, bfloat16, 9.0: 1 of 2 functions differ: flash_forward_kernel<(Element)0, 64>"
    ]


def test_the_kernel_that_a_function_belongs_to():
    kernels = ("flash_forward", "flash_backward", "flash_forward_sm90", "flash")
    for function, kernel in {
        "flash_backward_query_kernel<(E)0>": "flash_backward",
        "flash_forward_kernel": "flash_forward",
        "flash_forward_sm90_kernel<64>": "flash_forward_sm90",
        "flash_forwarding_kernel": "flash",
        "image_probe_kernel": "",
    }.items():
        assert carry_trust.kernel_of(function, kernels) == kernel


def test_the_dtypes_that_a_function_belongs_to():
    assert carry_trust.dtypes_of("k<(FrameElement)0, 128, true>") == ["bfloat16"]
    assert carry_trust.dtypes_of("k<64, Tile<(Element)1>>") == ["float16"]
    assert list(carry_trust.dtypes_of("k<64, (unsigned int)1>")) == ["bfloat16", "float16"]


def test_the_architecture_that_a_line_speaks_of():
    archs = {capability: FORWARD._replace(capability=capability).arch for capability in (80, 89, 90, 100, 120)}
    assert archs == {80: "sm_80", 89: "sm_80", 90: "sm_90a", 100: "sm_100", 120: "sm_120"}
    assert str(FORWARD._replace(capability=120)) == "flash_forward, bfloat16, 12.0"


def test_lines_of_later_runs_stay():
    later = {FORWARD._replace(version=2), Line("flash_offset", 2, 90, "float16")}
    versions = {"flash_forward": 2, "flash_backward": 2, "flash_offset": 2}
    changed = {**CODE, "flash_forward_kernel<(Element)0, 64>": "other"}
    table, messages = carry(tree(FORWARD), tree(*later, code=changed, **versions))
    assert table == later
    assert [message.split(":")[0] for message in messages] == [
        "dropped flash_forward, bfloat16, 9.0",
        "kept flash_forward, bfloat16, 9.0",
        "kept flash_offset, float16, 9.0",
    ]
    # One that the table got since, of kernels that are the same.
    assert carry(tree(), tree(FORWARD)) == ({FORWARD}, [])


def test_lines_that_no_run_explains_go():
    changed = {name.replace("flash_forward", "flash_front"): code + "'" for name, code in CODE.items()}
    new = tree(FORWARD._replace(kernel="flash_front"), code=changed, flash_front=1, flash_backward=1)
    table, messages = carry(tree(FORWARD), new)
    assert table == set()
    assert messages[1] == "dropped flash_front, bfloat16, 9.0: it may be what flash_forward was"
    stale = BACKWARD._replace(version=7)
    message = "dropped flash_backward, bfloat16, 9.0: the working tree has no version 7 of it"
    assert carry(tree(), tree(stale)) == (set(), [message])


# ---- In a repository -------------------------------------------------------------------------------------------------

KERNEL = """
#include "csrc/element.h"
namespace frameattn {
__constant__ float table[2] = {1, 2};
struct Params {
  float* y;
  int first;
};
template <Element element, int width>
__global__ void flash_forward_kernel(Params p) {
  __shared__ float row[width];
  row[threadIdx.x] = p.y[threadIdx.x] * (element == Element::bfloat16 ? 3.5f : 4.5f);
  __syncthreads();
  p.y[threadIdx.x] = row[63 - threadIdx.x] + table[p.first];
}
template __global__ void flash_forward_kernel<Element::bfloat16, 64>(Params);
template __global__ void flash_forward_kernel<Element::float16, 64>(Params);
}  // namespace frameattn
"""
ELEMENT = "namespace frameattn {\nenum class Element { bfloat16, float16 };\n}\n"
COMMENT = "// Kernels that passed.\n"


class Repository:
    def __init__(self, root: Path):
        self.root = root
        self.write("setup.py", 'flags["nvcc"] = ["-std=c++20", "-lineinfo", *optimisation[:1]]\n')
        self.write("benchmarks/__init__.py", "")
        self.write("benchmarks/gpu_check/__init__.py", "")
        self.names(flash_forward=1)
        self.write("csrc/trust/trusted_kernels.inc", table("flash_forward", 1))
        self.write("csrc/sources.txt", "# All.\ncsrc/one.cpp\ncuda csrc/shared/one.cu\n")
        self.write("csrc/element.h", ELEMENT)
        self.write("csrc/shared/one.cu", KERNEL)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", "first")

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def names(self, **versions: int) -> None:
        text = f"def kernel_versions(root):\n    return {json.dumps(versions)}\n"
        self.write("benchmarks/gpu_check/provenance.py", text)

    def move(self) -> None:
        """Another file, another name of kernel and enumeration, another order."""
        (self.root / "csrc/shared/one.cu").unlink()
        (self.root / "csrc/trust/trusted_kernels.inc").rename(self.root / "csrc/trusted_kernels.inc")
        self.write("csrc/sources.txt", "cuda csrc/kernels/forward.cu\n")
        self.write("csrc/element.h", ELEMENT.replace("Element", "FrameElement"))
        lines = KERNEL.replace("Element", "FrameElement").replace("flash_forward", "flash_forward_sm80").splitlines()
        lines[-3:-1] = lines[-2:-4:-1]
        self.write("csrc/kernels/forward.cu", "\n".join(lines))
        self.names(flash_forward_sm80=2)


def table(kernel: str, version: int, *dtypes: str) -> str:
    lines = [f'{{"{kernel}", {version}, 90, "{dtype}"}},\n' for dtype in dtypes or ("bfloat16", "float16")]
    return COMMENT + "".join(lines)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(carry_trust, "ROOT", tmp_path)
    return Repository(tmp_path)


@pytest.fixture
def no_compiler(monkeypatch):
    """The code of a kernel is then the text of its file."""

    def functions(nvcc: Path, root: Path, file: str, arch: str) -> list[Function]:
        text = (root / file).read_text()
        name = "flash_forward_sm80" if "flash_forward_sm80" in text else "flash_forward"
        code = text.replace(name, "").replace("Element", "").replace("Frame", "")
        return [Function(f"{name}_kernel<(E){n}>", str(sorted(code.split()))) for n in range(2)]

    monkeypatch.setattr(carry_trust, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(carry_trust, "compile_functions", functions)


def test_the_file_is_rewritten(repository, no_compiler, capsys):
    assert carry_trust.main(["--from", "HEAD", "--check"]) == 0
    assert capsys.readouterr().out == "csrc/trust/trusted_kernels.inc: 2 lines, unchanged\n"

    repository.move()
    file = repository.root / "csrc/trusted_kernels.inc"
    for arguments, status, state, text in (
        (["--check"], 1, "would change", table("flash_forward", 1)),
        ([], 0, "written", table("flash_forward_sm80", 2)),
        (["--check"], 0, "unchanged", table("flash_forward_sm80", 2)),
    ):
        assert carry_trust.main(["--from", "HEAD", *arguments]) == status
        assert capsys.readouterr().out.splitlines()[-1] == f"csrc/trusted_kernels.inc: 2 lines, {state}"
        assert file.read_text() == text

    kernel = repository.root / "csrc/kernels/forward.cu"
    kernel.write_text(kernel.read_text().replace("4.5", "4"))
    assert carry_trust.main(["--from", "HEAD"]) == 0
    assert file.read_text() == COMMENT


def test_what_cannot_be_compared_is_an_error(repository, no_compiler, monkeypatch, capsys):
    def error(*arguments: str) -> str:
        assert carry_trust.main([*arguments]) == 2
        return capsys.readouterr().err

    assert "carry_trust.py: git archive nowhere: fatal: " in error("--from", "nowhere")
    monkeypatch.setattr(carry_trust, "find_nvcc", lambda: None)
    assert error("--from", "HEAD") == "carry_trust.py: nvcc was not found\n"
    repository.write("csrc/trusted_kernels.inc", COMMENT)
    assert error("--from", "HEAD").endswith("csrc must have one file trusted_kernels.inc, found 2\n")
    repository.write("benchmarks/gpu_check/provenance.py", "")
    assert "the versions of the kernels cannot be read in" in error("--from", "HEAD")


def test_an_empty_table_needs_no_compiler(repository, monkeypatch, capsys):
    monkeypatch.setattr(carry_trust, "find_nvcc", lambda: None)
    repository.write("csrc/trust/trusted_kernels.inc", COMMENT)
    repository.git("commit", "--quiet", "-a", "-m", "second")
    assert carry_trust.main(["--from", "HEAD"]) == 0
    assert capsys.readouterr().out == "csrc/trust/trusted_kernels.inc: 0 lines, unchanged\n"


@pytest.fixture(scope="module")
def nvcc() -> Path:
    with patch.dict(os.environ):  # setup.py sets defaults there
        found = carry_trust.find_nvcc()
    if found is None:
        pytest.skip("nvcc was not found")
    return found


def test_compiled_kernels_of_another_name_and_file(repository, nvcc, monkeypatch):
    monkeypatch.setattr(carry_trust, "find_nvcc", lambda: nvcc)
    repository.move()
    kernel = repository.root / "csrc/kernels/forward.cu"
    kernel.write_text(kernel.read_text().replace("4.5f", "4.75f"))
    assert carry_trust.main(["--from", "HEAD"]) == 0
    assert (repository.root / "csrc/trusted_kernels.inc").read_text() == table("flash_forward_sm80", 2, "bfloat16")


def test_all_that_a_function_computes_with_is_compared(repository, nvcc):
    def compiled(source: str) -> list[Function]:
        repository.write("csrc/kernel.cu", source)
        return sorted(carry_trust.compile_functions(nvcc, repository.root, "csrc/kernel.cu", "sm_90a"))

    first = compiled(KERNEL)
    assert [function.name for function in first] == [f"flash_forward_kernel<(Element){n}, 64>" for n in range(2)]
    assert first[0].code != first[1].code
    assert compiled("\n" + KERNEL.replace("row", "line")) == first
    for change in (
        ("{1, 2}", "{1, 3}"),  # a constant of the file
        ("int first;", "int first; float* z;"),  # the size of the parameters
        ("row[width]", "row[width + 1]"),  # shared memory
    ):
        changed = compiled(KERNEL.replace(*change))
        assert [f.name for f in changed] == [f.name for f in first]
        assert all(f.code != g.code for f, g in zip(changed, first, strict=True)), change


def test_a_compiler_error_is_said(repository, nvcc, monkeypatch, capsys):
    monkeypatch.setattr(carry_trust, "find_nvcc", lambda: nvcc)
    repository.write("csrc/shared/one.cu", "no kernel")
    assert carry_trust.main(["--from", "HEAD"]) == 2
    assert "nvcc failed for" in capsys.readouterr().err
