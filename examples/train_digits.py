"""Trains a small FrameDiT on moving digits by the Python API, samples each digit and writes a contact sheet.

The same as `frameattn train` and `frameattn sample`, as functions to build on. Digits are scikit-learn's, so nothing is
downloaded. After 1000 steps one sees strokes that move; for digits that can be read demo/ trained a larger model for
14,600 steps. Started again with the same --out it trains anew. Needs the extra "video".

    python examples/train_digits.py
    python examples/train_digits.py --steps 5000 --out outputs/longer
"""

import argparse
from pathlib import Path

import torch

from frameattn.data.video_io import write_contact_sheet
from frameattn.diffusion import classifier_free_guidance
from frameattn.models import from_checkpoint
from frameattn.training import Config, create_trainer
from frameattn.training.config import Diffusion, Named

MODEL = Named(
    "FrameDiTG-S/64-256/2",
    dict(
        hidden_size=96,
        depth=4,  # blocks within frames and between frames, in turn
        patch_size=4,  # 16 tokens a frame
        num_row_heads=4,
        num_col_heads=4,
        qk_col_dim=16,
        v_col_dim=16,
        num_frames=8,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--batch", type=int, default=16, help="clips of a step")
    parser.add_argument("--guidance", type=float, default=3.0, help="of sampling; 1 is none")
    parser.add_argument("--out", type=Path, default=Path("outputs/train_digits"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    # 1. Every key of the configuration is an option of `frameattn train`; size and classes come from the data.
    config = Config(
        data=Named("moving_digits"),
        model=MODEL,
        diffusion=Diffusion(learn_sigma=False, predict_xstart=True, max_snr_weight=5.0),
        steps=options.steps,
        batch=options.batch,
        stratified_timesteps=True,
        learning_rate=2e-3,
        schedule="cosine",
        warmup=20,
        betas=(0.9, 0.99),
        clip_norm=1.0,
        clip_start=0,
        ema_decay=0.99,
        log_every=max(1, options.steps // 10),
    )
    trainer = create_trainer(config, options.out, torch.device("cpu"))
    print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters")
    trainer.run()  # writes checkpoint.safetensors, log.csv, loss.png and state.pt

    # 2. The checkpoint has the averaged weights, and builds its model.
    model = from_checkpoint(options.out / "checkpoint.safetensors").eval()
    digits = torch.arange(10)
    noise = torch.randn(10, model.num_frames, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    guided = classifier_free_guidance(model, digits, null_label=10, scale=options.guidance)
    videos = trainer.diffusion.sample(guided, noise, steps=20, method="dpm")

    # 3. A row of frames for each digit. Black is -1, white 1.
    write_contact_sheet(options.out / "contact_sheet.png", videos, digits.tolist())
    print(f"{tuple(videos.shape)} videos, {(videos > 0).float().mean():.1%} white: {options.out / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
