"""The benchmarks run and write what they promise, on a problem so small that its times mean nothing."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[3]
COLUMNS = (
    "commit,torch,device,threads,operation,shape,dtype,direction,candidate,min_s,median_s,q1,q3,repetitions,peak_bytes,"
    "operations,block_gemm_rate,speedup"
)


def run(*arguments: str, script: str = "run") -> subprocess.CompletedProcess:
    # A process of its own, started as the documentation says: the folder of this test has the same name as the package.
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", f"benchmarks.{script}", *arguments]
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
    operations = {"attention", "linear_qk", "linear_v", "linear_proj", "module", "block"}
    assert {row["operation"] for row in rows} == operations
    assert {"eager", "frameattn"} <= {row["candidate"] for row in rows}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {row["direction"] for row in rows} == {"forward", "forward+backward"}
    for row in rows:
        assert 0 < float(row["min_s"]) <= float(row["q1"]) <= float(row["median_s"]) <= float(row["q3"])
        assert int(row["repetitions"]) == 3
        assert row["candidate"] != "eager" or float(row["speedup"]) == 1
        assert int(row["operations"]) > 0
        assert row["dtype"] != "float32" or float(row["block_gemm_rate"]) > 1e9
        # The output alone is B T N D = 192 elements in the module; less means that memory was not measured.
        if row["operation"] == "module":
            assert int(row["peak_bytes"]) >= 192 * {"float32": 4, "bfloat16": 2}[row["dtype"]]


def counts_sdpa_on_cpu() -> bool:
    """Newer versions of torch have a formula for their own attention there (2.15 has, 2.13 has not)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry


def test_compares_vmonarch_with_dense_attention(tmp_path):
    result = run("vmonarch_attention", "--quick", "--shapes", "3x2x4-d8", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "vmonarch_attention.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "vmonarch_attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == 4 * ["sdpa", "eager", "frameattn"]
    assert all(float(row["speedup"]) == 1 for row in rows if row["candidate"] == "sdpa")
    forward = [int(row["operations"]) for row in rows if row["direction"] == "forward"]
    sdpa = 2 * 2 * 24 * 24 * 8 * 2 if counts_sdpa_on_cpu() else 0
    # 24 tokens, 8 positions, 3 frames, d = 8, two heads: keys twice and values, frames, dense first frame
    assert forward == 2 * [sdpa, forward[1], 2 * 2 * 8 * (24 * 8 * 5 + 24 * 3 * 4 + 8 * 24 * 2)]


def test_compares_one_frame_with_dense_attention(tmp_path):
    result = run("vmonarch_attention", "--quick", "--shapes", "1x2x4-d8", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    with (tmp_path / "vmonarch_attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["operation"], row["candidate"]) for row in rows] == 4 * [("dense", "sdpa"), ("dense", "frameattn")]


def test_fits_the_growth_with_the_number_of_frames(tmp_path):
    cases = "growth/.*float32/forward$"
    shapes = ["16x28x52-d64", "8x28x52-d64"]
    result = run("vmonarch_attention", "--quick", "--shapes", *shapes, "--filter", cases, "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert re.search(r"float32, forward: time grows as frames\^-?\d\.\d\d from 8 to 16 frames", result.stdout)
    assert (tmp_path / "vmonarch_attention_growth.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "vmonarch_attention.csv").open() as file:
        assert [row["operation"] for row in csv.DictReader(file)] == ["growth", "growth"]


def test_profiles_vmonarch():
    result = run("--quick", "--shape", "3x2x4-d8", script="profile_vmonarch")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\ntemporal steps ") == 2
    # Two tensors like query, one like value, and six numbers a row of 8: less means that something was not counted.
    kept = [float(x) for x in re.findall(r"([\d.]+) x query kept for backward", result.stdout)]
    assert kept == [3 + 6 / 8, 3 + 2 * 6 / 8]


def test_operator_and_reference_are_equally_accurate():
    tables = [run("--quick", "--implementation", i, script="accuracy") for i in ("reference", "operator")]
    assert all(table.returncode == 0 for table in tables), tables
    numbers = [[float(x) for x in re.findall(r"\d+\.\d+", table.stdout)] for table in tables]
    assert len(numbers[0]) > 40
    assert numbers[1] == pytest.approx(numbers[0], abs=0.0011)  # the last digit, as it is rounded


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
    assert "no shape M; there are S, XL, T2V, tiny" in result.stderr
