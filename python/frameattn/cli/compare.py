"""Compare the videos of a diffusers pipeline with VMonarch attention with its own, dense ones: how alike, how fast.

Every prompt is sampled twice from the same noise, dense and swapped. PSNR and SSIM say how far the swapped video is
from the dense one, which is not whether it is worse: look at both, side by side. LPIPS comes with them where the
package lpips is installed. Options that are left out are the pipeline's own defaults.

examples:
  frameattn compare --pipe Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --height 448 --width 832 --frames 61
  frameattn compare --pipe wan --prompts prompts.txt --dense-layers 1 --dense-steps 10 --out runs/compare
  frameattn compare --pipe wan --prompts prompts.txt --steps 30 --dtype bfloat16 --device cuda --seed 7

files in --out:
  results.json             settings, versions, device, and what was measured of every prompt
  0000.mp4                 the videos of a prompt side by side, dense on the left
  contact_sheet.png        two rows of frames for every prompt, dense above swapped
"""

import argparse
import inspect
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import frameattn
from frameattn._errors import UsageError, as_usage_error
from frameattn._optional import require
from frameattn.cli.arguments import DTYPES, grid, positive, positive_number
from frameattn.cli.devices import choose_device
from frameattn.cli.similarity import create_lpips, psnr, ssim

WARM_UP_STEPS = 2
LARGEST_TILE = 256  # side of a frame on the contact sheet
# Options, and the arguments of pipelines that they are.
ARGUMENTS = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pipe", type=Path, required=True, metavar="DIR", help="folder of a pipeline, as save_pretrained writes it")
    add("--prompts", type=Path, required=True, metavar="FILE", help="texts, one a line")
    add("--out", type=Path, default=Path("compare"), metavar="DIR", help="folder for results (default compare)")
    add("--height", type=positive, help="of a frame, in pixels")
    add("--width", type=positive, help="of a frame, in pixels")
    add("--frames", type=positive, help="of a video")
    add("--steps", type=positive, help="denoising steps")
    add("--guidance", type=float, metavar="SCALE", help="guidance_scale of the pipeline")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    add("--seed", type=int, default=0, help="of the noise; that of the i-th prompt is seed + i (default 0)")
    add("--iterations", type=positive, default=2, help="of VMonarch (default 2)")
    add("--mass-floor", type=positive_number, default=0.1, help="of VMonarch (default 0.1)")
    add("--dense-layers", type=int, default=0, help="the first so many blocks stay dense (default 0)")
    add("--dense-steps", type=int, default=0, help="the first so many steps stay dense (default 0)")
    add("--grid", type=grid, metavar="TxHxW", help="video tokens, where the model's calls do not say them")
    add("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on a GPU, float32 on a CPU)")
    add("--fps", type=positive_number, default=8, help="frames a second of the written videos (default 8)")
    add("--device", default="auto", help="auto, cpu or cuda")


@dataclass
class Comparison:
    """Of one prompt. psnr is None where the videos are the same, lpips where it was not measured."""

    prompt: str
    seed: int
    psnr: float | None
    ssim: float
    lpips: float | None
    dense_seconds: float
    swapped_seconds: float
    calls: int  # of the model, swapped
    vmonarch: int  # of these, with VMonarch
    dense: dict[str, int]  # the others, by reason
    partly: dict[str, int]  # of those with VMonarch, dense in part


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; frameattn compare --help lists the options")
    prompts = read_prompts(options.prompts)
    if options.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {options.seed}")
    device = choose_device(options.device)
    pipe = load_pipeline(options, device)
    arguments = call_arguments(pipe, options)
    swap = dict(
        iterations=options.iterations,
        mass_floor=options.mass_floor,
        dense_layers=options.dense_layers,
        dense_steps=options.dense_steps,
        grid=options.grid,
    )
    with as_usage_error(f"--pipe {options.pipe}"):
        frameattn.adapters.apply(pipe, **swap).remove()  # says now if it cannot
    lpips = create_lpips(device)
    if isinstance(lpips, str):
        print(f"LPIPS is left out: {lpips}")

    def sample(i: int, **more: Any) -> tuple[Tensor, float]:
        return sample_video(pipe, prompts[i], options.seed + i, device, {**arguments, **more})

    few = {"num_inference_steps": WARM_UP_STEPS} if accepts(pipe, "num_inference_steps") else {}
    sample(0, **few)  # not timed: the first calls load and choose kernels
    with frameattn.adapters.apply(pipe, **swap):
        sample(0, **few)
    options.out.mkdir(parents=True, exist_ok=True)
    comparisons, pairs = [], []
    for i, prompt in enumerate(prompts):
        dense, dense_seconds = sample(i)
        with frameattn.adapters.apply(pipe, **swap) as handle:
            swapped, swapped_seconds = sample(i)
        counts = handle.counts
        noise = psnr(dense, swapped)
        with as_usage_error(f"--pipe {options.pipe}"):
            alike = ssim(dense, swapped)
        comparisons.append(
            Comparison(
                prompt,
                options.seed + i,
                noise if math.isfinite(noise) else None,
                alike,
                None if isinstance(lpips, str) else lpips(dense, swapped),
                dense_seconds,
                swapped_seconds,
                counts.calls,
                counts.vmonarch,
                dict(counts.dense),
                dict(counts.partly),
            )
        )
        write_pair(options.out / f"{i:04d}.mp4", dense, swapped, options.fps)
        pairs += [small(dense), small(swapped)]
        write_results(options, swap, arguments, device, pipe, comparisons)  # as far as it is, should the next one fail
        print(f"{i + 1} of {len(prompts)}: {line(comparisons[-1])}", flush=True)
    from frameattn.data.video_io import write_contact_sheet

    write_contact_sheet(
        options.out / "contact_sheet.png", 2 * torch.stack(pairs) - 1, ["dense", "swapped"] * len(prompts)
    )
    print(table(comparisons))
    print(f"{options.out / 'results.json'}, {options.out / 'contact_sheet.png'}, and an .mp4 of every prompt")
    return 0


