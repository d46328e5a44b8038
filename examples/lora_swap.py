"""A model that has a LoRA runs with VMonarch attention: with the LoRA, without it, at another scale, and back again.

The transformer is a small Wan and the LoRA a random one, so nothing is downloaded. finetune_swapped.py trains one for
VMonarch; a LoRA that was trained for dense attention is used as here. Needs diffusers and peft.

    python examples/lora_swap.py
"""

import argparse
import tempfile

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor

import frameattn

SCALES = (0.0, 0.5, 1.0)  # 0: the LoRA is disabled


def build_transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=4, attention_head_dim=24, num_layers=2, ffn_dim=96)
    return WanTransformer3DModel(**sizes, in_channels=4, out_channels=4, text_dim=16, freq_dim=32).eval()


def write_lora(folder: str, rank: int) -> None:
    """What a training leaves behind: pytorch_lora_weights.safetensors."""
    transformer = build_transformer()
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights=False))
    transformer.save_lora_adapter(folder)


@torch.no_grad()
def outputs(transformer: WanTransformer3DModel, inputs: dict[str, Tensor]) -> dict[float, Tensor]:
    """Of every scale of the LoRA."""
    results = {}
    for scale in SCALES:
        if scale == 0:
            transformer.disable_lora()
        else:
            transformer.enable_lora()
            transformer.set_adapters("style", scale)
        results[scale] = transformer(**inputs, return_dict=False)[0]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=5, help="of the latent")
    parser.add_argument("--size", default="16x24", help="height x width of the latent; a token is 2 x 2 of it")
    parser.add_argument("--rank", type=int, default=8, help="of the LoRA")
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))

    transformer = build_transformer()
    with tempfile.TemporaryDirectory() as folder:
        write_lora(folder, options.rank)
        file = dict(weight_name="pytorch_lora_weights.safetensors", use_safetensors=True, prefix=None)
        transformer.load_lora_adapter(folder, adapter_name="style", **file)
    latent, text = torch.randn(1, 4, options.frames, height, width), torch.randn(1, 7, 16)
    inputs = dict(hidden_states=latent, timestep=torch.tensor([500]), encoder_hidden_states=text)

    dense = outputs(transformer, inputs)
    handle = frameattn.adapters.apply(transformer)  # a LoRA may as well be loaded behind this line
    swapped = outputs(transformer, inputs)
    print(handle.report())
    handle.remove()
    removed = outputs(transformer, inputs)
    same = all(torch.equal(removed[scale], dense[scale]) for scale in SCALES)
    print(f"outputs behind remove() are those of before, bit for bit: {'yes' if same else 'no'}\n")

    # Changes of the output relative to it: by the swap alone, and by the LoRA in each of the two models.
    by_swap = (swapped[0] - dense[0]).norm() / dense[0].norm()
    print(f"the swap changes the output by {by_swap:.2%} where the LoRA is disabled")
    print(f"{'LoRA at':<10}{'dense':>10}{'swapped':>10}{'cosine of both changes':>26}")
    for scale in SCALES[1:]:
        changes = [results[scale] - results[0] for results in (dense, swapped)]
        relative = [
            change.norm() / results[0].norm() for change, results in zip(changes, (dense, swapped), strict=True)
        ]
        cosine = torch.cosine_similarity(*(change.flatten() for change in changes), dim=0)
        print(f"{scale:<10}{relative[0]:>10.2%}{relative[1]:>10.2%}{cosine:>26.4f}")


if __name__ == "__main__":
    main()
