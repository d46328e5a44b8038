"""From Latte's configuration and weights to those of FrameDiTHT2V, which has them all under nearly the same names."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frameattn._errors import first_of

if TYPE_CHECKING:
    from frameattn.models.text_to_video import FrameDiTHT2V

# What FrameDiTHT2V is made for and has no argument for.
_FIXED = {
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "dropout": 0.0,
}
OPTIONS = (  # of from_latte
    "num_col_attn_heads",
    "qk_col_attn_head_dim",
    "v_col_attn_head_dim",
    "use_bias",
    "bias_type",
    "u_type",
    "fuse_mode",
    "u_norm_eps_outside",
    "video_length",  # of which Latte has no weights
)
_ADDED = "attn1."  # in a temporal block: all of it but the attention that was there
_KEPT = "attn1.attention."


def is_added_to_latte(name: str) -> bool:
    """Whether a parameter of FrameDiTHT2V is of its matrix branch, or of what fuses that."""
    return name.startswith("temporal_transformer_blocks.") and f".{_ADDED}" in name and f".{_KEPT}" not in name


def latte_arguments(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of FrameDiTHT2V for the configuration of a Latte.

    Raises:
        ValueError: the configuration is not of such a Latte; the message names all that is not.
        TypeError: an option that is none of OPTIONS.
    """
    for option in options:
        if option not in OPTIONS:
            raise TypeError(f"from_latte has no option {option!r}; there are {', '.join(OPTIONS)}")
    problems = [
        f"{key} is {config.get(key)!r}, not {value!r}" for key, value in _FIXED.items() if config.get(key) != value
    ]
    problems += [
        f"{key} is {config.get(key)!r}, not a whole number"
        for key in ("sample_size", "patch_size", "in_channels", "caption_channels", "num_layers", "video_length")
        if not isinstance(config.get(key), int)
    ]
    if not problems and config["sample_size"] % config["patch_size"]:
        problems.append(f"patch_size {config['patch_size']} does not divide sample_size {config['sample_size']}")
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    if config.get("cross_attention_dim") != dim:
        problems.append(f"cross_attention_dim is {config.get('cross_attention_dim')}, not the {dim} channels")
    if problems:
        raise ValueError(f"FrameDiTHT2V cannot be made from this Latte: {'; '.join(problems)}")
    tokens = (config["sample_size"] // config["patch_size"]) ** 2
    kept = ("in_channels", "num_layers", "sample_size", "patch_size", "caption_channels", "cross_attention_dim")
    return {
        **{key: config[key] for key in (*kept, "attention_bias", "norm_eps", "video_length")},
        "out_channels": config["out_channels"] or config["in_channels"],
        "num_row_attn_heads": config["num_attention_heads"],
        "row_attn_head_dim": config["attention_head_dim"],
        "col_dim": tokens,
        "num_col_attn_heads": max(1, tokens // 2),  # 512 of 1024, as in the registered model
        **options,
    }


@torch.no_grad()
def copy_latte(latte: Mapping[str, Tensor], model: "FrameDiTHT2V") -> None:
    """Copies the weights of a Latte into the model.

    Raises:
        ValueError: weights are missing, unknown or of another shape; the message names them.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not is_added_to_latte(k)}
    given = {_renamed(name): weight for name, weight in latte.items()}
    if model.config.fuse_mode == "global":  # has no temporal attention of its own
        given = {name: weight for name, weight in given.items() if f".{_KEPT}" not in name}
    problems = [f"missing {_name_in_latte(name)}" for name in wanted if name not in given]
    problems += [f"unknown {_name_in_latte(name)}" for name in given if name not in wanted]
    problems += [
        f"{_name_in_latte(name)} is {list(given[name].shape)}, not {list(weight.shape)}"
        for name, weight in wanted.items()
        if name in given and given[name].shape != weight.shape
    ]
    refuse(problems, of="this Latte")
    for name, weight in wanted.items():
        weight.copy_(given[name])


def refuse(problems: list[str], of: str) -> None:
    """Raises ValueError with the first five problems of a Latte's weights, if there are any."""
    if problems:
        raise ValueError(f"the weights of {of} do not fit FrameDiTHT2V: {first_of(problems)}")


def _renamed(name: str) -> str:
    return name.replace("attn1.", _KEPT) if name.startswith("temporal_transformer_blocks.") else name


def _name_in_latte(name: str) -> str:
    return name.replace(_KEPT, "attn1.")
