"""Time a video transformer of diffusers with VMonarch attention against itself with dense attention.

The model has the layer sizes of its checkpoint, fewer blocks and random weights; nothing is downloaded. Two things are
timed, dense and swapped in turns: a call of the model, and its attention over the video by itself.

examples:
  frameattn bench-swap --model wan --grid 16x28x52 --layers 1 --repeat 3
  frameattn bench-swap --model hunyuan --grid 33x45x80 --device cuda
  frameattn bench-swap --model wan-14b --grid 21x45x80 --layers 1 --device cuda --backward
  frameattn bench-swap --model cogvideox --grid 13x30x45 --layers 1 --dtype float32

grids:
  16x28x52, 21x30x52, 21x45x80   Wan: 61 frames of 448x832, 81 of 480x832, 81 of 720x1280
  33x45x80                       HunyuanVideo: 129 frames of 720x1280
  13x30x45                       CogVideoX: 49 frames of 480x720
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import frameattn
from frameattn._errors import UsageError, as_usage_error
from frameattn.cli.arguments import DTYPES, grid, positive
from frameattn.cli.devices import choose_device
from frameattn.cli.video_models import MODELS, Grid, VideoModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = ", ".join(f"{name} ({entry.checkpoint})" for name, entry in MODELS.items())
    add("--model", choices=MODELS, default="wan", metavar="NAME", help=f"{names}; default wan")
    add("--grid", type=grid, default=(16, 28, 52), metavar="TxHxW", help="video tokens (default 16x28x52)")
    add("--layers", type=positive, default=2, help="blocks (default 2)")
    add("--batch", type=positive, default=1, help="videos at once; guidance needs two (default 1)")
    add("--iterations", type=positive, default=2, help="of VMonarch (default 2)")
    add("--backward", action="store_true", help="time forward and backward together")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of weights and activations (default bfloat16)")
    add("--repeat", type=positive, default=5, help="timed calls of each, behind one that is not (default 5)")
    add("--device", default="auto", help="auto, cpu or cuda")


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; frameattn bench-swap --help lists the options")
    entry = MODELS[options.model]
    if options.layers > entry.depth:
        raise UsageError(f"--layers: {entry.checkpoint} has {entry.depth} blocks, got {options.layers}")
    device = choose_device(options.device)
    if device.type == "cuda" and not frameattn.cuda_devices():
        raise UsageError("--device cuda: this is a CPU build of frameattn; frameattn info says why")
    dtype = DTYPES[options.dtype]
    try:
        model = entry.build(options.layers, device, dtype).requires_grad_(options.backward)
        with as_usage_error(f"--model {options.model}"):
            frameattn.adapters.apply(model).remove()  # says now if it cannot
        bench = Bench(entry, model, options.grid, options.batch, options.iterations, options.backward, device, dtype)
        seconds = bench.times(options.repeat)
    except torch.OutOfMemoryError as error:
        raise UsageError(f"{device} has too little memory: take a smaller --grid, --batch or --layers") from error
    print(bench.report(options.layers, seconds))
    return 0


class Attention(NamedTuple):
    shape: torch.Size  # of the query, [B, H, N, D]
    mask: Tensor | None


class Recorder(TorchFunctionMode):
    """Finds the calls of F.scaled_dot_product_attention that have so many tokens, both as queries and as keys."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.found: list[Attention] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            call = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
            if call["query"].size(2) == call["key"].size(2) == self.tokens:
                self.found.append(Attention(call["query"].shape, call.get("attn_mask")))
        return func(*args, **kwargs)


Seconds = dict[tuple[str, str], list[float]]  # of ("model" or "attention", "dense" or "swapped")


@dataclass
class Bench:
    """A model and what it is called with."""

    entry: VideoModel
    model: nn.Module
    grid: Grid
    batch: int
    iterations: int
    backward: bool
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.call = self.entry.call(self.grid, self.batch, self.device, self.dtype)
        self.tokens = math.prod(self.grid)
        with Recorder(self.tokens + self.entry.joint_text) as recorder, torch.no_grad():
            self.model(**self.call)
        if not recorder.found:
            raise UsageError("the model's attention is not torch's: unset DIFFUSERS_ATTN_BACKEND")
        self.attention = recorder.found

    def times(self, repeat: int) -> Seconds:
        """All take turns."""
        (b, heads, n, d), mask = self.attention[0]
        query, key, value = (
            torch.randn(b, n, heads, d, device=self.device, dtype=self.dtype, requires_grad=self.backward)
            for _ in range(3)
        )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # the layout that models give them
        vmonarch = frameattn.adapters.attention_fn(
            self.grid, text_tokens=self.entry.joint_text, iterations=self.iterations
        )
        candidates = {
            ("model", "dense"): lambda: self.model(**self.call)[0],
            ("model", "swapped"): lambda: self.model(**self.call)[0],
            ("attention", "dense"): lambda: F.scaled_dot_product_attention(query, key, value, mask),
            ("attention", "swapped"): lambda: vmonarch(query, key, value),
        }
        seconds: Seconds = {name: [] for name in candidates}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="frameattn.adapters")  # dense must not pass for swapped
            for _ in range(1 + repeat):
                for name, function in candidates.items():
                    swap: AbstractContextManager[Any] = nullcontext()
                    if name == ("model", "swapped"):
                        swap = frameattn.adapters.apply(self.model, iterations=self.iterations)
                    with swap:
                        seconds[name].append(self.seconds(function))
        return {name: values[1:] for name, values in seconds.items()}

    def seconds(self, function: Callable[[], Tensor]) -> float:
        """Of one call, with its backward if that is asked for."""

        def run() -> Any:
            with torch.set_grad_enabled(self.backward):
                result = function()
                return result.sum().backward() if self.backward else result

        self.model.zero_grad()
        if self.device.type == "cpu":
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(stop) / 1e3

    def report(self, layers: int, seconds: Seconds) -> str:
        (t, h, w), (_, heads, _, d) = self.grid, self.attention[0].shape
        median = {name: statistics.median(values) for name, values in seconds.items()}
        share = len(self.attention) * median["attention", "dense"] / median["model", "dense"]
        text = f" and {self.entry.joint_text} of text" if self.entry.joint_text else ""
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"{self.entry.checkpoint}: {layers} of {self.entry.depth} blocks, random weights, "
            f"{'forward and backward' if self.backward else 'forward'}",
            f"{t} x {h} x {w} = {self.tokens} tokens{text}, batch {self.batch}, {heads} heads of {d}, {dtype}, "
            f"{_name(self.device)}",
            "",
            f"{'ms (quartiles)':<16}{'dense':>26}{'swapped':>26}{'speedup':>10}",
        ]
        for what in ("model", "attention"):
            dense, swapped = (_milliseconds(seconds[what, which]) for which in ("dense", "swapped"))
            speedup = median[what, "dense"] / median[what, "swapped"]
            lines.append(f"{what:<16}{dense:>26}{swapped:>26}{speedup:>9.2f}x")
        ratio = self.iterations + 1.5  # T times the operations of VMonarch over those of dense attention
        return "\n".join(
            [
                *lines,
                "",
                f"Attention over the video is {share:.0%} of the dense model's time.",
                f"Kernels of equal efficiency would make it T / {ratio:g} = {t / ratio:.1f} times as fast.",
            ]
        )


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, threads: {torch.get_num_threads()}"


def _milliseconds(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return _short(seconds[0])
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{_short(median)} ({_short(q1)} .. {_short(q3)})"


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"
