"""The benchmarks run and write what they promise, on a problem so small that its times mean nothing."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COLUMNS = (
    "commit,torch,device,threads,operation,shape,dtype,direction,candidate,min_s,median_s,q1,q3,repetitions,peak_bytes,"
    "speedup"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    # A process of its own, started as the documentation says: the folder of this test has the same name as the package.
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_dry_run_lists_the_cases():
    result = run("matrix_attention", "--dry-run", "--filter", "module")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        f"module/{shape}/{dtype}/{direction}"
        for shape in ("S", "XL")
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "forward+backward")
    ]


def test_writes_table_csv_and_plot(tmp_path):
    cases = "module/.*backward|float32/forward$"
    result = run("matrix_attention", "--quick", "--shapes", "tiny", "--filter", cases, "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "torch " in result.stdout and "commit" in result.stdout
    assert (tmp_path / "matrix_attention.png").read_bytes().startswith(b"\x89PNG")

    with (tmp_path / "matrix_attention.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert ",".join(reader.fieldnames) == COLUMNS
    assert {row["operation"] for row in rows} == {"attention", "linear_qk", "linear_v", "linear_proj", "module"}
    assert {"eager", "frameattn"} <= {row["candidate"] for row in rows}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {row["direction"] for row in rows} == {"forward", "forward+backward"}
    for row in rows:
        assert 0 < float(row["min_s"]) <= float(row["q1"]) <= float(row["median_s"]) <= float(row["q3"])
        assert int(row["repetitions"]) == 3
        assert row["candidate"] != "eager" or float(row["speedup"]) == 1
        # The output alone is B T N D = 192 elements in the module; less means that memory was not measured.
        if row["operation"] == "module":
            assert int(row["peak_bytes"]) >= 192 * {"float32": 4, "bfloat16": 2}[row["dtype"]]


def test_compares_vmonarch_with_dense_attention(tmp_path):
    result = run("vmonarch_attention", "--quick", "--shapes", "3x2x4-d8", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "vmonarch_attention.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "vmonarch_attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == 4 * ["sdpa", "eager", "frameattn"]
    assert all(float(row["speedup"]) == 1 for row in rows if row["candidate"] == "sdpa")


def test_refuses_to_time_candidates_that_differ():
    program = """
import torch
from benchmarks.cases import Case, Problem, calls, check_agreement
from benchmarks.shapes import MATRIX_SHAPES

x = torch.randn(3, 3, requires_grad=True)
for factor in (1, 1.001):
    problem = Problem({"x": x}, {"eager": lambda: x * x, "other": lambda: factor * x * x})
    case = Case("square", MATRIX_SHAPES["tiny"], torch.float32, "forward+backward", None)
    check_agreement(case, problem, calls(problem, case.direction))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "Disagreement: square/tiny/float32/forward+backward: " in result.stderr
    assert "of other differs from eager" in result.stderr


def test_names_the_shapes_there_are():
    result = run("matrix_attention", "--shapes", "M")
    assert result.returncode == 1
    assert "no shape M; there are S, XL, tiny" in result.stderr
