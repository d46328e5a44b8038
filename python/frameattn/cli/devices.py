"""Which device a command runs on."""

import torch

from frameattn._errors import UsageError


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one and if frameattn was built with CUDA, else the CPU."""
    import frameattn

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and frameattn.cuda_devices() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"device must be auto, cpu or cuda, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}: torch {torch.__version__} sees no GPU; use --device cpu")
    return torch.device(name)
