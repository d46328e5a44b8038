"""FrameDiT-G, -H and -H T2V (arXiv 2603.09721), VideoDiT with full attention, their names, and checkpoints of ours
and of the official code.

FrameDiTHT2V is a model of diffusers, which is imported when the class is asked for.
"""

from typing import TYPE_CHECKING, Any

from frameattn.models.checkpoint import from_checkpoint, load_checkpoint, read_metadata, save_checkpoint
from frameattn.models.framedit import FrameDiTG, FrameDiTH
from frameattn.models.registry import create_model, list_models, text_to_video_class
from frameattn.models.video_dit import VideoDiT

if TYPE_CHECKING:
    from frameattn.models.text_to_video import FrameDiTHT2V

__all__ = [
    "FrameDiTG",
    "FrameDiTH",
    "FrameDiTHT2V",
    "VideoDiT",
    "create_model",
    "from_checkpoint",
    "list_models",
    "load_checkpoint",
    "read_metadata",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "FrameDiTHT2V":
        return text_to_video_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
