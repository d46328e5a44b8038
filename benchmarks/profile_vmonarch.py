"""Where the time and memory of vmonarch_attention go: two iterations, first frame dense, on CPU.

examples:
  python -m benchmarks.profile_vmonarch
  python -m benchmarks.profile_vmonarch --shape 13x30x45-d64 --threads 1

The steps are timed as public operators of the same sizes, and "the rest" is what the whole takes beside them; in
backward that is the temporal update computed once more, sums of gradients and their rounding. Times are minima.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases import DTYPES
from benchmarks.shapes import VIDEO_SHAPES, VideoShape
from benchmarks.timing import QUICK, Effort, memory_of, time_in_turns
from frameattn.functional import vmonarch_attention

CPU = torch.device("cpu")
Function = Callable[..., Sequence[Tensor]]


def steps_of(query: Tensor, key: Tensor, value: Tensor, frames: int) -> dict[str, tuple[Function, list[Tensor]]]:
    """The steps, as functions of leaves that return what the next step uses, and these leaves."""
    ops, scale = torch.ops.frameattn, query.size(-1) ** -0.5
    first = query[:, :, : query.size(2) // frames]
    weighted_key, weighted_value, lse = ops.spatial_step(query, key, value, frames, scale, True)
    entropy = (query * weighted_key).sum(-1).to(lse.dtype) - lse
    steps = {
        "spatial step, keys": (lambda q, k: ops.spatial_step(q, k, None, frames, scale, True)[::2], [query, key]),
        "temporal update": (
            lambda q, a, c: ops.temporal_update(q, a, c, frames, 0.1)[:1],
            [query, weighted_key, entropy],
        ),
        "spatial step, keys and values": (
            lambda q, k, v: ops.spatial_step(q, k, v, frames, scale, True),
            [query, key, value],
        ),
        "temporal output": (
            lambda q, a, c, y: ops.temporal_output(q, a, c, y, frames)[:1],
            [query, weighted_key, entropy, weighted_value],
        ),
        "dense first frame": (
            lambda q, k, v: ops.spatial_step(q, k, v, 1, scale, False)[1:2],
            [first, key, value],
        ),
        "whole": (lambda q, k, v: [vmonarch_attention(q, k, v, frames)], [query, key, value]),
    }
    return {name: (step, [t.detach().requires_grad_() for t in inputs]) for name, (step, inputs) in steps.items()}


def forward(step: Function, inputs: list[Tensor]) -> Callable[[], Sequence[Tensor]]:
    return torch.no_grad()(lambda: step(*inputs))


def backward(step: Function, inputs: list[Tensor]) -> Callable[[], Sequence[Tensor]]:
    outputs = step(*inputs)
    gradients = [torch.randn_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)


def print_profile(shape: VideoShape, dtype: torch.dtype, effort: Effort) -> None:
    torch.manual_seed(0)
    sizes = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
    query, key, value = (torch.randn(sizes).to(dtype) for _ in range(3))
    steps = steps_of(query, key, value, shape.frames)
    print(f"{shape.name}, {shape.heads} heads, {dtype}, {torch.get_num_threads()} threads\n")
    print(f"{'':<30} {'forward':>12} {'share':>6} {'backward':>12} {'share':>6}")
    columns = []
    for direction in (forward, backward):
        timings = time_in_turns({name: direction(*step) for name, step in steps.items()}, CPU, effort)
        seconds = {name: timing.min for name, timing in timings.items()}
        whole = seconds.pop("whole")
        temporal = sum(time for name, time in seconds.items() if name.startswith("temporal"))
        columns.append(
            seconds | {"the rest": whole - sum(seconds.values()), "whole": whole, "temporal steps": temporal}
        )
    for name in columns[0]:
        cells = [f"{1e3 * column[name]:>9.2f} ms {column[name] / column['whole']:>6.1%}" for column in columns]
        print(f"{name:<30} {' '.join(cells)}")

    whole, inputs = steps["whole"]
    extra = memory_of(forward(whole, inputs), CPU).peak - value.nbytes
    kept = memory_of(lambda: whole(*inputs), CPU).kept - value.nbytes
    print(f"\nmemory beside inputs and output: {extra / query.nbytes:.2f} x query in inference, ", end="")
    print(f"{kept / query.nbytes:.2f} x query kept for backward\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_vmonarch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", default="16x28x52-d128", choices=VIDEO_SHAPES, metavar="NAME", help="%(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch's")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run at all?")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    for dtype in DTYPES:
        print_profile(VIDEO_SHAPES[options.shape], dtype, QUICK if options.quick else Effort(warm_up=1, low=3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
