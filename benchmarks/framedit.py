"""How long the demo's FrameDiT-H takes for a step of training and of sampling on CPU, and where the time goes.

examples:
  python -m benchmarks.framedit
  python -m benchmarks.framedit --batch 4 --threads 1 --model XL

To compare two versions of the package, run this file of one with PYTHONPATH set to the python/ folder of the other.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import frameattn
from benchmarks.timing import QUICK, Effort, time_in_turns
from frameattn.diffusion import GaussianDiffusion
from frameattn.models import create_model, from_checkpoint

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[1] / "demo" / "moving_digits.safetensors"

# What an operator belongs to, by the first of these words that its name holds.
PARTS = {
    "matrix_linear": "matrix_linear",
    "matrix_attention": "attention over frames, and in frames of few tokens",
    "vmonarch": "attention in frames",
    "scaled_dot": "attention in frames",
    "mm": "linear layers",
    "gelu": "GELU",
    "layer_norm": "LayerNorm",
    "gated_add": "gates",
    "adam": "optimizer",
    "copy_": "conversions and copies",
}


def model_of(size: str) -> torch.nn.Module:
    if size == "demo":
        return from_checkpoint(DEMO)
    return create_model(f"FrameDiTH-{size}/128-512/2-concat", extras=2, learn_sigma=False)


def clips_of(model: torch.nn.Module, count: int) -> torch.Tensor:
    size = model.config["input_size"]
    return torch.randn(count, model.num_frames, model.config["in_channels"], size, size)


def steps_of(model: torch.nn.Module, batch: int) -> dict[str, Callable[[], Any]]:
    diffusion = GaussianDiffusion(learn_sigma=False, predict_xstart=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    x, y, t = clips_of(model, batch), torch.arange(batch) % 10, torch.linspace(0, 999, batch).long()

    def run(precision: torch.dtype) -> Callable[..., Any]:
        def call(x, t, **kwargs):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                return model(x, t, **kwargs)

        return call

    def train(precision: torch.dtype) -> None:
        model.train()
        diffusion.training_losses(run(precision), x, t, {"y": y})["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sample(precision: torch.dtype) -> None:
        model.eval()
        run(precision)(x, t, y=y)

    return {
        f"{what}, {name}": lambda step=step, precision=precision: step(precision)
        for what, step in (("sampling", sample), ("training", train))
        for name, precision in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """The share of each part in the time spent inside operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    times = Counter()
    for event in profiler.key_averages():
        if "::" in event.key and not event.key.startswith("autograd"):
            part = next((part for word, part in PARTS.items() if word in event.key), "everything else")
            times[part] += event.self_cpu_time_total
    return {part: time / times.total() for part, time in times.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.framedit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", choices=("demo", "S", "B", "L", "XL"))
    parser.add_argument("--batch", type=int, help="clips; default: 16 of the demo's model, else 1")
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch's")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run at all?")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = model_of(options.model)
    batch = options.batch or (16 if options.model == "demo" else 1)

    print(f"frameattn {Path(frameattn.__file__).parent}, {torch.get_num_threads()} threads, {batch} clips\n")
    for name, step in steps_of(model, batch).items():
        timing = time_in_turns({name: step}, CPU, QUICK if options.quick else Effort(low=5))[name]
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares(step).items() if share >= 0.01)
        print(
            f"{name:<20} {1e3 * timing.min:8.1f} ms (quartiles {1e3 * timing.q1:.1f} .. {1e3 * timing.q3:.1f}): {parts}"
        )


if __name__ == "__main__":
    main()
