"""LTX-Video: RMSNorm and rotary embedding span all heads, ahead of the split; text enters by cross-attention."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from frameattn.adapters.call import GRID_UNKNOWN, ForeignModule, Grid, Layout, shape
from frameattn.adapters.places import PLACES_UNSEEN, grid_at_end, unseen
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import project, project_out, split_heads
from frameattn.adapters.registry import register


@register
class LTXVideoProcessor(VMonarchProcessor):
    models = ("diffusers.LTXVideoTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors: ClassVar[tuple[str, ...]] = ("LTXVideoAttnProcessor",)
    notes: ClassVar[str] = "conditions ahead of the video attend densely, and all attend densely to them"
    video_first: ClassVar[bool] = False  # tokens that the grid does not hold are ahead of the video

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None:
        """The latent comes as tokens. num_frames, height and width say the grid; the pipeline with conditions gives
        video_coords alone, [B, 3, N] (LTX-2: [B, 3, N, 2], from and to), in which the video is at the end."""
        sizes = tuple(arguments[name] for name in ("num_frames", "height", "width"))
        if None not in sizes and sizes != (1, 1, 1):
            return sizes
        places = arguments["video_coords"]
        if places is None or places.dim() != 3:
            return None
        grid = grid_at_end(places)
        return None if grid is None or grid[0] == 1 else grid

    @classmethod
    def layout(cls, model: ForeignModule, arguments: Mapping[str, Any], given: Grid | None) -> Layout | str:
        grid = cls.agreed_grid(model, arguments, given)
        if isinstance(grid, str):
            return PLACES_UNSEEN if grid == GRID_UNKNOWN and unseen(arguments["video_coords"]) else grid
        tokens = arguments["hidden_states"].size(1)
        others = tokens - grid[0] * grid[1] * grid[2]
        if others < 0:
            return f"the grid does not hold the tokens (grid {shape(grid)}, {tokens} video tokens)"
        return Layout(grid, behind=others) if cls.video_first else Layout(grid, ahead=others)

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        tokens = hidden_states.size(1)
        if not self.swaps(tokens, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, key, value = project(attn, hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            from diffusers.models.transformers.transformer_ltx import apply_rotary_emb

            query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))
        query, key, value = split_heads([query, key, value], attn.heads)
        return project_out(attn, self.attend(query, key, value))
