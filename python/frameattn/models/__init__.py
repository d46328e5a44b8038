"""FrameDiT-G and -H (arXiv 2603.09721), their registered names, and checkpoints of ours and of the official code."""

from frameattn.models.checkpoint import from_checkpoint, load_checkpoint, read_metadata, save_checkpoint
from frameattn.models.framedit import FrameDiTG, FrameDiTH
from frameattn.models.registry import create_model, list_models

__all__ = [
    "FrameDiTG",
    "FrameDiTH",
    "create_model",
    "from_checkpoint",
    "list_models",
    "load_checkpoint",
    "read_metadata",
    "save_checkpoint",
]
