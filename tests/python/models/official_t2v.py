"""Small text-to-video models with reproducible weights and inputs; official_t2v.json has what the official code gives.

The figures were computed in float64 on a CPU by the official class FrameDiT_H_T2V (github.com/minhkhoale/FrameDiT,
revision 359bd12, models/framedit_h_t2v.py) with diffusers 0.32.2 and PyTorch 2.13, through ``results`` below, from
weights that depend on nothing but names and shapes of the tensors. Where the constructors differ, the official one got
the values of its FrameDiT_H_T2V_XL_2_Latte_like: norm_type="ada_norm_single", norm_elementwise_affine=False,
activation_fn="gelu-approximate", num_embeds_ada_norm=1000, and attention_mode="math".

Cases with images were computed in training with gradient checkpointing on: in evaluation the official code refuses
texts of images, and in training without checkpoints it forgets the time embedding (temp_pos_embed) of the clip.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from official import random

# Few sizes are the same: 16 tokens, 24 channels, 8 rows of query and key, 12 of value.
SMALL = dict(
    sample_size=8, patch_size=2, in_channels=4, out_channels=8, col_dim=16, num_layers=2, video_length=3,
    num_row_attn_heads=2, row_attn_head_dim=12, num_col_attn_heads=4, qk_col_attn_head_dim=2, v_col_attn_head_dim=3,
    caption_channels=6, cross_attention_dim=24, attention_bias=True, norm_eps=1e-6,
    fuse_mode="concat", u_type="pure-softmax", use_bias=True, bias_type="col_row", disable_matrix_attention=False,
)  # fmt: skip
SQUARE = dict(qk_col_attn_head_dim=4, v_col_attn_head_dim=4)  # identity and sparse keep the number of tokens
MASK = [[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]
IMAGES_MASK = [[[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0]]]

# name -> (arguments of the constructor, options of forward; "frames" and "size" where they are not those of the config)
CASES: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "mask": ({}, {"mask": MASK}),
    "mask-empty": ({}, {"mask": [[0] * 5, [1, 0, 0, 0, 0]]}),  # a text without a token is attended as without a mask
    "sum": (dict(fuse_mode="sum"), {"mask": MASK}),
    "gated": (dict(fuse_mode="gated"), {"mask": MASK}),
    "local": (dict(fuse_mode="local"), {"mask": MASK}),
    "global": (dict(fuse_mode="global"), {"mask": MASK}),
    "sum-param-matrix": (dict(fuse_mode="sum", u_type="param", bias_type="matrix"), {}),
    "gated-softmax-row": (dict(fuse_mode="gated", u_type="softmax", bias_type="row"), {}),
    "global-l1-col": (dict(fuse_mode="global", u_type="normalized_l1", bias_type="col"), {}),
    "l2-matrix": (dict(u_type="normalized_l2", bias_type="matrix"), {}),
    "gated-identity": (dict(fuse_mode="gated", u_type="identity", **SQUARE), {}),
    "sparse-col": (dict(u_type="sparse", bias_type="col", **SQUARE), {}),
    "no-bias": (dict(use_bias=False, bias_type="matrix"), {}),
    "no-attention-bias": (dict(attention_bias=False), {}),
    "norm-eps": (dict(norm_eps=0.01), {}),  # of the blocks; the last norm and those before a fusion have their own
    "out-channels": (dict(out_channels=4), {}),
    "interpolation": (dict(sample_size=132, patch_size=33), {}),  # positions 0, 0.5, 1, 1.5
    "wide": ({}, {"size": (4, 16)}),
    "one-frame": (dict(video_length=1), {}),
    "one-frame-of-three": ({}, {"frames": 1}),
    "no-matrix": (dict(disable_matrix_attention=True), {}),
    "no-temporal": ({}, {"temporal": False}),
    "images": ({}, {"images": 2}),
    "images-mask": (dict(fuse_mode="sum"), {"images": 2, "mask": IMAGES_MASK}),
}


def figures() -> dict:
    """official_t2v.json. Its cases list shapes and gradients in the order of its names, null where there is none."""
    content = json.loads(Path(__file__).with_name("official_t2v.json").read_text())
    for case in content["cases"].values():
        for key in ("state", "gradients"):
            case[key] = {name: x for name, x in zip(content["names"], case[key], strict=True) if x is not None}
    return content


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """float64 weights that depend on names and shapes of the tensors alone, large enough for every part to matter."""
    model.double()
    for name, parameter in model.named_parameters():
        value = random(name, *parameter.shape)
        if name.endswith("u_temperature"):
            value = 1 + 0.2 * value
        elif parameter.dim() > 1:
            value = value * 1.2 * (len(value) / value.numel()) ** 0.5
        else:
            value = value * 0.8
        parameter.copy_(value)
    return model


def inputs(case: str) -> dict:
    """Arguments of forward, two clips."""
    arguments, options = CASES[case]
    config, images = {**SMALL, **arguments}, options.get("images", 0)
    frames = options.get("frames", config["video_length"]) + images
    size = options.get("size", (config["sample_size"],) * 2)
    texts = (2, 1 + images) if images else (2,)
    values = {
        "hidden_states": random("hidden_states", 2, config["in_channels"], frames, *size),
        "timestep": torch.tensor([3, 871]),
        "encoder_hidden_states": random("encoder_hidden_states", *texts, 5, config["caption_channels"]),
    }
    if "mask" in options:
        values["encoder_attention_mask"] = torch.tensor(options["mask"])
    if images:
        values["use_image_num"] = images
    if "temporal" in options:
        values["enable_temporal_attentions"] = options["temporal"]
    return values


def is_rounding(name: str, case: str) -> bool:
    """Whether that gradient is nothing but rounding.

    Softmax over keys cancels what is added to all of them alike, and the norm before a fusion what is added to all
    channels of a token alike. With one frame, no query or key of the temporal blocks matters.
    """
    if "one-frame" in case and "temporal" in name and any(part in name for part in ("to_q.", "to_k.", "_q.", "_k.")):
        return True
    if name.endswith("proj_v.bias"):
        return case == "sparse-col"
    return name.endswith(("to_k.bias", "linear_k.bias", "linear_k.bias_col", "linear_k.bias_row"))


def results(model: nn.Module, case: str, dtype: torch.dtype = torch.float64) -> dict:
    """Values of the output; at timestep 0 also its product with a random tensor, and the gradients of that product.

    A gradient is given as [its product with a random tensor, its norm]. At timestep 0 all is the same on every CPU. The
    frequencies of the timestep are exp in float32, whose last bit is not, and the timestep multiplies that.
    """
    values = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs(case).items()}
    with torch.no_grad():
        out = model(**values).sample
    leaves = {name: values[name].requires_grad_() for name in ("hidden_states", "encoder_hidden_states")}
    out_at_0 = model(**{**values, "timestep": torch.zeros_like(values["timestep"])}).sample
    product = (out_at_0.double() * random("weight", *out.shape)).sum()
    product.backward()
    gradients = {
        name: x.grad.double() for name, x in [*model.named_parameters(), *leaves.items()] if x.grad is not None
    }
    return {
        "shape": list(out.shape),
        "largest": out_at_0.abs().max().item(),
        "output": places(out),
        "output_at_0": places(out_at_0),
        "product_at_0": [product.item(), out_at_0.norm().item()],
        "gradients": {
            name: [(gradient * random(f"direction {name}", *gradient.shape)).sum().item(), gradient.norm().item()]
            for name, gradient in gradients.items()
            if not is_rounding(name, case)
        },
    }


def places(out: Tensor) -> list[list[float]]:
    """Eight values of each clip."""
    return out.detach().flatten(1)[:, :: out[0].numel() // 7].double().tolist()


def positions(table: Tensor) -> list[list[float]]:
    """Some rows of a table [tokens, channels] of positions: both ends of the first, the second and the last line."""
    side = int(len(table) ** 0.5)
    return table[[0, 1, side - 1, side, 2 * side - 1, -side, -1]].tolist()