def read_prompts(path: Path) -> list[str]:
    try:
        prompts = [text.strip() for text in path.read_text().splitlines() if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {path} cannot be read: {error}") from error
    if not prompts:
        raise UsageError(f"--prompts {path} has no texts: one a line")
    return prompts


def load_pipeline(options: argparse.Namespace, device: torch.device) -> Any:
    diffusers = require("diffusers")
    require("av")
    require("PIL.Image")
    if not (options.pipe / "model_index.json").is_file():
        raise UsageError(
            f"--pipe {options.pipe} must be the folder of a pipeline of diffusers, with a model_index.json: "
            "`hf download NAME --local-dir DIR` makes one"
        )
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    with as_usage_error(f"--pipe {options.pipe}"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(options.pipe, torch_dtype=dtype, local_files_only=True)
    try:
        pipe = pipe.to(device)
    except torch.OutOfMemoryError as error:
        raise UsageError(f"{device} has too little memory for the pipeline") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def accepts(pipe: Any, argument: str) -> bool:
    return argument in inspect.signature(pipe.__call__).parameters


def call_arguments(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What the pipeline is called with beside prompt and noise."""
    arguments = {}
    for option, argument in ARGUMENTS.items():
        value = getattr(options, option)
        if value is None:
            continue
        if not accepts(pipe, argument):
            raise UsageError(f"--{option.replace('_', '-')}: {type(pipe).__name__} has no argument {argument}")
        arguments[argument] = value
    return arguments


def sample_video(
    pipe: Any, prompt: str, seed: int, device: torch.device, arguments: dict[str, Any]
) -> tuple[Tensor, float]:
    """A video [T, C, H, W] in 0..1 on the CPU, and the seconds that the pipeline took."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
    _wait(device)
    started = time.perf_counter()
    with as_usage_error(type(pipe).__name__):
        output = pipe(prompt=prompt, generator=generator, output_type="pt", **arguments)
    _wait(device)
    seconds = time.perf_counter() - started
    frames = getattr(output, "frames", None)
    if not isinstance(frames, Tensor) or frames.dim() != 5 or frames.size(2) not in (1, 3):
        got = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise UsageError(f"{type(pipe).__name__} must give frames [1, T, C, H, W] for output_type='pt', got {got}")
    return frames[0].float().cpu().clamp(0, 1), seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def small(video: Tensor) -> Tensor:
    """For the contact sheet."""
    shrink = -(-max(video.shape[-2:]) // LARGEST_TILE)
    return F.avg_pool2d(video, shrink) if shrink > 1 else video


def write_pair(path: Path, dense: Tensor, swapped: Tensor, fps: float) -> None:
    from frameattn.data.video_io import write_mp4

    write_mp4(path, 2 * torch.cat([dense, swapped], dim=-1)[None] - 1, fps)


def write_results(
    options: argparse.Namespace,
    swap: dict[str, Any],
    arguments: dict[str, Any],
    device: torch.device,
    pipe: Any,
    comparisons: list[Comparison],
) -> None:
    results = {
        "pipe": str(options.pipe),
        "pipeline": type(pipe).__name__,
        "swap": swap,
        "arguments": arguments,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "versions": {
            "frameattn": frameattn.__version__,
            "torch": torch.__version__,
            "diffusers": require("diffusers").__version__,
        },
        "prompts": [asdict(comparison) for comparison in comparisons],
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def line(one: Comparison) -> str:
    alike = "the same video" if one.psnr is None else f"PSNR {one.psnr:.2f} dB, SSIM {one.ssim:.3f}"
    distance = "" if one.lpips is None else f", LPIPS {one.lpips:.3f}"
    return (
        f"{alike}{distance}, {one.dense_seconds:.1f} s dense, {one.swapped_seconds:.1f} s swapped, "
        f"VMonarch in {one.vmonarch} of {one.calls} calls"
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """Median and worst over the prompts, the times' sums, and what the calls ran."""

    def row(name: str, of: Callable[[Comparison], float | None], worst: Callable[..., float], form: str) -> str:
        values = [math.inf if value is None else value for value in map(of, comparisons)]
        return f"{name:<12}{statistics.median(values):>12{form}}{worst(values):>12{form}}"

    lines = [
        f"{'':<12}{'median':>12}{'worst':>12}",
        row("PSNR, dB", lambda one: one.psnr, min, ".2f"),
        row("SSIM", lambda one: one.ssim, min, ".3f"),
    ]
    if all(one.lpips is not None for one in comparisons):
        lines.append(row("LPIPS", lambda one: one.lpips, max, ".3f"))
    dense, swapped = (sum(getattr(one, name) for one in comparisons) for name in ("dense_seconds", "swapped_seconds"))
    lines.append(f"{dense:.1f} s dense, {swapped:.1f} s swapped: {dense / swapped:.2f} times as fast")
    calls, vmonarch = (sum(getattr(one, name) for one in comparisons) for name in ("calls", "vmonarch"))
    lines.append(f"VMonarch ran in {vmonarch} of {calls} calls of the model")
    reasons: dict[str, int] = {}
    for one in comparisons:
        for kind, counts in (("dense", one.dense), ("dense in part", one.partly)):
            for reason, count in counts.items():
                reasons[f"{kind}: {reason}"] = reasons.get(f"{kind}: {reason}", 0) + count
    return "\n".join(lines + [f"  {count} {reason}" for reason, count in reasons.items()])
