"""The sweep over the tiles of the forward kernel for Hopper: what needs no GPU of it."""

import re

import pytest
import torch

from benchmarks import sweep_hopper
from benchmarks.sweep_hopper import FORMS, Cost, Form, Point, Sizes
from frameattn import _C


def test_the_fit_finds_what_the_times_were_made_of():
    cost = Cost(1.5, 2.25)
    points = [Point(rounds, steps, cost.of(Point(rounds, steps, 0))) for rounds, steps in ((18, 4), (25, 14), (9, 33))]
    found = sweep_hopper.fit(points)
    assert (found.tile, found.step) == (pytest.approx(1.5), pytest.approx(2.25))


def test_no_cost_is_negative():
    assert sweep_hopper.fit([Point(1, 10, 9.0), Point(1, 30, 33.0)]) == Cost(0, pytest.approx(1.0, rel=0.1))
    assert sweep_hopper.fit([Point(2, 10, 40.0)]) == Cost(0, pytest.approx(2.0))  # one point is one number


def test_a_point_counts_the_tiles_of_the_busiest_multiprocessor():
    tile = sweep_hopper.tiles_of(FORMS[0], 128)[0]  # 128 queries, 112 keys
    # 192 frames of 12 tiles on 132 multiprocessors.
    assert sweep_hopper.point_of(tile, Sizes(12, 16, 1456), 132, 459.0) == Point(18, 13, 459.0)


def test_every_tile_belongs_to_one_form():
    found = [index for width in (64, 128, 256) for form in FORMS for index in sweep_hopper.tiles_of(form, width)]
    assert sorted(found) == list(range(len(_C.flash_tiles_sm90())))


def test_the_table_is_the_one_that_is_compiled():
    """Without new costs it has those of now, in the words of the file."""
    rows = re.compile(r"^\{.*$", re.MULTILINE)
    written = sweep_hopper.table_of({}, "")
    assert rows.findall(written) == rows.findall(sweep_hopper.TABLE.read_text())
    assert "{7.00, 8.00, false}," in sweep_hopper.table_of({5: Cost(7, 8)}, "")
    assert "{0.23, 1.93, true}," in written


def test_the_cheapest_plan_is_chosen():
    tiles, costs = _C.flash_tiles_sm90(), _C.flash_costs_sm90()
    sizes = Sizes(12, 16, 1456)
    plan = _C.plan_flash_sm90(
        128, True, True, parts=192, queries=1456, part_keys=1456, may_split=False, multiprocessors=132
    )
    by_hand = {
        index: Cost(costs[index].tile, costs[index].step).of(sweep_hopper.point_of(tiles[index], sizes, 132, 0))
        for index in sweep_hopper.tiles_of(FORMS[0], 128)
    }
    assert plan.tile == min(by_hand, key=by_hand.__getitem__)
    assert plan.microseconds == pytest.approx(by_hand[plan.tile])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_results_are_compared_before_they_are_timed(monkeypatch, form: Form):
    """With the CPU's operators for a GPU: they pass, and wrong ones do not."""
    monkeypatch.setattr(sweep_hopper, "time_in_rotation", lambda sets, effort: dict.fromkeys(sets[0], "timing"))
    arguments = (form, 64, Sizes(2, 3, 20), torch.device("cpu"), None)
    assert sweep_hopper.measure(*arguments) == dict.fromkeys(sweep_hopper.tiles_of(form, 64), "timing")
    monkeypatch.setattr(sweep_hopper, "eager", lambda q, k, values, frames: [2 * q, 2 * q])
    with pytest.raises(SystemExit, match=r"64 columns.*2x3x20: weighted (keys|values) are wrong by"):
        sweep_hopper.measure(*arguments)


def test_without_a_hopper_gpu_it_says_so(capsys):
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        pytest.skip("there is one")
    assert sweep_hopper.main([]) == 2
    assert "needs a GPU of compute capability 9.0" in capsys.readouterr().err
