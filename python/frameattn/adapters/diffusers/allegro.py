"""Allegro: no norms of query and key, a rotary embedding for each axis; text enters by cross-attention."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import latent_grid, project_heads, project_out
from frameattn.adapters.registry import register


@register
class AllegroProcessor(VMonarchProcessor):
    models = ("diffusers.AllegroTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors = ("AllegroAttnProcessor2_0",)
    notes = "a mask over padding of the video: dense"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        patch = model.config.patch_size
        return latent_grid(arguments["hidden_states"].shape[2:], (model.config.patch_size_t, patch, patch))

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: tuple[Any, Any] | None = None,
    ) -> Tensor:
        tokens = hidden_states.size(1)
        if not self.swaps(tokens, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, image_rotary_emb)
        query, key, value = project_heads(attn, hidden_states)
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb_allegro

            frequencies, positions = image_rotary_emb
            query, key = (
                apply_rotary_emb_allegro(x.transpose(1, 2), frequencies, positions).transpose(1, 2)
                for x in (query, key)
            )
        return project_out(attn, self.attend(query, key, value))
