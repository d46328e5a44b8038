"""Models of two or four blocks, with random weights, that take milliseconds."""

import torch
from torch import Tensor, nn

from frameattn.models import FrameDiTG, FrameDiTH
from oracle import randn

CONFIG = dict(
    input_size=4, patch_size=2, in_channels=4, hidden_size=8, qk_col_dim=4, v_col_dim=6, depth=4, num_col_heads=2,
    num_row_heads=2, num_frames=3, num_classes=5,
)  # fmt: skip
FRAMES, IMAGES = CONFIG["num_frames"], 2
D, NULL = CONFIG["hidden_size"], CONFIG["num_classes"]
CLASSES, TEXT = 2, 78  # values of `extras`
Y = torch.tensor([4, 1])
Y_IMAGE = torch.tensor([[0, 3], [NULL, 2]])
KINDS = [FrameDiTG, FrameDiTH]


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that every part of the model matters; matrices keep the size of what they map."""
    for i, parameter in enumerate(model.parameters()):
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.copy_(randn(*parameter.shape, seed=seed + i) * scale)
    return model


def create(kind: type[nn.Module] = FrameDiTG, seed: int = 0, dtype=torch.float64, **arguments) -> nn.Module:
    return randomize(kind(**{**CONFIG, **arguments}).to(dtype), seed).eval()


def videos(clips: int = 2, frames: int = FRAMES, dtype=torch.float64, seed: int = 100) -> Tensor:
    return randn(
        clips, frames, CONFIG["in_channels"], CONFIG["input_size"], CONFIG["input_size"], dtype=dtype, seed=seed
    )


def steps(clips: int = 2) -> Tensor:
    return torch.arange(1, clips + 1) * 311


def text(clips: int = 2, dtype=torch.float64) -> Tensor:
    return randn(clips, 77, 768, dtype=dtype, seed=300)


def conditions(extras: int, images: int = 0, dtype=torch.float64) -> dict[str, Tensor | int]:
    """What forward needs beside x and t, for two clips."""
    options = {"use_image_num": images} if images else {}
    if extras == CLASSES:
        return options | {"y": Y} | ({"y_image": Y_IMAGE[:, :images]} if images else {})
    return options | ({"text_embedding": text(dtype=dtype)} if extras == TEXT else {})
