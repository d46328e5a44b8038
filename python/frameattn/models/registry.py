"""The names of the models: ``FrameDiT{G,H}[IMG]-SIZE/QK-V/PATCH[-softmax_u][-concat]``, text to video, VideoDiT."""

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from frameattn._optional import require
from frameattn.models.framedit import FrameDiT, FrameDiTG, FrameDiTH
from frameattn.models.video_dit import VideoDiT

if TYPE_CHECKING:
    from frameattn.models.text_to_video import FrameDiTHT2V

_SIZES = {
    "S": dict(depth=12, hidden_size=384, num_row_heads=6),
    "B": dict(depth=12, hidden_size=768, num_row_heads=12),
    "L": dict(depth=24, hidden_size=1024, num_row_heads=16),
    "XL": dict(depth=28, hidden_size=1152, num_row_heads=16),
}
_COL_DIMS = {"64-256": dict(qk_col_dim=64, v_col_dim=256), "128-512": dict(qk_col_dim=128, v_col_dim=512)}
_U_TYPES = {"": dict(), "-softmax_u": dict(u_type="softmax")}
_TEXT_TO_VIDEO = "FrameDiTHT2V-XL/256-2-1-2-concat"  # has the arguments that the class starts from


def _build_registry() -> dict[str, tuple[Callable[..., FrameDiT], dict[str, Any]]]:
    registry: dict[str, tuple[Callable[..., FrameDiT], dict[str, Any]]] = {}
    # Image joint training (IMG) is an argument of forward, so these names build the same classes.
    for family, images in itertools.product("GH", ("", "IMG")):
        for (size, of_size), (dims, of_dims), (u, of_u) in itertools.product(
            _SIZES.items(), _COL_DIMS.items(), _U_TYPES.items()
        ):
            options = dict(patch_size=2, num_col_heads=64, **of_size, **of_dims, **of_u)
            name = f"FrameDiT{family}{images}-{size}/{dims}/2{u}"
            if family == "G":
                registry[name] = FrameDiTG, options
            else:
                registry[f"{name}-concat"] = FrameDiTH, {**options, "fuse_mode": "concat"}
    for size, of_size in _SIZES.items():
        heads = of_size["num_row_heads"]
        options = dict(patch_size=2, num_heads=heads, **{k: v for k, v in of_size.items() if k != "num_row_heads"})
        registry[f"VideoDiT-{size}/2"] = VideoDiT, options
    registry["FusedMatLatteIMG-XL/128-512/2-concat"] = registry["FrameDiTHIMG-XL/128-512/2-concat"]  # its old name
    return registry


_REGISTRY = _build_registry()


def list_models() -> list[str]:
    """The names that create_model knows."""
    return [*_REGISTRY, _TEXT_TO_VIDEO]


def create_model(name: str, **overrides: Any) -> "FrameDiT | FrameDiTHT2V":
    """Builds a registered model with fresh weights.

    Args:
        name: one of list_models().
        overrides: arguments of the model's class that replace those of the name, or are not fixed by it.

    Raises:
        KeyError: unknown name; the message says the nearest.
        TypeError: unknown argument; likewise.
        ValueError: arguments do not fit together.
        MissingExtra: the text-to-video model needs diffusers.

    Examples:
        >>> create_model("FrameDiTG-S/64-256/2", input_size=32, num_frames=16, extras=2, num_classes=101).num_frames
        16
    """
    if name not in list_models():
        raise KeyError(f"unknown model {name!r}: did you mean {_nearest(name, list_models())!r}?")
    check_arguments(name, overrides)
    if is_text_to_video(name):
        return text_to_video_class()(**overrides)
    kind, options = _REGISTRY[name]
    return kind(**{**options, **overrides})


def check_arguments(name: str, arguments: Iterable[str]) -> None:
    """Raises TypeError where the model called name does not have one of arguments; the message says the nearest."""
    if is_text_to_video(name):
        known = [k for k in inspect.signature(text_to_video_class().__init__).parameters if k != "self"]
    else:
        kind = _REGISTRY[name][0]
        known = [k for k in inspect.signature(VideoDiT if kind is VideoDiT else FrameDiT).parameters if k[0] != "_"]
        known += ["fuse_mode"] if kind is FrameDiTH else []
    for key in arguments:
        if key not in known:
            raise TypeError(f"{name.split('-')[0]} has no argument {key!r}: did you mean {_nearest(key, known)!r}?")


def is_text_to_video(name: str) -> bool:
    """Whether the model called name is FrameDiTHT2V; others are FrameDiT."""
    return name == _TEXT_TO_VIDEO


def text_to_video_class() -> "type[FrameDiTHT2V]":
    """FrameDiTHT2V, whose import needs diffusers.

    Raises:
        MissingExtra: it is not installed.
    """
    require("diffusers")
    from frameattn.models.text_to_video import FrameDiTHT2V

    return FrameDiTHT2V


def _nearest(name: str, known: list[str]) -> str:
    """One that begins with name (four official configs leave out ``-concat``), or else the most similar."""
    begins = [one for one in known if one.startswith(name)]
    return begins[0] if begins else difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
