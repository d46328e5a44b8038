"""EasyAnimate: text ahead of the video, two-stream blocks ahead of single-stream ones, no mask."""

from collections.abc import Mapping
from typing import Any

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.joint import JointProcessor
from frameattn.adapters.projections import latent_grid
from frameattn.adapters.registry import register


@register
class EasyAnimateProcessor(JointProcessor):
    models = ("diffusers.EasyAnimateTransformer3DModel",)
    modules = r"transformer_blocks\.\d+\.attn1"
    processors = ("EasyAnimateAttnProcessor2_0",)
    notes = "also for inpainting and with control"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        patch = model.config.patch_size
        return latent_grid(arguments["hidden_states"].shape[2:], (1, patch, patch))
