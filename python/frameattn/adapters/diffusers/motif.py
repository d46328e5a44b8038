"""Motif-Video: its blocks attend as those of HunyuanVideo; its last ones may be a decoder, which attends to no text."""

from frameattn.adapters.call import ForeignModule
from frameattn.adapters.diffusers.hunyuan_video import HunyuanVideoProcessor
from frameattn.adapters.registry import register


@register
class MotifVideoProcessor(HunyuanVideoProcessor):
    models = ("diffusers.MotifVideoTransformer3DModel",)
    processors = ("MotifVideoAttnProcessor2_0",)
    notes = "not the blocks of the decoder (num_decoder_layers); the mask over text is applied"

    @staticmethod
    def parallel_plan(model: ForeignModule) -> None:
        return None  # a decoder would have to attend over processes, too

    @staticmethod
    def module_refusal(model: ForeignModule, name: str) -> str | None:
        stack, number = name.split(".")[:2]
        encoder = model.config.num_single_layers - model.config.num_decoder_layers
        in_decoder = stack == "single_transformer_blocks" and int(number) >= encoder
        return "a decoder attends to the encoder's video tokens beside its own" if in_decoder else None
