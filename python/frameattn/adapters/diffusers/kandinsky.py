"""Kandinsky 5: names of its own for everything; text enters by cross-attention."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import latent_grid, split_heads
from frameattn.adapters.registry import register


@register
class Kandinsky5Processor(VMonarchProcessor):
    models = ("diffusers.Kandinsky5Transformer3DModel",)
    modules = r"visual_transformer_blocks\.\d+\.self_attention"
    processors = ("Kandinsky5AttnProcessor",)
    notes = "the latent is [B, T, H, W, C]; a model with sparse attention of its own (sparse_params) keeps that"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        return latent_grid(arguments["hidden_states"].shape[1:4], model.config.patch_size)

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: Mapping[str, Any] | None = None,
    ) -> Tensor:
        tokens = hidden_states.size(1)  # in tiles, under sparse_params
        if not self.swaps(tokens, encoder_hidden_states=encoder_hidden_states, sparse_params=sparse_params):
            return self.original(attn, hidden_states, encoder_hidden_states, rotary_emb, sparse_params)
        streams = attn.to_query(hidden_states), attn.to_key(hidden_states), attn.to_value(hidden_states)
        query, key, value = split_heads(streams, attn.num_heads)
        query, key = attn.query_norm(query.float()).type_as(query), attn.key_norm(key.float()).type_as(key)
        if rotary_emb is not None:
            query, key = _rotated(query, rotary_emb), _rotated(key, rotary_emb)
        return attn.out_layer(self.attend(query, key, value))


def _rotated(x: Tensor, matrices: Tensor) -> Tensor:
    """By [N, 1, D / 2, 2, 2], a matrix for each pair of channels. The model was trained with what bfloat16 loses."""
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (matrices * pairs).sum(dim=-1).flatten(-2).to(torch.bfloat16).type_as(x)
