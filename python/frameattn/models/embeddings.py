"""What FrameDiT embeds beside its attention: patches, positions, time steps and labels."""

import math

import torch
from torch import Tensor, nn

SINUSOID_WIDTH = 256  # of a diffusion step


class PatchEmbed(nn.Module):
    """Frames [F, C, H, W] -> tokens [F, N, D], one for each patch, row by row."""

    def __init__(self, patch_size: int, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(frames).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Diffusion steps t [B] -> [B, D]: cosines and sines of t, then an MLP."""

    def __init__(self, dim: int):
        super().__init__()
        first, last = nn.Linear(SINUSOID_WIDTH, dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        # In float32 whatever the weights are: t up to 999 has no exact neighbours in half precision.
        half = SINUSOID_WIDTH // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t.float().unsqueeze(1) * frequencies
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(sinusoid.to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]  # mlp[0] is a Linear


class LabelEmbedder(nn.Module):
    """Labels [B, L] -> [B, L, D]. Label num_classes is the null class, which a dropped label becomes in training."""

    def __init__(self, num_classes: int, dim: int, dropout: float):
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.embedding_table = nn.Embedding(num_classes + (dropout > 0), dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(len(labels), 1, device=labels.device) < self.dropout  # all L of a clip together
            labels = labels.masked_fill(dropped, self.num_classes)
        return self.embedding_table(labels)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """[P] -> [P, dim] float64: sines, then cosines, of position * 10000^(-2i / dim)."""
    omega = 10_000 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double().unsqueeze(1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def temporal_embedding(frames: int, dim: int) -> Tensor:
    """[1, T, D] float32."""
    return sincos_1d(torch.arange(frames), dim).float().unsqueeze(0)


def position_embedding(side: int, dim: int) -> Tensor:
    """[1, side * side, D] float32: the first half of the channels encodes the column, the second the row."""
    index = torch.arange(side)
    row, column = index.repeat_interleave(side), index.repeat(side)
    return torch.cat([sincos_1d(column, dim // 2), sincos_1d(row, dim // 2)], dim=1).float().unsqueeze(0)
