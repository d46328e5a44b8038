"""What benchmarks.gpu_check makes of dumps, of other tools and of tests; no GPU is needed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import frame_problems
import gpu_comparison
import numpy as np
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.cases import Case, Disagreement, calls, check_agreement
from benchmarks.gpu_check import elements, profiling, sanitizer, stages, temporal, timings
from benchmarks.gpu_check.clock import number_of_sets
from benchmarks.shapes import VideoShape

CASES = (  # as the names of the program's cases begin
    "frame_attention_forward_sm80", "frame_attention_backward_sm80",
    "frame_update_forward_sm80", "frame_update_backward_sm80",
    "flash_forward_sm80", "flash_backward_sm80", "flash_join_sm80", "flash_sum_sm80",
    "flash_forward_sm90", "flash_backward_sm90",
    "modulation_norm_forward_sm80", "modulation_norm_backward_sm80",
    "modulation_gate_forward_sm80", "modulation_gate_backward_sm80",
)  # fmt: skip

# Dumps


def test_equal_dumps_pass():
    values = np.array([1, -2, np.inf, np.nan, 0], np.float32)
    assert elements.compare(values, values.copy(), "float16")["passed"]
    assert elements.compare(values[:0], values[:0], "float16")["passed"]
    zero = np.zeros(3, np.float32)
    assert elements.compare(zero, zero, "bfloat16")["passed"]
    assert not elements.compare(zero, zero + 1, "bfloat16")["passed"]


@pytest.mark.parametrize("dtype, inside, outside", [("bfloat16", 0.009, 0.011), ("float16", 0.0019, 0.0021)])
def test_a_difference_counts_relative_to_the_largest_element(dtype, inside, outside):
    expected = np.array([4, 1, 0.5], np.float32)
    verdicts = [elements.compare(expected, expected + np.float32(4 * x), dtype) for x in (inside, outside)]
    assert [verdict["passed"] for verdict in verdicts] == [True, False]
    assert verdicts[0]["relative"] == pytest.approx(inside, rel=1e-3)
    assert verdicts[1]["reason"].startswith("relative difference")


def test_counts_elements_beyond_two_ulp_of_bfloat16():
    expected = np.array([1, 1, 1.99, -3, 0], np.float32)
    ulp = np.array([1, 1, 1, 2, 0], np.float32) / 128  # of the numbers from 1 to 2, and from 2 to 4
    verdict = elements.compare(expected, expected + ulp * np.array([1.9, 2.1, -2.1, 2.1, 0], np.float32), "bfloat16")
    assert verdict["beyond_2_ulp"] == 3


@pytest.mark.parametrize("planted", [np.nan, np.inf])
def test_a_dump_with_another_nan_infinity_or_length_fails(planted):
    expected = np.array([1, np.inf, 3], np.float32)
    actual = expected.copy()
    actual[0] = planted
    assert "not finite" in elements.compare(expected, actual, "bfloat16")["reason"]
    assert "not finite" in elements.compare(actual, expected, "bfloat16")["reason"]
    assert elements.compare(expected, expected[:2], "bfloat16")["reason"] == (
        "3 elements on the emulator, 2 on the GPU"
    )


def fake_program(folder: Path, name: str, factor: float) -> Path:
    """Two cases, of which the second fails against its reference on the GPU, and dumps of multiples of `factor`."""
    program = folder / name / "kernels"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport array, sys\n"
        "cases = ['frame_update_forward_sm80-float16-T7', 'frame_attention_backward_sm80-bfloat16-T7']\n"
        "if '--list' in sys.argv: sys.exit(print(*cases, sep='\\n'))\n"
        "if '--dump' in sys.argv:\n"
        f"    array.array('f', [{factor}, {2 * factor}]).tofile(open(sys.argv[4], 'wb'))\n"
        "    cases = [sys.argv[2]]\n"
        f"bad = 'attention' in cases[-1] and {name == 'device'}\n"
        "print('FAILED' if bad else 'ok', cases[-1] + ': out 0.1')\n"
        "sys.exit(bad)\n"
    )
    program.chmod(0o755)
    return program


def test_elements_compares_what_both_programs_dump(tmp_path, monkeypatch):
    for name, factor in (("emulator", 1.0), ("device", 1.001)):
        monkeypatch.setattr(elements, f"{name.upper()}_PROGRAM", fake_program(tmp_path, name, factor))
    monkeypatch.setattr(sys, "argv", ["elements", "--json", str(tmp_path / "elements.json")])
    assert elements.main() == 1
    values = json.loads((tmp_path / "elements.json").read_text())
    of_all, first, second = values["cases"]
    assert (of_all["case"], of_all["reason"]) == ("frame_attention_backward_sm80-bfloat16-T7", "out 0.1")
    assert first["passed"] and first["relative"] == pytest.approx(0.001, rel=1e-2)
    assert second["reason"] == "device: exit status 1: FAILED frame_attention_backward_sm80-bfloat16-T7: out 0.1"
    assert values["kernels"] == {
        "frame_update_forward_sm80": {"float16": "passed"},
        "frame_attention_backward_sm80": {"bfloat16": "failed"},
    }
    assert values["failed"].startswith("2 of 3 cases failed: frame_attention_backward_sm80-bfloat16-T7")


def test_a_program_that_crashes_fails(tmp_path):
    program = tmp_path / "kernels"
    program.write_text("#!/bin/sh\necho an illegal memory access >&2\nexit 134\n")
    program.chmod(0o755)
    (failed,) = elements.failures_of_all(program)
    assert failed["reason"] == "exit status 134: an illegal memory access"


def test_a_sample_has_cases_of_every_kernel_and_dtype():
    # dtypes take turns: every second case would be of one of them
    names = [f"{word}-{d}-T{i}" for word in CASES for i in range(35) for d in gpu_check.KERNEL_DTYPES]
    chosen = elements.sample(names, 96)
    assert len(set(chosen)) == len(chosen) == 4 * 28
    for word in CASES:
        for dtype in gpu_check.KERNEL_DTYPES:
            assert sum(name.startswith(f"{word}-{dtype}") for name in chosen) == 4
    assert sorted(elements.sample(names[:5], 96)) == sorted(names[:5])
    assert elements.sample([], 96) == []


def test_cases_are_of_a_kernel_and_a_dtype():
    assert elements.dtype_of("frame_attention_forward_sm80-bfloat16-T7") == "bfloat16"
    assert elements.dtype_of("frame_attention_forward_sm80-float16-T7") == "float16"
    assert elements.dtype_of("modulation_norm_forward_sm80-float32-float16-by-float32") == "float16"
    assert elements.dtype_of("modulation_norm_forward_sm80-float32-float32-by-bfloat16") == "bfloat16"
    assert elements.dtype_of("modulation_norm_forward_sm80-float32-float32-by-float32") == "float32"
    with pytest.raises(ValueError, match="names none of the dtypes"):
        elements.dtype_of("frame_attention_forward_sm80-T7")
    assert elements.kernels_of("frame_attention_forward_sm80-float16-T7") == ["frame_attention_forward_sm80"]
    assert elements.kernels_of("flash_join_sm80-float16-v-1x1-D64-V64-random") == ["flash_join_sm80"]
    both = ["flash_backward_sm80", "flash_offset_sm80"]
    assert elements.kernels_of("flash_backward_sm80-bfloat16-k-1x1-D64-V64-flat") == both
    assert elements.kernels_of("copy-float16") == []


# What tools and pytest say


def test_sanitizer_tells_findings_from_a_tool_that_is_refused(monkeypatch):
    def answers(under_tool, alone):
        monkeypatch.setattr(
            sanitizer, "run", lambda command: (under_tool if command[0] == "compute-sanitizer" else alone, "words")
        )
        return sanitizer.check("memcheck", "case")["status"]

    assert answers(0, None) == "passed"
    assert answers(sanitizer.FOUND, 0) == "failed"
    assert answers(255, 0) == "refused"
    assert answers(255, 1) == "failed"
    sizes = ("T7", "kv-130x98", "kv-63x64")
    names = [f"{word}-{dtype}-{size}" for word in CASES for dtype in gpu_check.KERNEL_DTYPES for size in sizes]
    chosen = sanitizer.handful(names, quick=False)
    assert len(set(chosen)) == len(gpu_check.KERNELS)
    for kernel, name in zip(gpu_check.KERNELS, chosen, strict=True):
        assert kernel in elements.kernels_of(name) and name.endswith("130x98")
    assert {elements.dtype_of(name) for name in chosen} == set(gpu_check.KERNEL_DTYPES)


def test_what_the_sanitizer_finds_is_a_failure_of_the_kernel(tmp_path, monkeypatch):
    names = [f"{word}-{dtype}-T7" for word in CASES for dtype in gpu_check.KERNEL_DTYPES]

    def check(tool, case):
        found = (tool, case) == ("racecheck", "flash_join_sm80-float16-T7")
        refused = (tool, case) == ("synccheck", "frame_attention_forward_sm80-bfloat16-T7")
        return {"tool": tool, "case": case, "status": "failed" if found else "refused" if refused else "passed"}

    monkeypatch.setattr(sanitizer, "check", lambda tool, case: {**check(tool, case), "reason": "words"})
    monkeypatch.setattr(sanitizer, "list_cases", lambda program: names)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(sanitizer, "DEVICE_PROGRAM", tmp_path)
    monkeypatch.setattr(sys, "argv", ["sanitizer", "--json", str(tmp_path / "sanitizer.json")])
    assert sanitizer.main() == 1
    values = json.loads((tmp_path / "sanitizer.json").read_text())
    assert values["failed"] == "racecheck on flash_join_sm80-float16-T7"
    assert values["kernels"]["flash_join_sm80"] == {"float16": "failed"}
    del values["kernels"]["flash_join_sm80"]
    assert {verdict for kernel in values["kernels"].values() for verdict in kernel.values()} == {"passed"}
    assert "frame_attention_forward_sm80" in values["kernels"]


def test_reads_what_ncu_writes():
    output = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","dram__throughput.avg","dram__throughput.max","dram__bytes.sum.per_second",'
        '"smsp__average_warps_issue_stalled_wait.ratio","other"\n'
        '"","","%","%","byte/s","inst",""\n'
        '"0","frame_update_forward_kernel","83.1","84","2,500","1,250.5","7"\n'
    )
    (launch,) = profiling.read_metrics(output)
    assert launch == {
        "kernel": "frame_update_forward_kernel",
        "dram__throughput.avg": "83.1 %",
        "dram__bytes.sum.per_second": "2,500 byte/s",
        "smsp__average_warps_issue_stalled_wait.ratio": "1,250.5 inst",
    }
    assert len(profiling.format_launch(launch)) == 4
    assert profiling.read_metrics("==ERROR== ERR_NVGPUCTRPERM") == []


def report_on(folder: Path) -> dict:
    """What the plugin says of test_kernels.py in the folder."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = kernels(*names): of them\n")
    environment = stages.environment() | {"FRAMEATTN_TEST_REPORT": str(folder / "report.json")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_check.pytest_report", "test_kernels.py"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    return json.loads((folder / "report.json").read_text())


def test_a_kernel_passes_only_if_every_test_of_it_ran_and_passed(tmp_path):
    (tmp_path / "test_kernels.py").write_text(
        "import pytest\n"
        "@pytest.mark.kernels('first', 'second')\n"
        "@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])\n"
        "def test_a(dtype): assert dtype != 'float16'\n"
        "@pytest.mark.kernels('second')\n"
        "@pytest.mark.parametrize('dtype', ['bfloat16'])\n"
        "def test_b(dtype): pytest.skip('not here')\n"
    )
    values = report_on(tmp_path)
    assert values["kernels"] == {
        "first": {"bfloat16": "passed", "float16": "failed", "float32": "passed"},
        "second": {"bfloat16": "skipped", "float16": "failed", "float32": "passed"},
    }
    assert values["counts"] == {"passed": 2, "failed": 1, "skipped": 1}


def test_a_wrong_result_is_a_failure_of_the_kernels_that_it_comes_from(tmp_path):
    (tmp_path / "test_kernels.py").write_text(
        "import pytest\n"
        "class Wrong(AssertionError): kernels = {'backward', 'other'}\n"
        "@pytest.mark.kernels('forward', 'backward')\n"
        "@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])\n"
        "def test_a(dtype):\n"
        "    if dtype == 'float16': raise Wrong\n"
        "@pytest.mark.kernels('forward')\n"
        "@pytest.mark.parametrize('dtype', ['bfloat16'])\n"
        "def test_b(dtype): pytest.skip('not here')\n"
    )
    assert report_on(tmp_path)["kernels"] == {
        "forward": {"bfloat16": "skipped", "float16": "passed"},
        "backward": {"bfloat16": "passed", "float16": "failed"},
        "other": {"float16": "failed"},
    }


BOTH = ("frame_update_forward_sm80", "frame_update_backward_sm80")


@pytest.mark.parametrize(
    "size, spoiled, kernels",
    [
        (7, 0, {"frame_update_forward_sm80"}),
        (7, 2, {"frame_update_backward_sm80"}),  # after two outputs, of the three inputs' gradients
        (7, None, set(BOTH)),
        (65, 0, {"frame_update_forward_sm80"}),
        (65, 4, {"frame_attention_forward_sm80", "frame_attention_backward_sm80"}),  # by blocks of these
        (129, 1, {"frame_attention_forward_sm80"}),
    ],
)
def test_a_comparison_names_the_kernels_of_what_is_wrong(monkeypatch, size, spoiled, kernels):
    problem = frame_problems.TEMPORAL_UPDATE

    def results(function, *arguments):
        found = honest(function, *arguments)
        if function is problem.op:
            found = [2 * t if spoiled in (None, i) else t for i, t in enumerate(found)]
        return found

    honest = gpu_comparison.results_of
    monkeypatch.setattr(gpu_comparison, "results_of", results)
    with pytest.raises(gpu_comparison.WrongResult) as caught:
        gpu_comparison.check(problem, size, problem.inputs(size, 8, torch.float32))
    assert caught.value.kernels == kernels
    if spoiled is not None:
        assert f"temporal_update: result {spoiled}: error" in str(caught.value)


def test_gradients_are_compared_where_the_mass_is_not_near_its_floor():
    """Two floors that lie close to each other: at masses between them the gradient jumps."""
    shape = VideoShape(16, 8, 16, head_dim=64, heads=2)
    torch.manual_seed(0)
    problem = temporal.update(shape, torch.float32, torch.device("cpu"))
    floors = {"lower": temporal.MASS_FLOOR - 5e-4, "upper": temporal.MASS_FLOOR + 5e-4}

    def compare(factor=1.0, **changes):
        candidates = {
            name: lambda floor=floor: (
                factor ** (floor == floors["upper"])
                * temporal.eager_update(*problem.inputs.values(), shape.frames, floor)
            )
            for name, floor in floors.items()
        }
        case = Case("temporal_update", shape, torch.bfloat16, "forward+backward", None)
        changed = replace(problem, candidates=candidates, **changes)
        check_agreement(case, changed, calls(changed, case.direction))

    compare()
    with pytest.raises(Disagreement, match="gradient of .* of upper differs from lower"):
        compare(comparable=lambda result: result)
    with pytest.raises(Disagreement):  # most positions are compared, by the tolerance of all
        compare(factor=1.06)
    left = problem.comparable(problem.inputs["entropy"])
    assert 0.8 * problem.inputs["entropy"].numel() < left.numel() < problem.inputs["entropy"].numel()


def test_operations_fail_the_kernels_behind_their_results():
    kernels_behind = gpu_check.kernels_behind
    assert kernels_behind("temporal_update", False) == ["frame_update_forward_sm80"]
    assert kernels_behind("MatrixAttention", True) == ["frame_attention_backward_sm80"]
    forward = ["flash_forward_sm80", "flash_join_sm80", "flash_forward_sm90"]
    assert kernels_behind("spatial_last", False) == forward
    backward = ["flash_backward_sm80", "flash_offset_sm80", "flash_sum_sm80", "flash_backward_sm90"]
    assert kernels_behind("spatial_step", True) == backward
    operations = ("vmonarch_attention", "modulated_layer_norm", "gated_add")
    all_kernels = [kernel for name in operations for of in (False, True) for kernel in kernels_behind(name, of)]
    assert sorted(all_kernels) == sorted(gpu_check.KERNELS)
    assert kernels_behind("gated_add", True) == ["modulation_gate_backward_sm80"]
    assert kernels_behind("dense attention", False) == []
    for case in timings.all_cases(quick=False):
        assert timings.kernels_of(case) or case.case.operation == "dense attention"


def test_sets_of_inputs_exceed_the_cache():
    assert number_of_sets(10**9, 50 * 2**20) == 2
    assert number_of_sets(50 * 2**20, 50 * 2**20) == 4
    assert number_of_sets(1, 50 * 2**20) == 8


def test_unavoidable_bytes_are_those_of_the_design():
    """Forward and backward of the paper's XL: 47.2 and 75.5 MB a clip; four clips are measured."""
    forward, backward, *_ = (case.bytes / 4 / 1e6 for case in timings.all_cases(quick=True))
    assert (forward, backward - forward) == (pytest.approx(47.2, abs=0.05), pytest.approx(75.5, abs=0.05))
