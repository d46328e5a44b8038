"""HunyuanVideo, and HunyuanVideo 1.5, which has two-stream blocks alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.context_parallel import cut, gathered
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
    def text_mask(attention_mask: Tensor | None, text_tokens: int) -> tuple[Tensor | None, Tensor | None]:
        video = 0 if attention_mask is None else attention_mask.size(-1) - text_tokens
        return key_mask(attention_mask, video)  # video, then text

    @staticmethod
    def parallel_plan(model: ForeignModule) -> dict[str, Any] | None:
        if getattr(model.config, "image_condition_type", None) == "token_replace":
            return None  # its blocks tell the first tokens that they get from the others
        return {
            "rope": {0: cut(0, 2, of_output=True), 1: cut(0, 2, of_output=True)},
            "transformer_blocks.0": {"hidden_states": cut(1, 3)},
            "proj_out": gathered(1, 3),
        }


@register
class HunyuanVideo15Processor(HunyuanVideoProcessor):
    models = ("diffusers.HunyuanVideo15Transformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideo15AttnProcessor2_0",)
    notes = "text to video and image to video; the mask over text and image tokens is applied"

    @staticmethod
    def text_mask(attention_mask: Tensor | None, text_tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """[B, L] as it comes. The original makes it N x N, to leave rows of padding without keys; nothing reads them,
        so that they may as well have some."""
        return (None if attention_mask is None else attention_mask.bool()), None
