"""Fine-tunes a video transformer with VMonarch attention in it: LoRA, gradient checkpointing, clips and images at once.

docs/fine_tune.md goes through it. Without --checkpoint the model is a small Wan with random weights. The data are waves
that move, so nothing is downloaded and what is learned means nothing. Needs diffusers and peft.

    python examples/finetune_swapped.py
    python examples/finetune_swapped.py --checkpoint Wan-AI/Wan2.1-T2V-1.3B-Diffusers --rate 1e-4 --device cuda \
        --frames 21 --size 60x104
"""

import argparse
import math
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

import frameattn

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", help="of a Wan transformer, as diffusers has it")
    parser.add_argument("--frames", type=int, default=5, help="of the latent of a clip; images have one")
    parser.add_argument("--size", default="8x12", help="height x width of the latent")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate; 1e-4 for a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("outputs/lora"))
    parser.add_argument("--device", default="cuda" if frameattn.cuda_devices() else "cpu")
    return parser.parse_args()


def build_transformer(checkpoint: str | None, device: str) -> WanTransformer3DModel:
    if checkpoint:
        dtype = torch.bfloat16
        return WanTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer", torch_dtype=dtype).to(device)
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
    ).to(device)


def waves(channels: int, frames: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Latents [2, C, T, H, W] of waves that run across a frame."""
    phase, speed = 2 * math.pi * torch.rand(2, 2, channels, 1, 1, 1, generator=generator)
    t, h, w = torch.meshgrid(*(torch.arange(size) for size in (frames, height, width)), indexing="ij")
    return torch.sin(phase + speed * t + 0.7 * h + 0.4 * w)


def loss_of(transformer: WanTransformer3DModel, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Of flow matching, at noise levels drawn at random. Captions are left out."""
    weight = transformer.proj_out.weight
    noise, level = (torch.randn(clean.shape, generator=generator), torch.rand(len(clean), generator=generator))
    clean, noise, level = (x.to(weight.device, weight.dtype) for x in (clean, noise, level))
    mix = level.view(-1, 1, 1, 1, 1)
    text = weight.new_zeros(len(clean), 8, transformer.config.text_dim)
    noisy = (1 - mix) * clean + mix * noise
    velocity = transformer(noisy, 1000 * level, text, return_dict=False)[0]
    return F.mse_loss(velocity.float(), (noise - clean).float())


def main() -> None:
    options = parse_arguments()
    height, width = map(int, options.size.split("x"))
    transformer = build_transformer(options.checkpoint, options.device)

    # 1. VMonarch in the place of self-attention, then the LoRA; the other way round is as good.
    transformer.requires_grad_(False)
    handle = frameattn.adapters.apply(transformer, iterations=2)
    transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=LAYERS))

    # 2. Blocks are run again in backward, each within the call that it was run in first.
    transformer.enable_gradient_checkpointing()
    transformer.train()

    # 3. A clip and an image in each step: two grids in one loss.
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.rate)
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        sizes = (options.frames, height, width), (1, height, width)
        clips = (waves(transformer.config.in_channels, *size, generator=generator) for size in sizes)
        return sum(loss_of(transformer, clip, generator) for clip in clips) / len(sizes)

    losses = []
    for _ in range(options.steps):
        step = loss()
        step.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step.item())
    few = max(1, options.steps // 5)
    print(f"loss {sum(losses[:few]) / few:.3f} in the first steps, {sum(losses[-few:]) / few:.3f} in the last")

    # 4. What ran, and whether it was what was meant to run.
    print(handle.report())
    assert handle.counts.vmonarch == handle.counts.calls == 2 * options.steps

    # 5. The LoRA is that of an unswapped model. It was trained for VMonarch: swap the model that it goes into, too.
    transformer.save_lora_adapter(options.out)
    again = build_transformer(options.checkpoint, options.device)
    again.load_lora_adapter(
        options.out, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True, prefix=None
    )
    frameattn.adapters.apply(again, iterations=2)
    with torch.no_grad():
        held_out = waves(transformer.config.in_channels, options.frames, height, width, generator)
        ours, theirs = (
            loss_of(model.eval(), held_out, torch.Generator().manual_seed(2)).item() for model in (transformer, again)
        )
    print(f"loss {ours:.3f} of a clip that is held out, {theirs:.3f} with the LoRA out of {options.out}")


if __name__ == "__main__":
    main()
