"""benchmarks.gpu_report on results that were made up, in a checkout that was made up."""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import provenance
from benchmarks.gpu_report import __main__ as report
from benchmarks.gpu_report import tables, trust

ROOT = Path(__file__).resolve().parents[3]


def row(candidate: str, median: float, operation: str = "temporal_update", direction: str = "forward") -> dict:
    times = {"min": median, "median": median, "q1": 0.9 * median, "q3": 1.1 * median, "repetitions": 20}
    case = {"operation": operation, "shape": "21x30x52-d128", "dtype": "bfloat16", "direction": direction}
    return {
        **case,
        "candidate": candidate,
        **times,
        "bytes": 3 * 10**8,
        "operations": 10**10,
        "peak_bytes": 2**30,
        "error": 1e-3,
    }


def synthetic(**changes) -> dict:
    passed = {"elements": "passed", "tests": "passed"}
    kernels = {kernel: dict.fromkeys(gpu_check.KERNEL_DTYPES, passed) for kernel in gpu_check.KERNELS[:2]}
    kernels["flash_forward_sm80"] = {"bfloat16": passed, "float16": {**passed, "tests": "failed"}}
    kernels["frame_update_forward_sm80"] = {"bfloat16": passed, "float16": {**passed, "elements": "not run"}}
    kernels["frame_update_backward_sm80"] = {"bfloat16": {**passed, "tests": "skipped"}, "float16": passed}
    failed = {**passed, "sanitizer": "failed"}
    kernels["flash_join_sm80"] = {"bfloat16": failed, "float16": {**passed, "timings": "not run"}}
    machine = {
        "gpu": "NVIDIA H100 80GB HBM3",
        "capability": 90,
        "torch": "2.11.0",
        "cuda": "13.0",
        "driver_version": "580",
    }
    baselines = {
        "copy": {"rate": 3e12},
        "gemm": {"rate": 7.9e14},
        "clocks_under_load": {"clocks.sm": "1980 MHz", "clocks.mem": "2619 MHz"},
        "rows": [row("cuDNN", 2.0, "dense attention"), row("FlashAttention-2", 3.0, "dense attention")],
    }
    measured = [
        row("eager", 1e-3),
        row("torch.compile", 5e-4),
        row("frameattn", 1.25e-4),
        row("eager", 1e-3, "matrix_attention"),
        row("torch.compile", 5e-4, "matrix_attention"),
        row("frameattn", 1.25e-4, "matrix_attention"),
        row("FlashAttention-2", 2e-4, "vmonarch_attention"),
        row("frameattn", 1e-4, "vmonarch_attention"),
        row("cuDNN", 1.9, "dense attention"),
    ]
    return {
        "schema": 2,
        "commit": "abc1234",
        "sources": {},
        "kernel_versions": provenance.kernel_versions(ROOT),
        "started": "2030-01-01T00:00:00+00:00",
        "quick": False,
        "dry_run": False,
        "stages": [
            {"name": "tests", "status": "passed", "reason": ""},
            {"name": "profile", "status": "skipped", "reason": "no"},
        ],
        "kernels": kernels,
        "details": {"machine": machine, "baselines": baselines, "timings": {"rows": measured}},
        **changes,
    }


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What the report reads of a repository, and where it writes."""
    root = tmp_path / "checkout"
    for header, name in provenance.VERSIONS.values():
        file = root / header
        file.parent.mkdir(parents=True)
        file.write_text(f"constexpr int {name} = {provenance.constant_of(ROOT / header, name)};\n")
    (root / "docs").mkdir()
    return root


def make_report(checkout: Path, values: dict) -> int:
    folder = checkout.parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(values))
    return report.main([str(folder), "--root", str(checkout)])


def test_report_writes_measurements_trust_and_the_table(checkout, capsys):
    versions = provenance.kernel_versions(ROOT)
    version, flash = versions["frame_attention_forward_sm80"], versions["flash_forward_sm80"]
    trusted = checkout / "csrc" / "trust" / "trusted_kernels.inc"
    kept = f'{{"frame_attention_forward_sm80", {version}, 80, "bfloat16"}},'
    outdated = (
        f'{{"frame_attention_forward_sm80", {version - 1}, 90, "bfloat16"}},\n{{"flash_gone", {flash}, 90, "float16"}},'
    )
    trusted.parent.mkdir(parents=True)
    trusted.write_text(f"// A comment with an example:\n//   {kept}\n{outdated}\n{kept}\n")
    (checkout / "docs" / "speed.md").write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    assert make_report(checkout, synthetic()) == 0

    assert trusted.read_text().splitlines() == [
        "// A comment with an example:",
        f"//   {kept}",
        f'{{"flash_forward_sm80", {flash}, 90, "bfloat16"}},',
        f'{{"flash_join_sm80", {flash}, 90, "float16"}},',
        f'{{"frame_attention_backward_sm80", {version}, 90, "bfloat16"}},',
        f'{{"frame_attention_backward_sm80", {version}, 90, "float16"}},',
        kept,
        f'{{"frame_attention_forward_sm80", {version}, 90, "bfloat16"}},',
        f'{{"frame_attention_forward_sm80", {version}, 90, "float16"}},',
        f'{{"frame_update_backward_sm80", {version}, 90, "float16"}},',
        f'{{"frame_update_forward_sm80", {version}, 90, "bfloat16"}},',
    ]
    said = capsys.readouterr().out
    assert "not trusted: frame_update_backward_sm80, bfloat16: elements passed, tests skipped" in said
    assert "not trusted: frame_update_forward_sm80, float16: elements not run, tests passed" in said
    assert "not trusted: flash_join_sm80, bfloat16: elements passed, tests passed, sanitizer failed" in said

    folder = checkout / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"
    with (folder / "gpu_check.csv").open() as file:
        rows = {(line["operation"], line["candidate"]): line for line in csv.DictReader(file)}
    ours = rows["temporal_update", "frameattn"]
    assert float(ours["bandwidth_share"]) == pytest.approx(0.8)
    assert (ours["commit"], ours["cuda"], ours["sm_clock"]) == ("abc1234", "13.0", "1980 MHz")
    assert float(rows["temporal_update", "torch.compile"]["speedup_of_ours"]) == pytest.approx(4)
    assert len(rows) == 10
    assert float(rows["dense attention", "cuDNN"]["median"]) == 1.9  # of the later stage
    if tables_have_plots():
        assert (folder / "gpu_check.png").read_bytes().startswith(b"\x89PNG")

    page = (checkout / "docs" / "speed.md").read_text()
    assert page.startswith(f"before\n{tables.BEGIN}\nNVIDIA H100") and page.endswith(f"{tables.END}\nafter\n")
    assert "| 0.125 (0.113 .. 0.138) | 80% | 1024 |  | 8.00x | 4.00x |" in page
    assert "| 0.100 (0.090 .. 0.110) | 100 | 1024 | 2.00x |  |  |" in page
    assert "old" not in page and "dense attention" not in page and "temporal_update" not in page
    assert page.index("| vmonarch_attention") < page.index("| matrix_attention")

    before = {path: path.read_bytes() for path in (trusted, checkout / "docs" / "speed.md")}
    assert make_report(checkout, synthetic()) == 0  # once more changes nothing
    assert before == {path: path.read_bytes() for path in before}


def tables_have_plots() -> bool:
    pytest.importorskip("matplotlib")
    return True


def test_report_leaves_a_page_without_markers_alone(checkout, capsys):
    (checkout / "docs" / "speed.md").write_text("no markers\n")
    assert make_report(checkout, synthetic()) == 0
    assert (checkout / "docs" / "speed.md").read_text() == "no markers\n"
    assert "its table was not written" in capsys.readouterr().out


def test_report_trusts_no_other_version(checkout, capsys):
    """Of a family of kernels; the others are trusted."""
    versions = provenance.kernel_versions(ROOT)
    ran = {kernel: version + kernel.startswith("frame") for kernel, version in versions.items()}
    assert make_report(checkout, synthetic(kernel_versions=ran)) == 0
    lines = (checkout / "csrc" / "trust" / "trusted_kernels.inc").read_text().splitlines()
    flash = versions["flash_forward_sm80"]
    kept = (("flash_forward_sm80", "bfloat16"), ("flash_join_sm80", "float16"))
    assert lines[2:] == [f'{{"{kernel}", {flash}, 90, "{dtype}"}},' for kernel, dtype in kept]
    here = versions["frame_update_forward_sm80"]
    assert (
        f"not trusted: frame_update_forward_sm80, version {here + 1} ran, this checkout has {here}"
        in capsys.readouterr().out
    )


def test_report_writes_what_passed_in_a_run_with_a_failed_stage_and_names_the_stage(checkout, capsys):
    stages = [
        {"name": "tests", "status": "failed", "reason": "1394 passed, 8 failed"},
        {"name": "timings", "status": "passed", "reason": ""},
    ]
    assert make_report(checkout, synthetic(stages=stages)) == 0
    said = capsys.readouterr().out
    assert "stage tests failed: 1394 passed, 8 failed" in said and "stage timings" not in said
    assert '"flash_forward_sm80"' in (checkout / "csrc" / "trust" / "trusted_kernels.inc").read_text()
    assert list(checkout.glob("benchmarks/results/*/gpu_check.csv"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"commit": "abc1234-dirty"}, "a tree ran that differs from commit abc1234: commit, and run again"),
        ({"commit": "unknown"}, "name no commit, and .* has none to compare"),
        ({"dry_run": True}, "--dry-run"),
        ({"quick": True}, "--quick"),
        ({"schema": 0}, "schema 0"),
    ],
)
def test_report_refuses_what_says_nothing_of_a_commit(checkout, capsys, change, words):
    before = sorted(checkout.rglob("*"))
    assert make_report(checkout, synthetic(**change)) == 1
    assert re.search(words, capsys.readouterr().err)
    assert sorted(checkout.rglob("*")) == before


def test_report_knows_the_commit_of_a_tree_without_git_by_its_sources(checkout, capsys):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    values = synthetic(commit="unknown", sources=provenance.source_hashes(checkout))
    assert make_report(checkout, values) == 0
    (written,) = (checkout / "benchmarks" / "results").glob("*/gpu_check.csv")
    assert provenance.commit(checkout).removesuffix("-dirty") in written.read_text()

    values["sources"]["csrc/frame_attention/cuda/kernels/frame_attention.h"] = "0" * 40
    assert make_report(checkout, values) == 1
    assert "are not those of HEAD: csrc/frame_attention/cuda/kernels/frame_attention.h" in capsys.readouterr().err


RECORDED = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.parent.name)
def test_what_the_repository_says_of_a_gpu_is_what_the_report_makes_of_its_run(recorded, checkout):
    page = (ROOT / "docs" / "speed.md").read_text()
    (checkout / "docs" / "speed.md").write_text(f"{tables.BEGIN}\n{tables.END}\n")
    assert report.main([str(recorded.parent), "--root", str(checkout)]) == 0
    made = checkout / "benchmarks" / "results" / recorded.parent.name
    assert (made / "gpu_check.csv").read_bytes() == (recorded.parent / "gpu_check.csv").read_bytes()
    assert (checkout / "docs" / "speed.md").read_text().strip() in page
    assert (recorded.parent / "gpu_check.png").exists()


def test_only_what_passed_on_a_recorded_gpu_is_trusted():
    """Under the names that kernels have now, which tools/carry_trust.py gave to lines of the same machine code."""
    renamed = {kernel.removesuffix("_sm80"): kernel for kernel in gpu_check.KERNELS}
    made = set()
    for recorded in RECORDED:
        values = json.loads(recorded.read_text())
        lines = trust.trusted_lines(values, values["kernel_versions"])
        made |= {re.sub(r'"(\w+)"', lambda name: f'"{renamed.get(name[1], name[1])}"', line, count=1) for line in lines}
    table = (ROOT / "csrc" / "trust" / "trusted_kernels.inc").read_text().splitlines()
    assert {line for line in table if line.startswith("{")} == made != set()


def test_report_says_where_results_should_be(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert "results.json does not exist: DIR must be what --out" in capsys.readouterr().err
