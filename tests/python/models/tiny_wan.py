"""A WanPipeline that takes a second: random weights, texts of six words."""

from pathlib import Path

import torch

WORDS = ["a", "cat", "runs", "over", "the", "sea"]


def save_pipeline(folder: Path) -> Path:
    """Writes it as diffusers does."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(vocab_size=len(vocabulary), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        transformer = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=2
        )
        for parameter in transformer.parameters():  # fresh ones hardly let attention matter
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    WanPipeline(
        tokenizer=T5Tokenizer(vocab=vocabulary, extra_ids=0),
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder
