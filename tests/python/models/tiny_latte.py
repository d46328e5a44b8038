"""A Latte and a pipeline of it that take milliseconds: random weights, 8x8 latents of 3 frames, texts of 6 channels."""

from pathlib import Path

import torch
from torch import nn

FRAMES, CHANNELS, SIZE, TEXT_CHANNELS = 3, 4, 8, 6
LATTE = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=CHANNELS, out_channels=2 * CHANNELS, num_layers=2,
    cross_attention_dim=24, attention_bias=True, sample_size=SIZE, patch_size=2, activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    caption_channels=TEXT_CHANNELS, video_length=FRAMES,
)  # fmt: skip
WORDS = ["a", "cat", "runs", "over", "the", "sea"]


def latte(seed: int = 0, dtype: torch.dtype = torch.float32, **arguments) -> nn.Module:
    """diffusers' LatteTransformer3DModel."""
    from diffusers import LatteTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LatteTransformer3DModel(**{**LATTE, **arguments}).to(dtype).eval()


def pipeline(transformer: nn.Module, dtype: torch.dtype = torch.float32):
    """LattePipeline with a text encoder, a tokenizer of six words and a VAE that makes 16x16 pixels of 8x8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(vocabulary), d_model=TEXT_CHANNELS, d_kv=3, d_ff=8, num_layers=1, num_heads=2)
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=CHANNELS, norm_num_groups=2,
        )  # fmt: skip
    return LattePipeline(
        tokenizer=T5Tokenizer(vocab=vocabulary, extra_ids=0),
        text_encoder=text_encoder.to(dtype).eval(),
        vae=vae.to(dtype).eval(),
        transformer=transformer,
        scheduler=DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    )


def save_pipeline(folder: Path, **arguments) -> Path:
    """Writes the pipeline of a Latte as diffusers does."""
    pipeline(latte(**arguments)).save_pretrained(folder)
    return folder


def call(pipe, prompt: str | list[str] = "a cat runs", **options):
    """Frames of the pipeline for a text or for some, [texts, T, C, H, W]."""
    return pipe(
        prompt, num_inference_steps=4, video_length=FRAMES, height=2 * SIZE, width=2 * SIZE,
        generator=torch.Generator().manual_seed(0), output_type="pt", clean_caption=False, **options,
    ).frames  # fmt: skip
