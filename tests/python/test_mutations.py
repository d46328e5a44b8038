"""The list of planted faults stays in step with the kernels; make check-emulator shows that they are caught."""

import sys

import pytest

from benchmarks.report import ROOT

sys.path.insert(0, str(ROOT / "tools/emulator"))
from mutations import MUTATIONS, choose


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_changes_one_place(mutation):
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_parts_are_all_mutations():
    parts = [choose([], f"{i}/3") for i in (1, 2, 3)]
    assert sorted(mutation.name for part in parts for mutation in part) == sorted(m.name for m in MUTATIONS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert choose([], "1/1") == MUTATIONS
    assert {mutation.task for mutation in choose(["flash_forward_sm90"], "1/1")} == {"flash_forward_sm90"}


def test_names_are_unique_and_every_kernel_has_faults():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    for source in ROOT.glob("csrc/*/cuda/kernels/*_sm[0-9]*.cu"):
        assert sum(ROOT / mutation.source == source for mutation in MUTATIONS) > 10, source
