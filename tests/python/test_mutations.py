"""The list of planted faults stays in step with the kernels; make check-emulator shows that they are caught."""

from runpy import run_path

import pytest

from benchmarks.report import ROOT

SCRIPT = run_path(str(ROOT / "tests/emulator/mutations.py"))


@pytest.mark.parametrize("mutation", SCRIPT["MUTATIONS"], ids=lambda m: m.name)
def test_a_mutation_changes_one_place(mutation):
    text = (ROOT / SCRIPT["SOURCES"] / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_names_are_unique_and_every_kernel_has_faults():
    names = [mutation.name for mutation in SCRIPT["MUTATIONS"]]
    assert len(set(names)) == len(names)
    for kernel in SCRIPT["ALL"]:
        assert sum(mutation.kernel == kernel for mutation in SCRIPT["MUTATIONS"]) > 30
