"""Time, memory and operations of functions that are alternatives to each other.

The candidates take turns, one call each, so that a machine that slows down or is busy meanwhile hits all alike.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Timing:
    """Seconds: the best, the middle and the quartiles around it."""

    min: float
    median: float
    q1: float
    q3: float
    repetitions: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(min(seconds), median, q1, q3, len(seconds))


@dataclass(frozen=True)
class Effort:
    """How often each candidate runs: at least `low` times, then until `seconds` have passed or it ran `high` times."""

    warm_up: int = 3
    low: int = 15
    high: int = 100
    seconds: float = 6.0


QUICK = Effort(warm_up=1, low=3, high=3)


def time_in_turns(candidates: dict[str, Callable[[], Any]], device: torch.device, effort: Effort) -> dict[str, Timing]:
    return take_turns([candidates], _seconds_on_gpu if device.type == "cuda" else _seconds_on_cpu, effort)


def take_turns(
    sets: Sequence[dict[str, Callable[[], Any]]], measure: Callable[[Callable[[], Any]], float], effort: Effort
) -> dict[str, Timing]:
    """sets: the same candidates, each bound to other inputs, which follow each other from turn to turn."""
    order = list(sets[0])
    for i in range(effort.warm_up):
        for name in order:
            sets[i % len(sets)][name]()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    with _no_garbage_collection():
        start = time.perf_counter()
        for done in range(effort.high):
            if done >= effort.low and time.perf_counter() - start > effort.seconds:
                break
            for name in order:
                seconds[name].append(measure(sets[done % len(sets)][name]))
            order.append(order.pop(0))  # nobody always comes after the same one and meets the caches that it left
    return {name: Timing.of(values) for name, values in seconds.items()}


def _seconds_on_cpu(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = run()
    stop = time.perf_counter()
    del result  # only here: giving the result back is the caller's time
    return stop - start


def _seconds_on_gpu(run: Callable[[], Any]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


class Memory(NamedTuple):
    peak: int
    kept: int


def memory_of(run: Callable[[], Any], device: torch.device) -> Memory:
    """The most bytes that `run` holds at one time, and those of its result with all that this keeps for backward.

    Counts what PyTorch allocates: buffers that oneDNN, MKL or a kernel take from malloc are not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        memory = Memory(torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before)
        del result  # only here: it counts
        return memory

    with _no_garbage_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    # The profiler sums memory by operator; when it was held is only in the trace, one event per allocation and release.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return Memory(peak, held)


class OperationCounter(TorchDispatchMode):
    """Sums the formulas of torch.utils.flop_counter, whose own counter has no autograd.grad of modules."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
