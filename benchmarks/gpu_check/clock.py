"""Time on the GPU of functions that are alternatives to each other, on inputs that the caches do not hold.

What differs from benchmarks.timing: the inputs change from call to call, so that together they exceed the L2 cache; and
before each call the GPU pauses, so that Python's launches are all queued when it starts: kernels of some ten
microseconds are measured, not the interpreter.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.timing import Effort, Timing, take_turns

PAUSE = 2_000_000  # clocks, about a millisecond: what some fifty launches with autograd take
FULL = Effort(warm_up=3, low=15, high=60, seconds=1.2)
SOME = Effort(warm_up=2, low=7, high=15, seconds=0.4)
BRIEF = Effort(warm_up=1, low=3, high=5, seconds=0.5)
FEWEST = Effort(warm_up=0, low=2, high=2)  # of calls that take a second
L2_MULTIPLE = 4  # the sets of inputs hold at least so many times the L2 cache
MOST_SETS = 8


def number_of_sets(set_bytes: int, l2_bytes: int) -> int:
    return min(max(2, -(-L2_MULTIPLE * l2_bytes // max(set_bytes, 1))), MOST_SETS)


def time_in_rotation(sets: Sequence[dict[str, Callable[[], Any]]], effort: Effort) -> dict[str, Timing]:
    gc.collect()  # the GPU's memory may still hold what earlier cases left
    return take_turns(sets, _seconds, effort)


def _seconds(run: Callable[[], Any]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE)
    start.record()
    result = run()
    stop.record()
    torch.cuda.synchronize()
    del result  # only here: giving the result back is the caller's time
    return start.elapsed_time(stop) / 1e3
