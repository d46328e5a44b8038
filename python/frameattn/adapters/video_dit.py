"""Our own VideoDiT, full attention over the tokens of a clip."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from frameattn.adapters.call import ForeignModule, Grid
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.registry import register


@register
class VideoDiTProcessor(VMonarchProcessor):
    models: ClassVar[tuple[str | type, ...]] = ("frameattn.VideoDiT",)
    modules = r"blocks\.\d+\.attn"
    processors: ClassVar[tuple[str, ...]] = ("DenseProcessor",)
    notes = "still images stay dense, which for one frame is the same"

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid:
        side = model.config["input_size"] // model.config["patch_size"]
        return max(1, model.num_frames), side, side

    def __call__(self, attn: ForeignModule, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        frames, tokens = x.shape[1:3]
        if frames == 1 or not self.swaps(frames * tokens):
            return self.original(attn, x, cos, sin)
        return attn.proj(self.attend(*attn.project(x, cos, sin))).view(x.shape)
