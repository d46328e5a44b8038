"""Time on the GPU of functions that are alternatives to each other, on inputs that the caches do not hold.

What differs from benchmarks.timing: the inputs change from call to call, so that together they exceed the L2 cache; and
before each call the GPU pauses, so that Python's launches are all queued when it starts: kernels of some ten
microseconds are measured, not the interpreter.
"""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.timing import Effort, Timing

PAUSE = 2_000_000  # clocks, about a millisecond: what some fifty launches with autograd take
FULL = Effort(warm_up=3, low=15, high=60, seconds=1.2)
BRIEF = Effort(warm_up=1, low=3, high=5, seconds=0.5)
L2_MULTIPLE = 4  # the sets of inputs hold at least so many times the L2 cache
MOST_SETS = 8


def number_of_sets(set_bytes: int, l2_bytes: int) -> int:
    return min(max(2, -(-L2_MULTIPLE * l2_bytes // max(set_bytes, 1))), MOST_SETS)


def time_in_rotation(sets: Sequence[dict[str, Callable[[], Any]]], effort: Effort) -> dict[str, Timing]:
    """sets: the same candidates, each bound to other inputs. They take turns, as in benchmarks.timing."""
    order = list(sets[0])
    for i in range(effort.warm_up):
        for name in order:
            sets[i % len(sets)][name]()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(effort.high):
            if done >= effort.low and time.perf_counter() - start > effort.seconds:
                break
            for name in order:
                seconds[name].append(_seconds(sets[done % len(sets)][name]))
            order.append(order.pop(0))
    finally:
        gc.enable()
    return {name: Timing.of(values) for name, values in seconds.items()}


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
