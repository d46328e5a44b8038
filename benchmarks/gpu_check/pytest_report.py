"""A pytest plugin: which kernels passed for which dtypes, as JSON in the file that FRAMEATTN_TEST_REPORT names.

A test names its kernels by the marker `kernels` and the dtype by its parameter of that name. A failure is one of all of
them, unless its exception says by an attribute `kernels` where the wrong results come from. A kernel passes for a dtype
if at least one of its tests passed and none of them failed or was skipped: what was not run is not trusted.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

import pytest

VARIABLE = "FRAMEATTN_TEST_REPORT"


class Report:
    def __init__(self, path: Path):
        self.path = path
        self.outcomes: dict[str, str] = {}  # by test
        self.kernels: dict[str, dict[str, str]] = {}
        self.skip_reason = ""
        self.failures: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        kernels, dtype = kernels_and_dtype(item)
        self.add(report, kernels, getattr(call.excinfo and call.excinfo.value, "kernels", kernels), dtype)
        return report

    def add(
        self, report: pytest.TestReport, kernels: Collection[str], failing: Collection[str], dtype: str | None
    ) -> None:
        if report.passed and report.when != "call":  # set up and torn down
            return
        worst = "failed" if "failed" in (report.outcome, self.outcomes.get(report.nodeid)) else report.outcome
        self.outcomes[report.nodeid] = worst
        if report.failed:
            self.failures.append(report.nodeid)
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skip_reason = report.longrepr[2]
        for kernel in {*kernels, *failing} if dtype else ():
            outcome = "passed" if worst == "failed" and kernel not in failing else worst
            verdicts = self.kernels.setdefault(kernel, {})
            if outcome == "failed" or verdicts.get(dtype, "passed") == "passed":
                verdicts[dtype] = outcome

    def pytest_sessionfinish(self) -> None:
        counts = {outcome: list(self.outcomes.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        values = {"counts": counts, "summary": summary, "kernels": self.kernels, "skip_reason": self.skip_reason}
        self.path.write_text(json.dumps({**values, "failures": self.failures[:50]}, indent=1))


def kernels_and_dtype(item) -> tuple[tuple[str, ...], str | None]:
    names = tuple(name for marker in item.iter_markers("kernels") for name in marker.args)
    dtype = getattr(item, "callspec", None) and item.callspec.params.get("dtype")
    return names, str(dtype).removeprefix("torch.") if dtype is not None else None


def pytest_configure(config) -> None:
    if path := os.environ.get(VARIABLE):
        config.pluginmanager.register(Report(Path(path)), "frameattn_report")
