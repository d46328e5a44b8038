"""Tiny models of diffusers, and what each is expected to compute once VMonarch is in it.

A family joins all tests of test_models.py by an entry in CASES. The expectation is the model as diffusers has it, in
float64, with F.scaled_dot_product_attention replaced by frameattn.reference: how query, key and value are formed, what
is rotated, masked and projected is diffusers' own doing there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frameattn import reference
from oracle import randn

FRAMES, HEIGHT, WIDTH = 4, 3, 5  # tokens
BATCH = 2


@dataclass(frozen=True)
class Case:
    """A model and how it is called.

    model: its class in diffusers. arguments: of its constructor. inputs: of its forward, for so many token frames.
    text: where text is in the tokens of joint attention, "first" or "last"; None if it is in none.
    modules: how many modules are swapped. one_frame: whether it can be called with one frame.
    setup: is run on the model. name: for the test's id, where a class has several cases.
    """

    model: str
    arguments: dict[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    text: str | None = None
    modules: int = 2
    one_frame: bool = True
    name: str = ""
    setup: Callable[[nn.Module], None] = field(default=lambda model: None)

    def __str__(self) -> str:
        return self.name or self.model

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        diffusers = pytest.importorskip("diffusers")
        if not hasattr(diffusers, self.model):
            pytest.skip(f"diffusers {diffusers.__version__} has no {self.model}")
        model = getattr(diffusers, self.model)(**self.arguments)
        redraw(model)
        self.setup(model)
        return model.to(dtype).eval()

    def call(self, frames: int = FRAMES, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""
        inputs = {name: _cast(value, dtype) for name, value in self.inputs(frames).items()}
        return {**inputs, "return_dict": False}


def redraw(model: nn.Module) -> None:
    """All parameters random: fresh models hide faults behind factors of zero and attention that is flat."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight") and parameter.dim() == 1:
                is_of_attention = any(
                    part in name for part in ("norm_q", "norm_k", "query_norm", "key_norm", "norm_added")
                )
                parameter.copy_((1.6 if is_of_attention else 1.0) + 0.1 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)


def output(model: nn.Module, call: dict[str, Any]) -> Tensor:
    return model(**call)[0]


@contextmanager
def reference_attention(case: Case, frames: int = FRAMES, **options: Any) -> Iterator[list[int]]:
    """Replaces the video attention of untouched models by the reference. Yields a list that gets an entry a call."""
    dense, calls, video = F.scaled_dot_product_attention, [], frames * HEIGHT * WIDTH

    def attention(query, key, value, attn_mask=None, *args, **kwargs):
        text = query.size(2) - video
        if query.size(2) != key.size(2) or not (0 <= text <= 16 if case.text else text == 0):
            return dense(query, key, value, attn_mask, *args, **kwargs)
        calls.append(text)
        if not case.text:
            assert attn_mask is None
            return reference.vmonarch_attention(query, key, value, frames, **options)
        everything = dense(query, key, value, attn_mask, *args, **kwargs)
        order = [text, video] if case.text == "first" else [video, text]
        of_video = 1 if case.text == "first" else 0
        streams = [x.split(order, dim=2) for x in (query, key, value)]
        mask = None if attn_mask is None else attn_mask[:, :, :1].split(order, dim=3)[1 - of_video]
        rows = list(everything.split(order, dim=2))
        rows_of_video = joined(
            [x[of_video] for x in streams], [x[1 - of_video] for x in streams], mask, frames, options
        )
        first = video // frames
        rows[of_video] = torch.cat([rows[of_video][:, :, :first], rows_of_video[:, :, first:]], dim=2)
        return torch.cat(rows, dim=2)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield calls


def joined(video: list[Tensor], text: list[Tensor], mask: Tensor | None, frames: int, options: dict) -> Tensor:
    """o = w o_M + (1 - w) o_T with w = sigmoid(lse_M - lse_T), written as it is."""
    out, lse = reference.vmonarch_attention(*video, frames, dense_first_frame=False, return_lse=True, **options)
    logits = video[0] @ text[1].transpose(2, 3) / video[0].size(3) ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e30)  # finite, so that gradients are where no text is
    weight = torch.sigmoid(lse - torch.logsumexp(logits, dim=3)).unsqueeze(3)
    return weight * out + (1 - weight) * (torch.softmax(logits, dim=3) @ text[2])


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- The models ------------------------------------------------------------------------------------------------------

COMMON = dict(num_attention_heads=2, in_channels=4, out_channels=4, num_layers=2)
WAN = dict(**COMMON, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, rope_max_seq_len=32)
TEXT_MASK = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])  # the text of two samples has 4 and 6 tokens


def latent(frames: int, channels: int = 4) -> Tensor:
    """[B, C, T, H, W] for patches of 1 x 2 x 2."""
    return randn(BATCH, channels, frames, 2 * HEIGHT, 2 * WIDTH, seed=1)


