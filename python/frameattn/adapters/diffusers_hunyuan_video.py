"""HunyuanVideo: one attention over video and text. Two-stream blocks project the text by ``add_*_proj``, single-stream
blocks as they project the video. RMSNorm spans one head; only the video has a rotary embedding."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import (
    key_mask,
    latent_grid,
    project_heads,
    project_heads_added,
    project_out,
    project_out_added,
)
from frameattn.adapters.registry import register
from frameattn.adapters.state import Grid


@register
class HunyuanVideoProcessor(VMonarchProcessor):
    models = ("diffusers.HunyuanVideoTransformer3DModel",)
    modules = r"(single_)?transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideoAttnProcessor2_0",)
    notes = "text to video and image to video; the mask over text is applied"

    @staticmethod
    def grid(model: nn.Module, arguments: Mapping[str, Any]) -> Grid:
        patch = model.config.patch_size
        return latent_grid(arguments["hidden_states"].shape[2:], (model.config.patch_size_t, patch, patch))

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.size(1)
        text_mask, other_mask = key_mask(attention_mask, tokens)  # video, then text
        if not self.swaps(tokens, attention_mask=other_mask):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        query, key, value = project_heads(attn, hidden_states)
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        two_streams = attn.add_q_proj is not None
        text = (project_heads_added if two_streams else project_heads)(attn, encoder_hidden_states)

        video, text = self.attend_jointly((query, key, value), text, text_mask)
        return project_out(attn, video), project_out_added(attn, text)
