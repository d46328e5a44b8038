"""csrc/shared/kernels/wgmma_sm90.cuh is what tools/write_wgmma.py writes, and names each register once."""

import re
from runpy import run_path

import pytest

from benchmarks.report import ROOT

TOOL = run_path(str(ROOT / "tools" / "write_wgmma.py"))


def test_the_file_is_up_to_date():
    assert TOOL["FILE"].read_text() == TOOL["text"]()


@pytest.mark.parametrize("columns, left", [(112, "shared"), (64, "registers")])
@pytest.mark.parametrize("adds", [True, False])
def test_places_follow_the_operands(columns, left, adds):
    """wgmma c, a, b, accumulate, 1, 1[, major of a], major of b: operands are numbered as they are listed."""
    statement = TOOL["function"](columns, left, adds).split("asm volatile(")[1]
    text, outputs, inputs = re.split(r"\n +: ", statement)[:3]
    places = [int(place) for place in re.findall(r"%(\d+)", text)]
    sums = re.findall(r'"([+=])f"', outputs)
    assert sums == ["+" if adds else "="] * (columns // 2)
    assert sorted(places) == list(range(len(sums) + len(re.findall(r'"[lrn]"', inputs))))
    if adds:  # the predicate is set first; it is the last operand but one
        assert places.pop(0) == len(places) - 1
    assert places == sorted(places)
