"""What the stage `operators` looks at: operators, sizes, options and layouts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import formulas
from frameattn import functional

OPERATORS: dict[str, Callable] = {
    "matrix_linear": functional.matrix_linear,
    "matrix_attention": functional.matrix_attention,
    "spatial_step": torch.ops.frameattn.spatial_step,
    "temporal_update": torch.ops.frameattn.temporal_update,
    "temporal_output": torch.ops.frameattn.temporal_output,
    "vmonarch_attention": functional.vmonarch_attention,
    "modulated_layer_norm": functional.modulated_layer_norm,
    "gated_add": functional.gated_add,
}
Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Check:
    operation: str
    sizes: Sizes  # of the tensors, by their parameters
    options: dict[str, Any] = field(default_factory=dict)
    strided: bool = False  # dimensions 1 and 2 in the other order in memory, as in [B, N, H, D]
    compiled: bool = False
    dtype: str = "float64"

    def __str__(self) -> str:
        words = [f"{name}={'x'.join(map(str, size))}" for name, size in self.sizes.items()]
        words += [f"{name}={value}" for name, value in self.options.items()]
        words += [word for word in ("strided", "compiled") if getattr(self, word)]
        return " ".join([self.operation, self.dtype, *words])

    @property
    def elements(self) -> int:
        return sum(math.prod(size) for size in self.sizes.values())

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The same numbers on every device."""
        source = torch.Generator().manual_seed(0)
        return {name: self.draw(name, size, source).to(device) for name, size in self.sizes.items()}

    def draw(self, name: str, size: tuple[int, ...], source: torch.Generator) -> Tensor:
        if name.endswith("mask"):  # two of three keys take part
            return torch.arange(math.prod(size)).view(size) % 3 != 1
        swapped = self.strided and len(size) > 2
        x = torch.randn((size[0], size[2], size[1], *size[3:]) if swapped else size, generator=source)
        # Logits and products have a standard deviation of one: a softmax that is neither flat nor one-hot.
        x *= {"weighted_key": size[-1] ** -0.5, "u": size[0] ** -0.5, "w": size[0] ** -0.5}.get(name, 1)
        dtype = getattr(torch, self.dtype)
        x = x.to(torch.promote_types(dtype, torch.float32) if name == "entropy" else dtype)
        return x.transpose(1, 2) if swapped else x

    def operator(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        results = OPERATORS[self.operation](**tensors, **self.options)
        results = results if isinstance(results, tuple) else (results,)
        return [x for x in results if x.dim() > 1]  # what is not wanted is an empty vector

    def formula(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return getattr(formulas, self.operation)(**tensors, **self.options)


def rows(tokens: int, dim: int, value_dim: int | None = None, names: str = "query key value") -> Sizes:
    """Of 2 clips with 3 heads."""
    widths = {"entropy": (), "value": (value_dim or dim,)}
    return {name: (2, 3, tokens, *widths.get(name, (dim,))) for name in names.split()}


def step(tokens: int, dim: int, value_dim: int | None = None) -> Sizes:
    return rows(tokens, dim, value_dim, "query weighted_key entropy" + " value" * bool(value_dim))


def extra(keys: int, dim: int, value_dim: int) -> Sizes:
    return {"extra_key": (2, 3, keys, dim), "extra_value": (2, 3, keys, value_dim)}


def matrices(clips: int, frames: int, rows: int, value_rows: int, dim: int) -> Sizes:
    return {n: (clips, frames, r, dim) for n, r in (("query", rows), ("key", rows), ("value", value_rows))}


def norm(*sizes: int, of_frames: bool = False) -> Sizes:
    of_modulation = (*sizes[: 1 + of_frames], sizes[-1])
    return {"x": sizes, "shift": of_modulation, "scale": of_modulation}


def gate(*sizes: int, of_frames: bool = False) -> Sizes:
    return {"x": sizes, "gate": (*sizes[: 1 + of_frames], sizes[-1]), "y": sizes}


CHECKS = (  # the first of each operator is a small one
    Check("matrix_linear", {"x": (2, 5, 33, 40), "u": (33, 17), "w": (40, 24), "bias": (17, 24)}),
    Check("matrix_linear", {"x": (2, 5, 33, 40), "w": (40, 72), "bias": (1, 72)}, {"u": None}, strided=True),
    Check("matrix_attention", matrices(2, 17, 6, 9, 40), {"row_heads": 2, "col_heads": 3, "scale": 0.3}, strided=True),
    Check("matrix_attention", matrices(2, 1, 4, 8, 16), {"row_heads": 2, "col_heads": 2}),
    Check("matrix_attention", matrices(1, 130, 2, 4, 24), {"row_heads": 1, "col_heads": 2}),
    Check("matrix_attention", matrices(2, 7, 4, 8, 48), {"row_heads": 3, "col_heads": 2}, compiled=True),
    Check("matrix_attention", matrices(1, 16, 512, 1024, 1152), {"row_heads": 16, "col_heads": 512}),  # T2V
    Check(
        "spatial_step",
        rows(3 * 37, 64, names="query") | rows(3 * 41, 64, 40, "key value") | {"key_mask": (2, 3 * 41)},
        {"frames": 3, "scale": 0.125, "weigh_keys": True},
    ),
    Check(
        "spatial_step",
        rows(5 * 67, 72, names="query key"),
        {"value": None, "frames": 5, "scale": 0.12, "weigh_keys": True},
        strided=True,
    ),
    Check("spatial_step", rows(1, 16, 24), {"frames": 1, "scale": 0.25, "weigh_keys": True}),
    Check(  # few queries of many keys, which are split
        "spatial_step",
        rows(5, 64, names="query") | rows(1100, 64, 128, "key value") | {"key_mask": (2, 1100)},
        {"frames": 1, "scale": 0.125, "weigh_keys": False},
    ),
    Check("temporal_output", step(17 * 3, 40, 24), {"frames": 17}, strided=True),
    Check("temporal_output", step(16 * 5, 72, 72), {"frames": 16}),
    Check("temporal_output", step(130 * 2, 16, 8), {"frames": 130}),
    Check("temporal_update", step(17 * 3, 40), {"frames": 17, "mass_floor": 1.0}, strided=True),
    Check("temporal_update", step(4, 72), {"frames": 1, "mass_floor": 0.1}),
    Check("temporal_update", step(130 * 2, 16), {"frames": 130, "mass_floor": 0.1}),
    Check("vmonarch_attention", rows(7 * 37, 64), {"frames": 7}),
    Check("vmonarch_attention", rows(4 * 33, 40, 24), {"frames": 4, "iterations": 1, "scale": 0.2, "return_lse": True}),
    Check(
        "vmonarch_attention",
        rows(5 * 19, 72, 72),
        {"frames": 5, "iterations": 3, "dense_first_frame": False, "entropy_gradient": False, "return_lse": True},
        strided=True,
    ),
    Check(
        "vmonarch_attention", rows(5 * 19, 32), {"frames": 5, "iterations": 3, "mass_floor": 0.9, "return_lse": True}
    ),
    Check("vmonarch_attention", rows(3 * 40, 64, 40) | extra(70, 64, 40), {"frames": 3, "entropy_gradient": False}),
    Check(
        "vmonarch_attention",
        rows(4 * 33, 40, 24) | extra(9, 40, 24) | {"extra_mask": (2, 9)},
        {"frames": 4, "iterations": 3, "dense_first_frame": False, "return_lse": True},
        compiled=True,
    ),
    Check("vmonarch_attention", rows(70, 64, 72), {"frames": 1, "return_lse": True}),
    Check("vmonarch_attention", rows(1, 16), {"frames": 1, "dense_first_frame": False, "return_lse": True}),
    Check("vmonarch_attention", rows(130 * 3, 16, 24), {"frames": 130, "dense_first_frame": False}),
    Check(
        "vmonarch_attention",
        dict.fromkeys(("query", "key", "value"), (1, 1, 16 * 28 * 52, 128)),
        {"frames": 16, "return_lse": True},
    ),
    Check("modulated_layer_norm", norm(2, 3, 37, 72)),
    Check("modulated_layer_norm", norm(2, 5, 19, 1152, of_frames=True), {"eps": 1e-3}, strided=True),
    Check("modulated_layer_norm", norm(1, 2, 33, 1157), compiled=True),
    Check("modulated_layer_norm", norm(2, 1, 40, 5120)),
    Check("modulated_layer_norm", norm(2, 16, 256, 1152)),
    Check("gated_add", gate(2, 3, 37, 72)),
    Check("gated_add", gate(2, 5, 19, 1152, of_frames=True), strided=True),
    Check("gated_add", gate(1, 2, 33, 1157), compiled=True),
    Check("gated_add", gate(2, 1, 40, 5120)),
    Check("gated_add", gate(2, 16, 256, 1152)),
)
