"""Cosmos 1, Predict2 and 2.5: RMSNorm spans one head; text and images enter by cross-attention."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import latent_grid, project_heads, project_out, rotate
from frameattn.adapters.registry import register


@register
class CosmosProcessor(VMonarchProcessor):
    models = ("diffusers.CosmosTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors = ("CosmosAttnProcessor2_0",)
    notes = "Cosmos 1, 2 and 2.5, of text, image or video; a control network beside it stays dense"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        return latent_grid(arguments["hidden_states"].shape[2:], model.config.patch_size)

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
        query, key, value = project_heads(attn, hidden_states)
        if image_rotary_emb is not None:  # of the two halves of a head's channels
            query, key = rotate(query, key, image_rotary_emb, use_real_unbind_dim=-2)
        return project_out(attn, self.attend(query, key, value))
