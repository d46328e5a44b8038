"""csrc/shared/kernels/wgmma_sm90.cuh is what tools/write_wgmma.py writes, and names each register once."""

import re
from runpy import run_path

from benchmarks.report import ROOT

TOOL = run_path(str(ROOT / "tools" / "write_wgmma.py"))


def test_the_file_is_up_to_date():
    assert TOOL["FILE"].read_text() == TOOL["text"]()


def test_places_follow_the_operands():
    """wgmma c, a, b, accumulate, 1, 1[, major of a], major of b: operands are numbered as they are listed."""
    for columns, left in ((112, "shared"), (64, "registers")):
        statement = TOOL["function"](columns, left).split("asm volatile(")[1]
        text, outputs, inputs = re.split(r"\n +: ", statement)[:3]
        places = [int(place) for place in re.findall(r"%(\d+)", text)]
        count = len(re.findall(r'"\+f"', outputs)) + len(re.findall(r'"[lrn]"', inputs))
        assert len(re.findall(r'"\+f"', outputs)) == columns // 2
        assert sorted(places) == list(range(count))  # the predicate's first, the others in their order
        assert places[1:] == sorted(places[1:]) and places[0] == count - 2
