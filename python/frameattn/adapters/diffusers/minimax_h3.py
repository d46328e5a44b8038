"""MiniMax-H3: text, conditions, sound and video in one packed sequence, the video that is made at its end."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from frameattn.adapters.call import GRID_UNKNOWN, ForeignModule, Grid, Layout, shape
from frameattn.adapters.places import PLACES_UNSEEN, grid_at_end, tokens_at_end, unseen
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import project_heads, project_out
from frameattn.adapters.registry import register


@register
class MiniMaxH3Processor(VMonarchProcessor):
    models = ("diffusers.MiniMaxH3Transformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn"
    processors = ("MiniMaxH3AttnProcessor",)
    notes = "the video at the end of the packed sequence; all other tokens attend and are attended to densely"
    rises = True  # of several timesteps the least is that of what is being made

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None:
        """Of the last tokens, by their places; not if so many are not of a video, nor one token of a longer one."""
        grid, video = grid_at_end(arguments["position_ids"]), arguments["video_indices"].size(0)
        if grid is None or grid[0] * grid[1] * grid[2] > video or (grid == (1, 1, 1) and video > 1):
            return None
        return grid

    @classmethod
    def layout(cls, model: ForeignModule, arguments: Mapping[str, Any], given: Grid | None) -> Layout | str:
        grid = cls.agreed_grid(model, arguments, given)
        if isinstance(grid, str):
            return PLACES_UNSEEN if grid == GRID_UNKNOWN and unseen(arguments["position_ids"]) else grid
        tokens, video = arguments["position_ids"].size(0), arguments["video_indices"]
        own = grid[0] * grid[1] * grid[2]
        if own > video.size(0):
            return f"the grid does not hold the tokens (grid {shape(grid)}, {video.size(0)} video tokens)"
        if not unseen(video) and tokens_at_end(video, tokens) < own:
            return f"the sequence does not end with the video (grid {shape(grid)})"
        return Layout(grid, ahead=tokens - own)

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if not self.swaps(hidden_states.size(1), attention_mask=attention_mask):
            return self.original(attn, hidden_states, rotary_emb, attention_mask)
        query, key, value = project_heads(attn, hidden_states, fused=True)
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        return project_out(attn, self.attend(query, key, value))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, N, H, D], of which the first R channels are turned: each of their first half with one of the second, by
    angles with cos and sin [N, R], which have each angle twice."""
    size = cos.size(1)
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    first, second = x[..., :size].chunk(2, dim=-1)
    turned = x[..., :size] * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, x[..., size:]], dim=-1)
