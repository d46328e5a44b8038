"""Small models with reproducible weights and inputs, whose results with the official code are in official.json.

The figures were computed in float64 by the official code (github.com/minhkhoale/FrameDiT, revision 359bd12) from these
weights, which depend on nothing but names and shapes of the tensors.
"""

import zlib

import torch
from torch import Tensor, nn

SMALL = dict(
    input_size=8, patch_size=2, in_channels=4, hidden_size=16, qk_col_dim=8, v_col_dim=32, depth=4, num_col_heads=4,
    num_row_heads=2, num_frames=3, num_classes=5, class_dropout_prob=0.1,
)  # fmt: skip
SQUARE = dict(qk_col_dim=16, v_col_dim=16)  # identity and sparse keep the number of tokens

# name -> (family, arguments, inputs of forward beside x and t)
CASES = {
    "g": ("G", dict(extras=1), ()),
    "g-classes": ("G", dict(extras=2), ("y",)),
    "g-text": ("G", dict(extras=78), ("text_embedding",)),
    "g-no-sigma": ("G", dict(learn_sigma=False), ()),
    "g-no-null-class": ("G", dict(extras=2, class_dropout_prob=0.0), ("y",)),
    "g-images": ("GIMG", dict(extras=1), ("images",)),
    "g-images-classes": ("GIMG", dict(extras=2, class_dropout_prob=0.0), ("y", "y_image", "images")),
    "g-softmax": ("G", dict(u_type="softmax"), ()),
    "g-l1": ("G", dict(u_type="normalized_l1"), ()),
    "g-l2": ("G", dict(u_type="normalized_l2"), ()),
    "g-identity": ("G", dict(u_type="identity", **SQUARE), ()),
    "g-sparse": ("G", dict(u_type="sparse", sparse_bandwidth=6, **SQUARE), ()),
    "g-row": ("G", dict(bias_type="row"), ()),
    "g-col": ("G", dict(bias_type="col"), ()),
    "h-concat": ("H", dict(extras=2, fuse_mode="concat"), ("y",)),
    "h-sum": ("H", dict(fuse_mode="sum"), ()),
    "h-gated": ("H", dict(fuse_mode="gated"), ()),
    "h-local": ("H", dict(fuse_mode="local"), ()),
    "h-text": ("H", dict(extras=78, fuse_mode="concat"), ("text_embedding",)),
    "h-softmax": ("H", dict(u_type="softmax", fuse_mode="concat"), ()),
    "h-l1": ("H", dict(u_type="normalized_l1", fuse_mode="sum"), ()),
    "h-l2-col": ("H", dict(u_type="normalized_l2", bias_type="col", fuse_mode="gated"), ()),
    "h-identity-row": ("H", dict(u_type="identity", bias_type="row", fuse_mode="concat", **SQUARE), ()),
    "h-images": ("HIMG", dict(extras=1, fuse_mode="concat"), ("images",)),
    "h-images-classes": (
        "HIMG",
        dict(extras=2, class_dropout_prob=0.0, fuse_mode="concat"),
        ("y", "y_image", "images"),
    ),
}
IMAGES = 2


def random(name: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """float64 weights that depend on the names of the tensors alone, large enough for every part to matter."""
    model.double()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(random(name, *parameter.shape) * (0.5 if parameter.dim() > 1 else 0.8))
    return model


def inputs(arguments: dict, extra: tuple[str, ...]) -> dict[str, Tensor | int]:
    """Arguments of forward, two clips."""
    config = {**SMALL, **arguments}
    frames = config["num_frames"] + (IMAGES if "images" in extra else 0)
    values = {
        "x": random("x", 2, frames, config["in_channels"], config["input_size"], config["input_size"]),
        "t": torch.tensor([3, 871]),
    }
    if "y" in extra:
        values["y"] = torch.tensor([4, 1])
    if "text_embedding" in extra:
        values["text_embedding"] = random("text", 2, 77, 768)
    if "y_image" in extra:
        values["y_image"] = torch.tensor([[0, 3], [2, 2]])
    if "images" in extra:
        values["use_image_num"] = IMAGES
    return values


def results(model: nn.Module, arguments: dict, extra: tuple[str, ...]) -> dict:
    """Values of the output; at t = 0 also, of each gradient of a weighted sum of it, its product with a random tensor.

    At t = 0 the time embedding is the same on every CPU. Its frequencies are exp in float32, whose last bit is not, and
    t multiplies that.
    """
    model.train("y_image" in extra)  # the official code looks at labels of images in training only
    values = inputs(arguments, extra)
    with torch.no_grad():
        out = model(**values)
    out_at_0 = model(**{**values, "t": torch.zeros_like(values["t"])})
    (out_at_0 * random("weight", *out.shape)).sum().backward()
    return {
        "shape": list(out.shape),
        "output": out.flatten()[:: out.numel() // 7].tolist(),
        "output_at_0": out_at_0.detach().flatten()[:: out.numel() // 7].tolist(),
        "gradients": {
            name: (p.grad * random(f"direction {name}", *p.shape)).sum().item()
            for name, p in model.named_parameters()
            if p.grad is not None
        },
    }
