"""Wan 2.1 and 2.2 and what is built like it: VACE, Animate, ChronoEdit, SkyReels-V2, AnyFlow.

Text and images enter by cross-attention, ``attn2``, which is left alone. RMSNorm spans all heads, ahead of the split.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import latent_grid, project, project_out, rotate_pairs, split_heads
from frameattn.adapters.registry import register


@register
class WanProcessor(VMonarchProcessor):
    models: ClassVar[tuple[str | type, ...]] = (
        "diffusers.WanTransformer3DModel",
        "diffusers.ChronoEditTransformer3DModel",
    )
    modules = r"blocks\.\d+\.attn1"
    processors: ClassVar[tuple[str, ...]] = ("WanAttnProcessor",)
    notes = "text to video, image to video, and both in one"
    fuses = True  # fuse_qkv_projections() is heard

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        return latent_grid(arguments["hidden_states"].shape[2:], model.config.patch_size)

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        tokens = hidden_states.size(1)
        if not self.swaps(tokens, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query, key, value = project(attn, hidden_states, fused=self.fuses)
        query, key, value = split_heads([attn.norm_q(query), attn.norm_k(key), value], attn.heads)
        if rotary_emb is not None:
            query, key = self.rotate(query, key, rotary_emb)
        return project_out(attn, self.attend(query, key, value))

    @staticmethod
    def rotate(query: Tensor, key: Tensor, rotary_emb: Any) -> tuple[Tensor, Tensor]:
        """cos and sin [1, N, 1, D] hold each angle twice."""
        cos, sin = rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2]
        return rotate_pairs(query, cos, sin), rotate_pairs(key, cos, sin)


@register
class WanAnimateProcessor(WanProcessor):
    models = ("diffusers.WanAnimateTransformer3DModel",)
    notes = "the reference image is frame 0"


@register
class WanVACEProcessor(WanProcessor):
    models = ("diffusers.WanVACETransformer3DModel",)
    modules = r"(vace_)?blocks\.\d+\.attn1"
    notes = "the control branch, too; reference images are the first frames"

    @staticmethod
    def block(model: ForeignModule, name: str, index: int) -> int:
        """A block of the control branch counts as the block that its output is for."""
        branch, number = name.split(".")[:2]
        return model.config.vace_layers[int(number)] if branch == "vace_blocks" else int(number)


@register
class SkyReelsV2Processor(WanProcessor):
    models = ("diffusers.SkyReelsV2Transformer3DModel",)
    processors = ("SkyReelsV2AttnProcessor", "SkyReelsV2AttnProcessor2_0")
    notes = "not with causal blocks (num_frame_per_block > 1)"

    @staticmethod
    def refusal(model: ForeignModule) -> str | None:
        frames = model.config.num_frame_per_block
        return f"num_frame_per_block={frames} masks video keys, causally" if frames > 1 else None

    @staticmethod
    def rotate(query: Tensor, key: Tensor, rotary_emb: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(rotary_emb, Tensor):
            return WanProcessor.rotate(query, key, rotary_emb)
        angles = rotary_emb.transpose(1, 2)  # of diffusers 0.35: complex numbers [1, 1, N, D / 2]

        def rotated(x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * angles).flatten(-2).type_as(x)

        return rotated(query), rotated(key)


@register
class AnyFlowProcessor(WanProcessor):
    models = ("diffusers.AnyFlowTransformer3DModel",)
    processors = ("AnyFlowAttnProcessor",)
    notes = "the bidirectional model; the latent is [B, T, C, H, W]"
    fuses = False

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        _, t, _, h, w = arguments["hidden_states"].shape
        return latent_grid((t, h, w), model.config.patch_size)

    @staticmethod
    def rotate(query: Tensor, key: Tensor, rotary_emb: Any) -> tuple[Tensor, Tensor]:
        from diffusers.models.transformers.transformer_anyflow import apply_rotary_emb

        pairs = ((query, rotary_emb["query"]), (key, rotary_emb["key"]))
        query, key = (apply_rotary_emb(x.transpose(1, 2), angles).transpose(1, 2) for x, angles in pairs)
        return query, key
