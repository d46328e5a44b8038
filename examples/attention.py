"""The operators beside torch's dense attention on a smooth synthetic clip: errors, gradients, torch.compile, times.

VMonarch attention approximates dense attention over all tokens. Matrix Attention is another attention, of frames, and
is computed exactly: beside it stands the same by torch's operators. Errors are relative to the first line of a table;
times are medians, with how many times as fast as that line it is. Needs torch alone.

    python examples/attention.py
    python examples/attention.py --grid 16x28x52 --dtype bfloat16     # what Wan makes of 61 frames of 448 x 832
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import frameattn.reference
from frameattn.cli.arguments import grid, positive

HEADS, DIM = 4, 64


def smooth(frames: int, height: int, width: int) -> Tensor:
    """Noise of a quarter of the grid, interpolated: [1, HEADS, frames * height * width, DIM]."""
    coarse = torch.randn(HEADS, DIM, *(max(2, size // 4) for size in (frames, height, width)))
    return F.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True).flatten(2).mT[None]


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of sum(output * weights) in all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Relative, of all tensors together."""
    ours, theirs = (torch.cat([x.double().flatten() for x in tensors]) for tensors in (actual, expected))
    return ((ours - theirs).norm() / theirs.norm()).item()


def print_table(functions: dict[str, Callable[..., Tensor]], inputs: list[Tensor], repeat: int) -> None:
    """Errors relative to the first function and times of all in turns; what torch.compile changes of the last."""
    first, *_ = functions
    weights = torch.cos(functions[first](*inputs))
    runs = {
        "forward": torch.no_grad()(lambda f: f(*inputs)),
        "both": lambda f: forward_and_backward(f, inputs, weights),
    }
    seconds = {(name, run): [] for name in functions for run in runs}
    for turn in range(1 + repeat):  # the first one warms up
        for (name, run), values in seconds.items():
            start = time.perf_counter()
            runs[run](functions[name])
            if inputs[0].is_cuda:
                torch.cuda.synchronize()
            values += [time.perf_counter() - start] if turn else []
    median = {key: statistics.median(values) for key, values in seconds.items()}

    print(f"{'':<24}{'error':>10}{'gradients':>11}{'forward':>18}{'with backward':>20}")
    expected = runs["both"](functions[first])
    for name, function in functions.items():
        results = runs["both"](function)
        errors = error(results[:1], expected[:1]), error(results[1:], expected[1:])
        times = [f"{1e3 * median[name, run]:.1f} ms {median[first, run] / median[name, run]:5.1f}x" for run in runs]
        print(f"{name:<24}{errors[0]:>10.1e}{errors[1]:>11.1e}{times[0]:>18}{times[1]:>20}")
    compiled = runs["both"](torch.compile(function, fullgraph=True))
    print(f"  compiled with fullgraph=True: {error(compiled, results):.1e} from eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", type=grid, default="16x8x14", help="tokens in time, height and width")
    parser.add_argument("--gain", type=float, default=8.0, help="of the logits, whose query and key have length one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeat", type=positive, default=3)
    parser.add_argument("--device", default="cuda" if frameattn.cuda_devices() else "cpu")
    options = parser.parse_args()
    frames, height, width = options.grid
    place = dict(device=options.device, dtype=getattr(torch, options.dtype))
    torch.manual_seed(0)
    print(f"{frames}x{height}x{width} tokens, {HEADS} heads of {DIM}, {options.dtype}, {options.device}\n")

    content = smooth(frames, height, width)  # what query, key and value of a place have in common
    query, key, value = ((content + smooth(frames, height, width)).to(**place) for _ in range(3))
    inputs = [F.normalize(query, dim=-1), F.normalize(key, dim=-1), value]

    def vmonarch(iterations: int) -> Callable[..., Tensor]:
        return lambda q, k, v: frameattn.vmonarch_attention(q, k, v, frames, iterations=iterations, scale=options.gain)

    dense = {"dense attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=options.gain)}
    print_table(dense | {f"VMonarch, iterations={i}": vmonarch(i) for i in (1, 2, 3)}, inputs, options.repeat)
    mean = value.mean(2, keepdim=True).expand_as(value)
    print(f"{'mean of all values':<24}{error([mean], [dense['dense attention'](*inputs)]):>10.1e}\n")

    x = value.transpose(1, 2).reshape(1, frames, height * width, HEADS * DIM)  # a frame is a matrix
    u, w = (torch.randn(n, n, **place) / n**0.5 for n in x.shape[2:])

    col_heads = 1 if height * width % 2 else 2

    def layer(operators: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, u: Tensor, w: Tensor) -> Tensor:
            y = operators.matrix_linear(x, u, w)  # u mixes the tokens of a frame, w the channels
            return operators.matrix_attention(y, y, y, row_heads=HEADS, col_heads=col_heads)

        return run

    layers = {"Matrix Attention, torch": layer(frameattn.reference), "  by frameattn": layer(frameattn.functional)}
    print_table(layers, [x, u, w], options.repeat)


if __name__ == "__main__":
    main()
