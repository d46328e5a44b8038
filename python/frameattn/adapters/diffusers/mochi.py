"""Mochi: video, then text; every sample has its own number of text tokens, which may be none."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.attention import Streams
from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.joint import JointProcessor
from frameattn.adapters.projections import latent_grid, rotate_pairs
from frameattn.adapters.registry import register


@register
class MochiProcessor(JointProcessor):
    models = ("diffusers.MochiTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors = ("MochiAttnProcessor2_0",)
    notes = "the mask over text is applied, all samples in one call"
    rises = True

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        patch = model.config.patch_size
        return latent_grid(arguments["hidden_states"].shape[2:], (1, patch, patch))

    @staticmethod
    def text_mask(attention_mask: Tensor | None, text_tokens: int) -> tuple[Tensor | None, Tensor | None]:
        return (None if attention_mask is None else attention_mask.bool()), None

    @staticmethod
    def rotate(query: Tensor, key: Tensor, rotary_emb: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """cos and sin [N, H, D / 2]: each head has frequencies of its own."""
        query, key = (rotate_pairs(x.float(), *rotary_emb).type_as(x) for x in (query, key))
        return query, key

    def attend_jointly(self, video: Streams, text: Streams, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Padding is behind the text. The original leaves it out, and fills up with zeros."""
        for_video, for_text = super().attend_jointly(video, text, text_mask)
        return for_video, for_text if text_mask is None else for_text * text_mask.unsqueeze(2)