def wan_inputs(frames: int) -> dict[str, Any]:
    timestep = torch.full((BATCH,), 500)
    return dict(hidden_states=latent(frames), timestep=timestep, encoder_hidden_states=randn(BATCH, 7, 16, seed=2))


def wan_image_inputs(frames: int) -> dict[str, Any]:
    return dict(
        hidden_states=latent(frames, 8),
        timestep=torch.full((BATCH,), 500),
        encoder_hidden_states=randn(BATCH, 512, 16, seed=2),
        encoder_hidden_states_image=randn(BATCH, 5, 8, seed=3),
    )


def wan_inputs_with_token_timesteps(frames: int) -> dict[str, Any]:
    timestep = torch.full((BATCH, frames * HEIGHT * WIDTH), 500)
    timestep[:, : HEIGHT * WIDTH] = 0
    return {**wan_inputs(frames), "timestep": timestep}


def wan_animate_inputs(frames: int) -> dict[str, Any]:
    face = randn(BATCH, 3, 4 * (frames - 1) - 3, 16, 16, seed=5)
    return {
        **wan_image_inputs(frames),
        "hidden_states": latent(frames, 12),
        "pose_hidden_states": latent(frames - 1),
        "face_pixel_values": face,
    }


def vace_inputs(frames: int) -> dict[str, Any]:
    return {**wan_inputs(frames), "control_hidden_states": latent(frames, 6)}


def anyflow_inputs(frames: int) -> dict[str, Any]:
    timestep = torch.full((BATCH, frames), 500)
    return {
        **wan_inputs(frames),
        "hidden_states": latent(frames).transpose(1, 2),
        "timestep": timestep,
        "r_timestep": timestep // 2,
    }


def ltx_inputs(frames: int) -> dict[str, Any]:
    return dict(
        hidden_states=randn(BATCH, frames * HEIGHT * WIDTH, 6, seed=1),
        encoder_hidden_states=randn(BATCH, 7, 16, seed=2),
        timestep=torch.full((BATCH,), 500),
        encoder_attention_mask=torch.ones(BATCH, 7),
        num_frames=frames,
        height=HEIGHT,
        width=WIDTH,
    )


def hunyuan_inputs(frames: int) -> dict[str, Any]:
    return dict(
        hidden_states=latent(frames),
        timestep=torch.full((BATCH,), 500),
        encoder_hidden_states=randn(BATCH, 6, 16, seed=2),
        encoder_attention_mask=TEXT_MASK,
        pooled_projections=randn(BATCH, 8, seed=3),
        guidance=torch.full((BATCH,), 6000.0),
    )


HUNYUAN = dict(
    **{**COMMON, "num_layers": 1},
    attention_head_dim=16,
    num_single_layers=1,
    num_refiner_layers=1,
    text_embed_dim=16,
    pooled_projection_dim=8,
    rope_axes_dim=(4, 6, 6),
)

WAN_IMAGE = dict(**{**WAN, "in_channels": 8}, image_dim=8, added_kv_proj_dim=24)
WAN_ANIMATE = dict(
    **{**WAN_IMAGE, "in_channels": 12},
    latent_channels=4,
    motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
    motion_encoder_size=16,
    motion_style_dim=8,
    motion_dim=4,
    motion_encoder_dim=8,
    face_encoder_hidden_dim=8,
    face_encoder_num_heads=2,
    inject_face_latents_blocks=1,
)
LTX = dict(
    **{**COMMON, "in_channels": 6, "out_channels": 6},
    attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=16,
)

WAN_CASE = Case("WanTransformer3DModel", WAN, wan_inputs)
HUNYUAN_CASE = Case("HunyuanVideoTransformer3DModel", HUNYUAN, hunyuan_inputs, text="last")

CASES = [
    WAN_CASE,
    Case("WanTransformer3DModel", WAN_IMAGE, wan_image_inputs, name="Wan-I2V"),
    Case("WanTransformer3DModel", WAN, wan_inputs_with_token_timesteps, name="Wan-TI2V"),
    Case("WanTransformer3DModel", WAN, wan_inputs, name="Wan-fused", setup=lambda model: model.fuse_qkv_projections()),
    Case("WanAnimateTransformer3DModel", WAN_ANIMATE, wan_animate_inputs, one_frame=False),
    Case("WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6}, vace_inputs, modules=4),
    Case("ChronoEditTransformer3DModel", WAN, wan_inputs),
    Case("SkyReelsV2Transformer3DModel", WAN, wan_inputs),
    Case("AnyFlowTransformer3DModel", WAN, anyflow_inputs),
    Case("LTXVideoTransformer3DModel", LTX, ltx_inputs),
    HUNYUAN_CASE,
    Case(
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "image_condition_type": "token_replace"},
        hunyuan_inputs,
        text="last",
        name="HunyuanVideo-I2V",
    ),
]
