"""Exports models that call frameattn's operators as AOTInductor packages, which run in Python and in C++.

Two small models of random weights: a FrameDiT-H for any batch and number of frames, and a block of Wan with VMonarch
attention in it (needs diffusers), for any number of frames, height and width. Each is exported, compiled, loaded and
compared with eager torch at the sizes it was exported with and at two others. Beside NAME.pt2 comes NAME.cases.pt,
inputs and outputs for the C++ half: examples/cpp/run_package.cpp, docs/cpp.md.

    python examples/export_aoti.py
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

import frameattn
from frameattn.models import FrameDiTH

TOLERANCE = 1e-5  # of float32, relative to the largest element of the output


class Model(NamedTuple):
    """A model to export: it is exported at the first of the sizes, and compared at all.

    dynamic: what torch.export is to leave open, for each input. inputs: of the model, for one of the sizes.
    """

    module: nn.Module
    dynamic: Sequence[dict[int, Any] | None]
    inputs: Callable[..., tuple[Tensor, ...]]
    sizes: Sequence[tuple[int, ...]]


def randomise(module: nn.Module) -> nn.Module:
    """New models are the identity in many places, which would hide errors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) + (parameter == 1))
    return module.eval()


# ---- FrameDiT-H ------------------------------------------------------------------------------------------------------


class AnyFrames(nn.Module):
    """A FrameDiT for clips of as many frames as come; by itself it insists on its ``num_frames``."""

    def __init__(self, model: FrameDiTH):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.model.num_frames = x.size(1)
        return self.model(x, t, y)


def framedit() -> Model:
    """Clips [B, T, 4, 20, 20], diffusion steps [B], classes [B] -> [B, T, 8, 20, 20].

    Height and width are fixed by the weights: U of MatrixLinear has a row for each of the 10 x 10 tokens of a frame.
    Frames are open because there are more than 64 tokens: SpatialAttention takes shorter frames as heads of
    matrix_attention, and a number of heads is a constant of the exported program. Most frames: the position embedding.
    """
    model = FrameDiTH(
        input_size=20,
        hidden_size=32,
        qk_col_dim=8,
        v_col_dim=8,
        depth=2,
        num_col_heads=2,
        num_row_heads=2,
        num_frames=16,
        num_classes=10,
        extras=2,
    )
    batch, frames = Dim("batch", min=1, max=64), Dim("frames", min=1, max=16)

    def inputs(batch: int, frames: int) -> tuple[Tensor, ...]:
        clips = torch.randn(batch, frames, 4, 20, 20)
        return clips, torch.randint(1000, (batch,)), torch.randint(10, (batch,))

    dynamic = ({0: batch, 1: frames}, {0: batch}, {0: batch})
    return Model(AnyFrames(randomise(model)), dynamic, inputs, sizes=[(2, 4), (3, 7), (1, 16)])


# ---- A block of Wan --------------------------------------------------------------------------------------------------


def wan_block() -> Model:
    """Tokens [B, T, H, W, D], text [B, L, D], modulation [B, 6, D] -> [B, T, H, W, D].

    Tokens come as a grid, so that its sizes are dimensions with names, and N = T H W follows from them. Batch and text
    are fixed, as a pipeline has them. A whole Wan exports in the same way, with Dim.AUTO for T, H and W of its latent.
    """
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock

    from frameattn.adapters.diffusers.wan import WanProcessor

    class Block(nn.Module):
        def __init__(self, dim: int, heads: int, longest: int):
            super().__init__()
            self.rope = WanRotaryPosEmbed(dim // heads, (1, 1, 1), longest)
            self.block = WanTransformerBlock(dim, 2 * dim, heads, cross_attn_norm=True)

        def forward(self, tokens: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
            rotary = self.rope(tokens.movedim(4, 1))
            return self.block(tokens.flatten(1, 3), text, modulation, rotary).view(tokens.shape)

    @frameattn.adapters.register  # where the attention of this module is, and where a call of it has its grid
    class BlockProcessor(WanProcessor):
        models = (Block,)
        modules = r"block\.attn1"

        @staticmethod
        def grid(model: nn.Module, arguments: dict[str, Any]) -> tuple[int, ...]:
            return tuple(arguments["tokens"].shape[1:4])

    dim, longest = 24, 64
    block = randomise(Block(dim, heads=2, longest=longest))
    frameattn.adapters.apply(block)
    t, h, w = (Dim(name, min=1, max=longest) for name in ("t", "h", "w"))

    def inputs(t: int, h: int, w: int) -> tuple[Tensor, ...]:
        return torch.randn(2, t, h, w, dim), torch.randn(2, 7, dim), torch.randn(2, 6, dim)

    return Model(block, ({1: t, 2: h, 3: w}, None, None), inputs, sizes=[(3, 4, 5), (5, 6, 4), (1, 7, 3)])


# ---- Export, compile, load, compare ----------------------------------------------------------------------------------

MODELS = {"framedit": framedit, "wan_block": wan_block}


def export(name: str, folder: Path) -> None:
    model = MODELS[name]()
    cases = [(size, model.inputs(*size)) for size in model.sizes]
    with torch.no_grad():
        program = torch.export.export(model.module, cases[0][1], dynamic_shapes=model.dynamic)
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / f"{name}.pt2"),
            inductor_configs={
                # Else the package has the number of threads of this process, and with one of them runs on one for ever.
                "cpp.dynamic_threads": True,
                # What torch.export calls open begins at 2. One clip, one frame are right, too, as is seen below; with
                # AOTI_RUNTIME_CHECK_INPUTS=1 they would be refused.
                "aot_inductor.check_lowerbound": False,
            },
        )
        targets = {str(node.target) for node in program.graph.nodes}
        operators = sorted(target.split(".")[1] for target in targets if target.startswith("frameattn."))
        print(f"{name}: {Path(path).stat().st_size / 1024:.0f} KiB, calls {', '.join(operators)}")

        package = torch._inductor.aoti_load_package(path)
        saved = []
        for size, inputs in cases:
            expected, output = model.module(*inputs), package(*inputs)
            error = ((output - expected).abs().max() / expected.abs().max()).item()
            print(f"{name} {size}: largest error {error:.1e} of the largest element")
            if not error <= TOLERANCE:
                raise SystemExit(f"{name}: the package differs from eager torch by more than {TOLERANCE}")
            saved.append((expected, *inputs))
    torch.save(saved, folder / f"{name}.cases.pt")  # tensors in tuples in a list: torch::pickle_load reads that


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/packages"), help="folder of the packages")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        torch.manual_seed(0)
        if name == "wan_block" and importlib.util.find_spec("diffusers") is None:
            print("wan_block: left out, for diffusers is not installed")
        else:
            export(name, options.out)


if __name__ == "__main__":
    main()
