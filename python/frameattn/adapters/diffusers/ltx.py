"""LTX-Video: RMSNorm and rotary embedding span all heads, ahead of the split; text enters by cross-attention."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import project, project_out, split_heads
from frameattn.adapters.registry import register


@register
class LTXVideoProcessor(VMonarchProcessor):
    models = ("diffusers.LTXVideoTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors: ClassVar[tuple[str, ...]] = ("LTXVideoAttnProcessor",)
    notes = "calls with condition tokens ahead of the video have no grid: dense"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None:
        """The latent comes as tokens; num_frames, height and width say the grid. With video_coords they may be absent,
        or 1 each: then the tokens have places of their own."""
        sizes = tuple(arguments[name] for name in ("num_frames", "height", "width"))
        return None if None in sizes or sizes == (1, 1, 1) else sizes

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
