"""LTX-2: video attention as in LTX-Video, in blocks that have a sound beside the video, with a gate for each head."""

import torch
from torch import Tensor

from frameattn.adapters.call import ForeignModule
from frameattn.adapters.diffusers.ltx import LTXVideoProcessor
from frameattn.adapters.projections import project, project_out, split_heads
from frameattn.adapters.registry import register

Angles = tuple[Tensor, Tensor]  # cos, sin


@register
class LTX2Processor(LTXVideoProcessor):
    models = ("diffusers.LTX2VideoTransformer3DModel",)
    processors = ("LTX2AudioVideoAttnProcessor", "LTX2PerturbedAttnProcessor")
    notes = "keyframes and references behind the video as conditions of LTX-Video; with a mask, a perturbation: dense"
    video_first = True

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Angles | None = None,
        key_rotary_emb: Angles | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: Tensor | bool | None = None,
    ) -> Tensor:
        if not self.swaps(
            hidden_states.size(1),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            perturbation_mask=perturbation_mask,
        ):
            arguments = hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb
            if perturbation_mask is None:  # one of the originals knows of none, and else both compute the same
                return self.original(attn, *arguments)
            return self.original(attn, *arguments, perturbation_mask, all_perturbed)
        query, key, value = project(attn, hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if query_rotary_emb is not None:
            from diffusers.models.transformers import transformer_ltx2

            rotated = getattr(transformer_ltx2, f"apply_{attn.rope_type}_rotary_emb")
            query = rotated(query, query_rotary_emb)
            key = rotated(key, query_rotary_emb if key_rotary_emb is None else key_rotary_emb)
        attended = self.attend(*split_heads([query, key, value], attn.heads))
        if getattr(attn, "to_gate_logits", None) is not None:
            gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))  # [B, N, H]
            attended = (attended.unflatten(2, (attn.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
        return project_out(attn, attended)
