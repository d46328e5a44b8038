"""The names of FrameDiT's models: ``FrameDiT{G,H}[IMG]-SIZE/QK-V/PATCH[-softmax_u][-concat]``."""

import difflib
import inspect
import itertools
from typing import Any

from frameattn.models.framedit import FrameDiT, FrameDiTG, FrameDiTH

_SIZES = {
    "S": dict(depth=12, hidden_size=384, num_row_heads=6),
    "B": dict(depth=12, hidden_size=768, num_row_heads=12),
    "L": dict(depth=24, hidden_size=1024, num_row_heads=16),
    "XL": dict(depth=28, hidden_size=1152, num_row_heads=16),
}
_COL_DIMS = {"64-256": dict(qk_col_dim=64, v_col_dim=256), "128-512": dict(qk_col_dim=128, v_col_dim=512)}
_U_TYPES = {"": dict(), "-softmax_u": dict(u_type="softmax")}
_TEXT_TO_VIDEO = "FrameDiTHT2V-XL/256-2-1-2-concat"


def _build_registry() -> dict[str, tuple[type[FrameDiT], dict[str, Any]]]:
    registry: dict[str, tuple[type[FrameDiT], dict[str, Any]]] = {}
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
    registry["FusedMatLatteIMG-XL/128-512/2-concat"] = registry["FrameDiTHIMG-XL/128-512/2-concat"]  # its old name
    return registry


_REGISTRY = _build_registry()


def list_models() -> list[str]:
    """The names that create_model knows."""
    return [*_REGISTRY, _TEXT_TO_VIDEO]


def create_model(name: str, **overrides: Any) -> FrameDiT:
    """Builds a registered model with fresh weights.

    Args:
        name: one of list_models().
        overrides: arguments of the model's class that replace those of the name, or are not fixed by it.

    Raises:
        KeyError: unknown name; the message says the nearest.
        TypeError: unknown argument; likewise.
        ValueError: arguments do not fit together.
        NotImplementedError: the text-to-video model, which a later version brings.

    >>> create_model("FrameDiTG-S/64-256/2", input_size=32, num_frames=16, extras=2, num_classes=101).num_frames
    16
    """
    if name == _TEXT_TO_VIDEO:
        raise NotImplementedError(f"{name}: the text-to-video model comes in a later version of frameattn")
    if name not in _REGISTRY:
        raise KeyError(f"unknown model {name!r}: did you mean {_nearest(name, list_models())!r}?")
    kind, options = _REGISTRY[name]
    known = [k for k in inspect.signature(FrameDiT).parameters if not k.startswith("_")]
    if kind is FrameDiTH:
        known.append("fuse_mode")
    for key in overrides:
        if key not in known:
            raise TypeError(f"{kind.__name__} has no argument {key!r}: did you mean {_nearest(key, known)!r}?")
    return kind(**{**options, **overrides})


def _nearest(name: str, known: list[str]) -> str:
    """One that begins with name (four official configs leave out ``-concat``), or else the most similar."""
    begins = [one for one in known if one.startswith(name)]
    return begins[0] if begins else difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
