"""CogVideoX 1.0 and 1.5, and ConsisID: text ahead of the video, and every projection is of both."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.attention import Streams
from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.context_parallel import cut, gathered
from frameattn.adapters.joint import JointProcessor
from frameattn.adapters.projections import latent_grid, project_heads, project_out
from frameattn.adapters.registry import register


@register
class CogVideoXProcessor(JointProcessor):
    models = ("diffusers.CogVideoXTransformer3DModel", "diffusers.ConsisIDTransformer3DModel")
    modules = r"transformer_blocks\.\d+\.attn1"
    processors = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")
    notes = "the latent is [B, T, C, H, W]; apply() after fuse_qkv_projections(), which replaces processors"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        _, t, _, h, w = arguments["hidden_states"].shape
        patch, patch_t = model.config.patch_size, getattr(model.config, "patch_size_t", None)
        return latent_grid((t, h, w), (patch_t or 1, patch, patch))

    @staticmethod
    def parallel_plan(model: ForeignModule) -> dict[str, Any] | None:
        if type(model).__name__ != "CogVideoXTransformer3DModel":
            return None  # ConsisID looks at faces between its blocks
        return {
            "transformer_blocks.0": {"hidden_states": cut(1, 3)},
            "transformer_blocks.*": {"image_rotary_emb": [cut(0, 2), cut(0, 2)]},
            "proj_out": gathered(1, 3),
        }

    def project(self, attn: ForeignModule, video: Tensor, text: Tensor) -> tuple[Streams, Streams]:
        # What unfuse_qkv_projections() puts back are processors; the modules still say that they are fused.
        fused = type(self.original).__name__.startswith("Fused")
        return project_heads(attn, video, fused), project_heads(attn, text, fused)

    def project_out(self, attn: ForeignModule, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return project_out(attn, video), project_out(attn, text)
