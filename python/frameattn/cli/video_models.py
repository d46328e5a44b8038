"""Video transformers of diffusers in the sizes of their checkpoints, with few blocks and random weights.

What a block costs depends on its sizes alone, so that it can be timed without the checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frameattn._errors import UsageError
from frameattn._optional import require

Grid = tuple[int, int, int]  # tokens in time, height and width


@dataclass(frozen=True)
class VideoModel:
    """A transformer of diffusers and how it is called.

    checkpoint: whose sizes these are. model: the class. depth: how many blocks the checkpoint has.
    inputs: arguments of forward, for a token grid and a batch. joint_text: text tokens in the video's attention.
    arguments: of the constructor, where its defaults are others. blocks: its arguments for so many blocks.
    """

    checkpoint: str
    model: str
    depth: int
    inputs: Callable[[Grid, int], dict[str, Any]]
    joint_text: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    blocks: Callable[[int], dict[str, int]] = lambda count: dict(num_layers=count)

    def build(self, layers: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model with so many blocks, in the dtypes in which ``from_pretrained(torch_dtype=dtype)`` gives it."""
        diffusers = require("diffusers")
        if not hasattr(diffusers, self.model):
            raise UsageError(f"diffusers {diffusers.__version__} has no {self.model}; another version may")
        with device:
            model = getattr(diffusers, self.model)(**self.arguments, **self.blocks(layers))
        float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
        for name, parameter in model.named_parameters():
            if float32.isdisjoint(name.split(".")):
                parameter.data = parameter.data.to(dtype)
        return model.eval()

    def call(self, grid: Grid, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""

        def moved(x: Any) -> Any:
            if isinstance(x, tuple):  # rotary embeddings stay float32
                return tuple(part.to(device) for part in x)
            if isinstance(x, Tensor):
                return x.to(device, dtype if x.is_floating_point() else None)
            return x

        inputs = {name: moved(x) for name, x in self.inputs(grid, batch).items()}
        return {**inputs, "timestep": torch.full((batch,), 500, device=device), "return_dict": False}


def _latent(grid: Grid, batch: int, channels: int) -> Tensor:
    """[B, C, T, H, W] for patches of 1 x 2 x 2."""
    t, h, w = grid
    return torch.randn(batch, channels, t, 2 * h, 2 * w)


def _wan(grid: Grid, batch: int, channels: int = 16) -> dict[str, Any]:
    return dict(hidden_states=_latent(grid, batch, channels), encoder_hidden_states=torch.randn(batch, 512, 4096))


def _ltx(grid: Grid, batch: int) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=torch.randn(batch, t * h * w, 128),
        encoder_hidden_states=torch.randn(batch, 128, 4096),
        encoder_attention_mask=torch.ones(batch, 128),
        num_frames=t,
        height=h,
        width=w,
    )


def _hunyuan(grid: Grid, batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=_latent(grid, batch, 16),
        encoder_hidden_states=torch.randn(batch, 256, 4096),
        encoder_attention_mask=torch.ones(batch, 256, dtype=torch.bool),
        pooled_projections=torch.randn(batch, 768),
        guidance=torch.full((batch,), 6000.0),
    )


def _cogvideox(grid: Grid, batch: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    t, h, w = grid
    return dict(
        hidden_states=_latent(grid, batch, 16).transpose(1, 2),
        encoder_hidden_states=torch.randn(batch, 226, 4096),
        image_rotary_emb=get_3d_rotary_pos_embed(64, ((0, 0), (h, w)), (h, w), t),
    )


def _mochi(grid: Grid, batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=_latent(grid, batch, 12),
        encoder_hidden_states=torch.randn(batch, 256, 4096),
        encoder_attention_mask=torch.ones(batch, 256, dtype=torch.bool),
    )


def _hunyuan_blocks(count: int) -> dict[str, int]:
    """Of two streams and of one, as near to 20 and 40 as may be."""
    two_streams = max(1, round(count / 3))
    return dict(num_layers=two_streams, num_single_layers=count - two_streams)


MODELS = {
    "wan": VideoModel(
        "Wan2.1-T2V-1.3B",
        "WanTransformer3DModel",
        depth=30,
        inputs=_wan,
        arguments=dict(num_attention_heads=12, ffn_dim=8960),
    ),
    "wan-5b": VideoModel(
        "Wan2.2-TI2V-5B",
        "WanTransformer3DModel",
        depth=30,
        inputs=lambda grid, batch: _wan(grid, batch, channels=48),
        arguments=dict(num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48),
    ),
    "wan-14b": VideoModel("Wan2.1-T2V-14B", "WanTransformer3DModel", depth=40, inputs=_wan),
    "ltx": VideoModel("LTX-Video 2B", "LTXVideoTransformer3DModel", depth=28, inputs=_ltx),
    "hunyuan": VideoModel(
        "HunyuanVideo",
        "HunyuanVideoTransformer3DModel",
        depth=60,
        inputs=_hunyuan,
        joint_text=256,
        blocks=_hunyuan_blocks,
    ),
    "cogvideox": VideoModel(
        "CogVideoX-5B",
        "CogVideoXTransformer3DModel",
        depth=42,
        inputs=_cogvideox,
        joint_text=226,
        arguments=dict(num_attention_heads=48, use_rotary_positional_embeddings=True),
    ),
    "mochi": VideoModel("Mochi 1", "MochiTransformer3DModel", depth=48, inputs=_mochi, joint_text=256),
}
