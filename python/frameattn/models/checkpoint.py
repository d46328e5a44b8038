"""Checkpoints: safetensors of ours, which say what they are, and ``.pt`` files as the official code writes them.

A file of ours has one metadata entry, ``frameattn``, a JSON object: ``model`` (registered name), ``arguments``, and
what else the writer adds (training adds ``diffusion``, ``data``, ``fps`` of its clips, ``sampling``, ``step``).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from frameattn._errors import first_of
from frameattn._optional import require
from frameattn.models.framedit import FrameDiT
from frameattn.models.registry import create_model, is_text_to_video

if TYPE_CHECKING:
    from frameattn.models.text_to_video import FrameDiTHT2V

_METADATA = "frameattn"
# Parts that wrappers put into names: DistributedDataParallel, torch.compile, checkpoint_wrapper, FSDP.
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def save_checkpoint(
    weights: Mapping[str, Tensor], path: str | Path, *, name: str, arguments: dict[str, Any], **more: Any
) -> None:
    """Writes weights as safetensors with the model's registered name, its arguments and more JSON values."""
    require("safetensors")
    from safetensors.torch import save_file

    arguments = {k: v for k, v in arguments.items() if not k.startswith("_")}  # what diffusers notes in a config
    metadata = json.dumps({"model": name, "arguments": arguments, **more})
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={_METADATA: metadata})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What save_checkpoint was told beside the weights; empty for a file that frameattn did not write."""
    if Path(path).suffix != ".safetensors":
        return {}
    require("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def load_checkpoint(model: nn.Module, path: str | Path, weights: str = "auto", strict: bool = True) -> None:
    """Loads weights into model, in the model's dtype.

    Wrappers of either (DistributedDataParallel, torch.compile, activation checkpointing, FSDP) may be in its names.

    Args:
        path: ``.safetensors``, or a ``.pt`` that holds a state dict or, as official training writes it, a dict with
            ``model`` and ``ema``.
        weights: which of the two: ``ema``, ``model``, or ``auto``: ema if there is one.
        strict: with False, missing and unknown tensors are passed over; shapes must fit all the same.

    Raises:
        ValueError: the file cannot be read without running code in it, has not the weights asked for, or tensors are
            missing, unknown or of another shape; the message names them.
        FileNotFoundError: no such file.
    """
    _load(model, _read_weights(path, weights), path, strict)


def from_checkpoint(
    path: str | Path, name: str | None = None, weights: str = "auto", **overrides: Any
) -> "FrameDiT | FrameDiTHT2V":
    """The model of a checkpoint with its weights, in evaluation mode.

    Args:
        name: registered name of the model, for a file that does not say it (an official ``.pt``). Its sizes are then
            read off the tensors, of which labels do not tell whether the last is the null class: it is, unless
            overrides have ``class_dropout_prob=0.0``.
        overrides: further arguments of the model.

    Raises:
        ValueError: as load_checkpoint, or the file names no model and neither does the caller.
    """
    metadata, state = read_metadata(path), _read_weights(path, weights)
    name = name or metadata.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which model it is: give its name (frameattn.models.list_models())")
    arguments = metadata.get("arguments")
    if not arguments and is_text_to_video(name):
        arguments = _text_to_video_arguments_of(state)
    elif not arguments:
        arguments = _arguments_of(state, null_class=overrides.get("class_dropout_prob", 1) > 0)
    model = create_model(name, **{**arguments, **overrides})
    _load(model, state, path, strict=True)
    return model.eval()


def _read_weights(path: str | Path, weights: str) -> dict[str, Tensor]:
    if weights not in ("auto", "ema", "model"):
        raise ValueError(f"load_checkpoint: weights must be auto, ema or model, got {weights!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        read_metadata(path)  # a damaged file is reported with its name
        from safetensors.torch import load_file

        state: Mapping[str, Any] = load_file(path)
    else:
        state = _read_pickle(path)
        if any(isinstance(state.get(key), Mapping) for key in ("ema", "model")):
            key = weights if weights != "auto" else "ema" if isinstance(state.get("ema"), Mapping) else "model"
            if not isinstance(state.get(key), Mapping):
                raise ValueError(f"{path} holds no {key!r} weights, only {', '.join(map(str, state))}")
            # The average of a run of ours has the trained weights alone.
            frozen = state["model"] if key == "ema" and state[key] and isinstance(state.get("model"), Mapping) else {}
            state = {**_unwrapped_tensors(frozen, path), **_unwrapped_tensors(state[key], path)}
    tensors = _unwrapped_tensors(state, path)
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    return tensors


def _unwrapped_tensors(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and tensors.setdefault(_unwrapped(str(key)), value) is not value:
            raise ValueError(f"{path} holds {_unwrapped(str(key))} twice: within a wrapper, as {key}, and otherwise")
    return tensors


def _unwrapped(name: str) -> str:
    """The name of a weight in the model itself: ``blocks.0._orig_mod.attn.q`` is ``blocks.0.attn.q``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is no checkpoint or holds more than tensors and plain values, so that reading it "
            "could run code"
        ) from error
    except PermissionError:
        raise
    except Exception as error:  # torch.load meets a file cut short or of another kind with errors of ten types
        raise ValueError(f"{path} is not a checkpoint, or not the whole of one: {error}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], path: str | Path, strict: bool) -> None:
    own = model.state_dict()
    names = {_unwrapped(key): key for key in own}  # the model may be wrapped itself
    expected = {_unwrapped(key): tensor for key, tensor in own.items()}
    problems = []
    if strict:
        problems += [f"missing {key}" for key in expected if key not in state]
        problems += [f"unknown {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)}, the model has {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {first_of(problems)}")
    model.load_state_dict({names.get(key, key): tensor for key, tensor in state.items()}, strict=strict)


def _arguments_of(state: Mapping[str, Tensor], null_class: bool) -> dict[str, Any]:
    """The arguments of a FrameDiT that its name leaves open, as far as shapes tell them."""
    try:
        _, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        out_channels = len(state["final_layer.linear.bias"]) // patch_size**2
        arguments = {
            "input_size": round(state["pos_embed"].size(1) ** 0.5) * patch_size,
            "num_frames": state["temp_embed"].size(1),
            "in_channels": in_channels,
            "learn_sigma": out_channels == 2 * in_channels,
        }
    except KeyError:
        return {}  # loading will say what is missing
    if (table := state.get("y_embedder.embedding_table.weight")) is not None:
        arguments |= {"extras": 2, "num_classes": len(table) - null_class}
    elif "text_embedding_projection.1.weight" in state:
        arguments["extras"] = 78
    return arguments


def _text_to_video_arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Likewise of a FrameDiTHT2V. Nothing tells its heads and number of frames."""
    try:
        dim, in_channels, patch_size, _ = state["pos_embed.proj.weight"].shape
        arguments = {
            "in_channels": in_channels,
            "out_channels": len(state["proj_out.bias"]) // patch_size**2,
            "patch_size": patch_size,
            "num_layers": sum(key.endswith("attn2.to_q.weight") for key in state),
            "caption_channels": state["caption_projection.linear_1.weight"].size(1),
            "cross_attention_dim": dim,
        }
    except KeyError:
        return {}  # loading will say what is missing
    if (u := state.get("temporal_transformer_blocks.0.attn1.matrix_attention.linear_q.u")) is not None:
        arguments |= {"col_dim": len(u), "sample_size": round(len(u) ** 0.5) * patch_size}
    return arguments
