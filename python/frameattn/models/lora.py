"""LoRA (arXiv 2106.09685) of the linear layers around attention, by peft, in files as diffusers writes them.

A file has tensors ``transformer.NAME.lora_A.weight`` and ``lora_B`` for each layer NAME, and the configuration in its
metadata: what the ``load_lora_adapter`` of a diffusers model reads, too.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frameattn._optional import require
from frameattn.models.framedit import FrameDiT

FILE_NAME = "pytorch_lora_weights.safetensors"
_PREFIX = "transformer."
_METADATA = "lora_adapter_metadata"
_TARGETS_OF_FRAMEDIT = ("qkv", "attn.proj", "vanilla_attention.proj")
_TARGETS_OF_TEXT_TO_VIDEO = ("to_q", "to_k", "to_v", "to_out.0")  # as the official training


def add_lora(model: nn.Module, rank: int, alpha: float | None = None, targets: Iterable[str] | None = None) -> None:
    """Adds alpha / rank * B A x to y = W x + b in the layers called targets; A and B alone are trained.

    Args:
        rank: rows of A.
        alpha: rank, if None.
        targets: ends of the names of linear layers; those of the dense attentions, if None.

    Raises:
        ValueError: no layer is called so.
        MissingExtra: peft is not installed.
    """
    peft = require("peft", extra="lora")
    names = list(default_targets(model) if targets is None else targets)
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=names)
    peft.inject_adapter_in_model(config, model)


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """What add_lora adapts if it is not told."""
    return _TARGETS_OF_FRAMEDIT if isinstance(model, FrameDiT) else _TARGETS_OF_TEXT_TO_VIDEO


def is_lora(name: str) -> bool:
    """Whether a parameter is one of a LoRA."""
    return ".lora_" in name


def without_lora(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model that a LoRA was added to, by their names there."""
    return {name.replace(".base_layer.", "."): weight for name, weight in weights.items() if not is_lora(name)}


def save_lora(weights: Mapping[str, Tensor], path: Path, rank: int, alpha: float, targets: Iterable[str]) -> None:
    """Writes those of weights that are of a LoRA."""
    from safetensors.torch import save_file

    # peft has the name of the adapter, default, in the names of tensors.
    tensors = {
        _PREFIX + name.replace(".default.", "."): weight.contiguous()
        for name, weight in weights.items()
        if is_lora(name)
    }
    config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(targets), "peft_type": "LORA"}
    metadata = json.dumps({_PREFIX + key: value for key, value in config.items()})
    save_file(tensors, path, metadata={"format": "pt", _METADATA: metadata})


def load_lora(model: nn.Module, path: Path) -> None:
    """Adds the LoRA of a file, or of the folder that it is in, to the model.

    Raises:
        ValueError: the file is no LoRA, or one of another model; the message names the first tensor that does not fit.
        FileNotFoundError: no such file.
    """
    peft = require("peft", extra="lora")
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        weights = {name.removeprefix(_PREFIX): weight for name, weight in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    ranks = {weight.size(0) for name, weight in weights.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(f"{path} is no LoRA of one rank: it has {sorted(ranks) or 'no lora_A.weight'}")
    (rank,) = ranks
    layers = {name.partition(".lora_")[0] for name in weights}
    if strangers := sorted(layers - {name for name, _ in model.named_modules()}):
        raise ValueError(f"{path} is a LoRA of another model: there is no layer {strangers[0]}")
    add_lora(model, rank, metadata.get(f"{_PREFIX}lora_alpha"), layers)
    unsupported = [key for key in ("use_rslora", "use_dora", "alpha_pattern") if metadata.get(f"{_PREFIX}{key}")]
    if unsupported:
        raise ValueError(f"{path} has {unsupported[0]}, which is not supported here")
    expected = {name.replace(".default.", "."): p.shape for name, p in model.named_parameters() if is_lora(name)}
    for name, shape in expected.items():
        if name not in weights or weights[name].shape != shape:
            found = list(weights[name].shape) if name in weights else "missing"
            raise ValueError(f"{path} is a LoRA of another model: {name} is {found}, not {list(shape)}")
    if strangers := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{path} has {strangers[0]}, which is not supported here")
    peft.set_peft_model_state_dict(model, weights)
