"""Puts VMonarch attention into a Wan pipeline, and times it against dense attention on this machine.

The transformer has the layer sizes of Wan2.1-T2V-1.3B, fewer blocks and random weights, so nothing is downloaded and
the latents that it makes mean nothing. docs/adapters.md has the same lines for a checkpoint. Needs diffusers and
transformers.

    python examples/swap_wan.py
    python examples/swap_wan.py --height 448 --width 832     # more tokens gain more
"""

import argparse
import statistics
import time

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

import frameattn
from frameattn.cli.video_models import MODELS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=61, help="4 n + 1 frames are n + 1 in the latent")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--layers", type=int, default=1, help="blocks; the checkpoint has 30")
    parser.add_argument("--steps", type=int, default=2, help="of denoising")
    parser.add_argument("--repeat", type=int, default=3, help="videos of each kind")
    parser.add_argument("--device", default="cuda" if frameattn.cuda_devices() else "cpu")
    return parser.parse_args()


def build_pipeline(layers: int, device: str) -> WanPipeline:
    """Without text encoder and VAE: prompts come as embeddings, videos go as latents."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=MODELS["wan"].build(layers, torch.device(device), torch.bfloat16),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    options = parse_arguments()
    pipe = build_pipeline(options.layers, options.device)
    prompt = torch.randn(1, 512, 4096, device=options.device)

    def generate() -> tuple[torch.Tensor, float]:
        """Latents, and the seconds that they took."""
        start = time.perf_counter()
        latents = pipe(
            prompt_embeds=prompt,
            guidance_scale=1.0,
            num_frames=options.frames,
            height=options.height,
            width=options.width,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames
        return latents.cpu(), time.perf_counter() - start  # cpu() waits for a GPU

    dense, _ = generate()

    handle = frameattn.adapters.apply(pipe)
    generate()
    print(handle.report())
    handle.remove()

    seconds = {"dense": [], "swapped": []}
    for _ in range(options.repeat):  # in turns, so that a machine that is busy meanwhile hits both alike
        seconds["dense"].append(generate()[1])
        with frameattn.adapters.apply(pipe):
            seconds["swapped"].append(generate()[1])
    for name, values in seconds.items():
        print(f"{name:<8} {statistics.median(values):.2f} s ({min(values):.2f} .. {max(values):.2f})")
    ratio = statistics.median(seconds["dense"]) / statistics.median(seconds["swapped"])
    print(f"speedup  {ratio:.2f}x, on {options.device} (CPU threads: {torch.get_num_threads()})")

    assert torch.equal(generate()[0], dense), "remove() leaves the model as it was"


if __name__ == "__main__":
    main()
