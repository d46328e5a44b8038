"""Where the time of a video transformer goes, dense and swapped: a table of shares and a bar plot.

The transformer has the layer sizes of Wan2.1-T2V-1.3B, fewer blocks and random weights. The share of attention at the
grid of your videos bounds what a swap can gain: the rest takes as long as before. Attention is that over the video and
that to the text, without projections and norms. Needs diffusers and matplotlib.

    python examples/where_time_goes.py
    python examples/where_time_goes.py --grid 21x30x52     # 81 frames of 480 x 832; minutes on a CPU
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure  # not pyplot: no window system
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import profile, record_function

import frameattn
from frameattn.cli.arguments import grid, positive
from frameattn.cli.video_models import MODELS

# What the profiler calls the parts: operators by name, layers as label() marks them.
ATTENTION = ("aten::scaled_dot_product_attention", "frameattn::vmonarch_attention")
PROJECTIONS, FEED_FORWARD, MODEL = "projections", "feed-forward", "model"
LAYERS = {"to_q": PROJECTIONS, "to_k": PROJECTIONS, "to_v": PROJECTIONS, "to_out.0": PROJECTIONS, "ffn": FEED_FORWARD}


def label(module: nn.Module, name: str) -> None:
    """Every call of the module is a span of this name in the profiler."""
    spans = []

    def begin(*_: object) -> None:
        spans.append(record_function(name))
        spans[-1].__enter__()

    def end(*_: object) -> None:
        spans.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def profile_call(model: nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by part; on a GPU those of the kernels that an operator or layer starts."""
    on_gpu = next(model.parameters()).is_cuda
    with profile() as profiler:
        model(**inputs)
        if on_gpu:
            torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    total = {event.key: (event.device_time_total if on_gpu else event.cpu_time_total) / 1e3 for event in events}
    attention = sum(total.get(name, 0) for name in ATTENTION)
    parts = {"attention": attention, PROJECTIONS: total[PROJECTIONS], FEED_FORWARD: total[FEED_FORWARD]}
    return parts | {"rest": total[MODEL] - sum(parts.values())}


def main() -> None:
    on_gpu = bool(frameattn.cuda_devices())
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", type=grid, default="16x12x20", help="tokens in time, height and width")
    parser.add_argument("--layers", type=int, default=1, help="blocks; the checkpoint has 30")
    parser.add_argument("--repeat", type=positive, default=2, help="calls of each kind; the fastest is shown")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--out", type=Path, default=Path("outputs/where_time_goes.png"))
    options = parser.parse_args()
    place = torch.device(options.device), getattr(torch, options.dtype)
    model = MODELS["wan"].build(options.layers, *place).requires_grad_(False)
    inputs = MODELS["wan"].call(options.grid, 1, *place)
    label(model, MODEL)
    for name, module in model.named_modules():
        for suffix, part in LAYERS.items():
            if name.endswith(f".{suffix}"):
                label(module, part)

    calls = {"dense": [], "swapped": []}
    for turn in range(1 + options.repeat):  # in turns, so that a machine that is busy meanwhile hits both alike
        for kind, found in calls.items():
            with frameattn.adapters.apply(model) if kind == "swapped" else nullcontext() as handle:
                parts = profile_call(model, inputs)
                found += [parts] if turn else []  # the first one warms up
                if handle and turn == options.repeat:
                    print(handle.report(), "\n")
    milliseconds = {kind: min(found, key=lambda parts: sum(parts.values())) for kind, found in calls.items()}

    totals = {kind: sum(parts.values()) for kind, parts in milliseconds.items()}
    print(
        f"{'x'.join(map(str, options.grid))} tokens, {options.layers} of 30 blocks, {options.dtype}, {options.device}\n"
    )
    print(f"{'':<14}{'dense':>20}{'swapped':>20}")
    for part in milliseconds["dense"]:
        cells = [f"{parts[part]:.1f} ms {parts[part] / totals[kind]:5.0%}" for kind, parts in milliseconds.items()]
        print(f"{part:<14}{cells[0]:>20}{cells[1]:>20}")
    print(f"{'all':<14}" + "".join(f"{f'{total:.1f} ms  100%':>20}" for total in totals.values()))
    plot(milliseconds, options.out)
    print(f"\nplot: {options.out}")


def plot(milliseconds: dict[str, dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    left = [0.0, 0.0]
    for part in milliseconds["dense"]:
        widths = [parts[part] for parts in milliseconds.values()]
        axes.barh(list(milliseconds), widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("ms a call")
    axes.invert_yaxis()  # dense above
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(milliseconds["dense"]), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
