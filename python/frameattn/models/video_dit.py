"""VideoDiT: a diffusion transformer of videos [B, T, C, H, W] whose blocks attend over all tokens of a clip.

What FrameDiT is without its factorised attention, and small models of the kind that people swap: every block has dense
attention over T x H x W tokens with three-dimensional rotary positions. frameattn.adapters.apply() swaps VMonarch into
it as into models of diffusers, so that a swap can be tried on weights that one has trained oneself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frameattn.functional import gated_add, modulated_layer_norm, vmonarch_attention
from frameattn.models.framedit import NO_CONDITION, Block, FrameDiT
from frameattn.modules.attention import LARGEST_HEAD, Projections
from frameattn.modules.block_gemm import has_block_gemm

ROTARY_BASE = 100.0  # the slowest angles turn by less than a radian over the tens of positions of small grids


class DenseProcessor:
    """Dense attention over all tokens. A swap puts another processor in its place."""

    def __call__(self, attn: "ClipAttention", x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in attn.project(x, cos, sin))
        out = dense_attention(query, key, value)
        return attn.proj(out.transpose(1, 2).flatten(2)).view(x.shape)


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """F.scaled_dot_product_attention of [B, H, N, d]."""
    # One frame of vmonarch_attention is dense attention. At 4 heads of 1024 x 32 on a Zen 3 (float32) it takes 0.6 of
    # the time of torch's own, forward and backward.
    if has_block_gemm(query) and query.size(-1) <= LARGEST_HEAD:
        return vmonarch_attention(query, key, value, frames=1)
    return F.scaled_dot_product_attention(query, key, value)


class ClipAttention(Projections):
    """Self-attention of the tokens of a clip. x [B, T, N, D] -> [B, T, N, D].

    An RMSNorm over the channels of a head goes ahead of the rotary embedding, for query and for key.
    ``processor(self, x, cos, sin)`` attends; cos and sin [T N, d] turn channel c of a head with channel c + d / 2.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.norm_q, self.norm_k = (nn.RMSNorm(dim // num_heads, eps=1e-6) for _ in range(2))
        self.processor: Callable[..., Tensor] = DenseProcessor()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.processor(self, x, cos, sin)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key, value [B, T N, H, d] in one dtype; query and key are normalised and turned."""
        query, key, value = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        wide = self.norm_q.weight.dtype  # which autocast does not see to
        cos, sin = cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)
        query, key = (
            _turn(norm(part.to(wide)), cos, sin).to(value.dtype)
            for norm, part in ((self.norm_q, query), (self.norm_k, key))
        )
        return query, key, value


class VideoBlock(Block):
    """Block (adaLN-Zero) whose attention is told where tokens are."""

    def forward(  # type: ignore[override]  # rotary positions in the place of a condition of each frame
        self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        modulation = self.adaLN_modulation(condition, None)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        attended = self.attn(modulated_layer_norm(x, shift_attention, scale_attention), cos, sin)
        x = gated_add(x, gate_attention, attended)
        return gated_add(x, gate_mlp, self.mlp(modulated_layer_norm(x, shift_mlp, scale_mlp)))


class VideoDiT(FrameDiT):
    """A video transformer with full attention in every block.

    Embeddings, conditions, adaLN-Zero and the final layer are those of FrameDiT, and so are still images beside a clip:
    each is a clip of one frame. Sines of place and time are added to the tokens; rotary positions turn query and key.

    Args:
        num_heads: of attention; their channels, hidden_size / num_heads, are even and at least 6.

    The other arguments and the attributes are those of FrameDiT.

    Raises:
        ValueError: arguments do not fit together.

    Examples:
        >>> import torch
        >>> from frameattn.models import VideoDiT
        >>> model = VideoDiT(8, 2, in_channels=1, hidden_size=24, depth=2, num_heads=2, num_frames=3, learn_sigma=False)
        >>> model(torch.randn(1, 3, 1, 8, 8), torch.tensor([500])).shape
        torch.Size([1, 3, 1, 8, 8])
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_frames: int = 16,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        extras: int = NO_CONDITION,
        gradient_checkpointing: bool = False,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if num_heads < 1 or hidden_size % (2 * num_heads) or hidden_size < 6 * num_heads:
            raise ValueError(
                f"VideoDiT: a head must have an even number of channels, at least 6: num_heads = {num_heads} of "
                f"hidden_size = {hidden_size} does not give that"
            )
        shared = {k: v for k, v in config.items() if k != "num_heads"}
        super().__init__(**shared, num_row_heads=num_heads, _temporal_attention=None)
        self.config: dict[str, Any] = config
        self.checkpointed_layers = depth
        side = input_size // patch_size
        angles = rotary_angles((num_frames, side, side), hidden_size // num_heads)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def _create_blocks(self, tokens: int, temporal_attention: Any) -> list[nn.Module]:
        dim, heads = self.config["hidden_size"], self.config["num_row_heads"]
        return [
            VideoBlock(dim, ClipAttention(dim, heads), self.config["mlp_ratio"]) for _ in range(self.config["depth"])
        ]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor | None = None,
        text_embedding: Tensor | None = None,
        y_image: Tensor | None = None,
        use_image_num: int = 0,
    ) -> Tensor:
        """As FrameDiT.forward. ``timestep`` is named as in diffusers: dense_steps of a swap reads it."""
        return super().forward(x, timestep, y, text_embedding, y_image, use_image_num)

    def _run_blocks(
        self, tokens: Tensor, condition: Tensor, condition_of_frame: Tensor | None, use_image_num: int
    ) -> Tensor:
        frames = self.num_frames
        streams = []
        if frames:
            video = tokens[:, :frames] + self.temp_embed[:, :frames].unsqueeze(2)
            streams.append(self._attend(video, condition[:, :1]))
        if use_image_num:  # clips of one frame
            images = tokens[:, frames:]
            batch, count = images.shape[:2]
            of_images = condition[:, -count:] if condition_of_frame is not None else condition.expand(-1, count, -1)
            images = self._attend(images.reshape(batch * count, 1, *images.shape[2:]), of_images.flatten(0, 1)[:, None])
            streams.append(images.view(batch, count, *images.shape[2:]))
        return torch.cat(streams, dim=1)

    def _attend(self, clips: Tensor, condition: Tensor) -> Tensor:
        count = clips.size(1) * clips.size(2)
        for i, block in enumerate(self.blocks):
            clips = self._run(i, block, clips, condition, self.cos[:count], self.sin[:count])
        return clips


def rotary_angles(grid: tuple[int, int, int], channels: int) -> Tensor:
    """[T H W, channels] float64: angles of time, height and width side by side, and the same again."""
    half = channels // 2
    pairs = [half - 2 * (half // 3), half // 3, half // 3]  # what is left over goes to time
    parts = []
    for axis, count in enumerate(pairs):
        frequencies = ROTARY_BASE ** (-torch.arange(count, dtype=torch.float64) / count)
        shape = [1, 1, 1, count]
        shape[axis] = grid[axis]
        parts.append(
            (torch.arange(grid[axis], dtype=torch.float64)[:, None] * frequencies).view(shape).expand(*grid, -1)
        )
    return torch.cat(2 * [torch.cat(parts, dim=-1).flatten(0, 2)], dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
