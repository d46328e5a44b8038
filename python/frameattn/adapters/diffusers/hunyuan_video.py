"""HunyuanVideo, and HunyuanVideo 1.5, which has two-stream blocks alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.joint import JointProcessor
from frameattn.adapters.projections import key_mask, latent_grid
from frameattn.adapters.registry import register


@register
class HunyuanVideoProcessor(JointProcessor):
    models = ("diffusers.HunyuanVideoTransformer3DModel",)
    modules = r"(single_)?transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideoAttnProcessor2_0",)
    notes = "text to video and image to video; the mask over text is applied"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        patch = model.config.patch_size
        return latent_grid(arguments["hidden_states"].shape[2:], (model.config.patch_size_t, patch, patch))

    @staticmethod
    def text_mask(attention_mask: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | None]:
        return key_mask(attention_mask, tokens)  # video, then text


@register
class HunyuanVideo15Processor(HunyuanVideoProcessor):
    models = ("diffusers.HunyuanVideo15Transformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideo15AttnProcessor2_0",)
    notes = "text to video and image to video; the mask over text and image tokens is applied"

    @staticmethod
    def text_mask(attention_mask: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """[B, L] as it comes. The original makes it N x N, to leave rows of padding without keys; nothing reads them,
        so that they may as well have some."""
        return (None if attention_mask is None else attention_mask.bool()), None
