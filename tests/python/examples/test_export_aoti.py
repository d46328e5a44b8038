"""examples/export_aoti.py, and docs/cpp.md, whose code is that of examples/cpp. `make test-cpp` runs the C++ half."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import frameattn  # noqa: F401  # whose operators a package calls

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder with the package of FrameDiT, and what was printed. inductor and g++ take half a minute."""
    folder = tmp_path_factory.mktemp("packages")
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "export_aoti.py", "--out", folder, "--models", "framedit"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout.splitlines()


def test_package_is_as_eager_at_every_size(exported):
    _, (summary, *lines) = exported
    assert re.fullmatch(r"framedit: \d+ KiB, calls .*matrix_attention, matrix_linear, .*vmonarch_attention", summary)
    errors = [float(re.search(r"error (\S+) of", line)[1]) for line in lines]
    assert len(errors) == 3 and max(errors) < 1e-5


def test_package_and_cases_load(exported):
    folder, _ = exported
    package = torch._inductor.aoti_load_package(str(folder / "framedit.pt2"))
    cases = torch.load(folder / "framedit.cases.pt", weights_only=True)
    assert [tuple(clips.shape[:2]) for _, clips, _, _ in cases] == [(2, 4), (3, 7), (1, 16)]
    for expected, *inputs in cases:
        torch.testing.assert_close(package(*inputs), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_threads_are_those_of_the_program(exported):
    """Exported by one thread, and yet parallel."""
    with zipfile.ZipFile(exported[0] / "framedit.pt2") as package:
        kernels = "".join(package.read(name).decode() for name in package.namelist() if name.endswith(".kernel.cpp"))
    assert "#pragma omp parallel" in kernels and "num_threads(" not in kernels


def test_code_of_the_page_is_that_of_the_examples():
    folder = ROOT / "examples" / "cpp"
    sources = {"cmake": (folder / "CMakeLists.txt").read_text()}
    sources["cpp"] = "".join(path.read_text() for path in folder.glob("*.cpp"))
    blocks = re.findall(
        r"^```(cmake|cpp)\n(.*?)^```$", (ROOT / "docs" / "cpp.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert [language for language, _ in blocks] == ["cmake", "cpp", "cpp", "cpp"]
    for language, block in blocks:
        assert block in sources[language]
