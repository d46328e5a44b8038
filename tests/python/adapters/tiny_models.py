"""Tiny models of diffusers, and what each is expected to compute once VMonarch is in it.

A family joins all tests of test_models.py by an entry in CASES. The expectation is the model as diffusers has it, in
float64, with F.scaled_dot_product_attention replaced by frameattn.reference: how query, key and value are formed, what
is rotated, masked and projected is diffusers' own doing there.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
    modules: how many modules are swapped. calls: of attention, that one of them makes in the untouched model.
    one_frame: whether it can be called with one frame. setup: is run on the model. name: for the test's id, where a
    class has several cases.
    """

    model: str
    arguments: dict[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    text: str | None = None
    modules: int = 2
    calls: int = 1
    one_frame: bool = True
    name: str = ""
    setup: Callable[[nn.Module], None] = field(default=lambda model: None)

    def __str__(self) -> str:
        return self.name or self.model

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        diffusers = pytest.importorskip("diffusers")
        if not hasattr(diffusers, self.model):
            pytest.skip(f"diffusers {diffusers.__version__} has no {self.model}")
        cls = getattr(diffusers, self.model)
        unknown = set(self.arguments) - set(inspect.signature(cls.__init__).parameters)
        if unknown:
            pytest.skip(f"{self.model} of diffusers {diffusers.__version__} has no {', '.join(sorted(unknown))}")
        model = cls(**self.arguments)
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


def accept_float32(*names: str) -> Callable[[nn.Module], None]:
    """A setup: linear layers whose names have one of these in them take any dtype. diffusers keeps them in float32,
    which is none of attention's business."""

    def cast(layer: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].to(layer.weight.dtype),)

    def setup(model: nn.Module) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and any(part in name for part in names):
                layer.register_forward_pre_hook(cast)

    return setup


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
    return (weight * out + (1 - weight) * (torch.softmax(logits, dim=3) @ text[2])).to(out.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- The models ------------------------------------------------------------------------------------------------------

COMMON = dict(num_attention_heads=2, in_channels=4, out_channels=4, num_layers=2)
WAN = dict(**COMMON, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, rope_max_seq_len=32)
TEXT_MASK = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])  # the text of two samples has 4 and 6 tokens


def latent(frames: int, channels: int = 4) -> Tensor:
    """[B, C, T, H, W] for patches of 1 x 2 x 2. A model that takes [B, T, C, H, W] has other channels than frames."""
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
        "hidden_states": latent(frames, 6).transpose(1, 2),
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


def ltx2_inputs(frames: int) -> dict[str, Any]:
    return dict(
        **{**ltx_inputs(frames), "timestep": torch.full((BATCH, frames * HEIGHT * WIDTH), 500)},
        audio_hidden_states=randn(BATCH, 9, 4, seed=3),
        audio_encoder_hidden_states=randn(BATCH, 7, 16, seed=4),
        audio_encoder_attention_mask=torch.ones(BATCH, 7),
        audio_timestep=torch.full((BATCH, 9), 500),
        fps=24.0,
        audio_num_frames=9,
    )


OTHERS = 12  # tokens beside the video


def places(frames: int) -> Tensor:
    """[3, T * H * W]: time, height and width of tokens."""
    sizes = (frames, HEIGHT, WIDTH)
    return torch.stack([1.0 * axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sizes), indexing="ij")])


def ltx_condition_inputs(frames: int) -> dict[str, Any]:
    """Of two images, as LTXConditionPipeline has them: ahead of the video, with nothing but places to tell them."""
    images = torch.stack([torch.tensor([3.0, 1.0]).repeat_interleave(6), *torch.linspace(0, 4, 2 * OTHERS).view(2, -1)])
    return {
        **ltx_inputs(frames),
        "hidden_states": randn(BATCH, OTHERS + frames * HEIGHT * WIDTH, 6, seed=1),
        "video_coords": torch.cat([images, places(frames)], dim=1).expand(BATCH, -1, -1),
        **dict.fromkeys(("num_frames", "height", "width")),
    }


def ltx2_keyframe_inputs(frames: int) -> dict[str, Any]:
    tokens = frames * HEIGHT * WIDTH + OTHERS
    return {
        **ltx2_inputs(frames),
        "hidden_states": randn(BATCH, tokens, 6, seed=1),
        "timestep": torch.full((BATCH, tokens), 500),
        "video_coords": torch.rand(BATCH, 3, tokens, 2, generator=torch.Generator().manual_seed(2)),
    }


def minimax_h3_inputs(frames: int) -> dict[str, Any]:
    """A packed sequence: 5 tokens of text, an image of 4, 3 of sound, the video."""
    text, image, sound = torch.arange(OTHERS).split([5, 4, 3])
    video = torch.arange(OTHERS, OTHERS + frames * HEIGHT * WIDTH)
    ahead = torch.arange(3.0 * OTHERS).view(3, -1) / OTHERS
    tags = torch.zeros(len(video) + OTHERS, dtype=torch.long)
    tags[text], tags[sound] = 1, 2
    timestep_indices = torch.ones(len(tags), dtype=torch.long)
    timestep_indices[image] = 0
    return dict(
        hidden_states=randn(1, len(image) + len(video), 16, seed=1),
        audio_hidden_states=randn(1, len(sound), 6, seed=2),
        encoder_hidden_states=randn(1, len(text), 16, seed=3),
        timestep=torch.tensor([0.9, 0.4]),
        timestep_indices=timestep_indices,
        token_tags=tags,
        position_ids=torch.cat([ahead, 20 + places(frames)], dim=1).t().contiguous(),
        video_indices=torch.cat([image, video]),
        audio_indices=sound,
        text_indices=text,
    )


def cosmos_inputs(frames: int) -> dict[str, Any]:
    return {**wan_inputs(frames), "fps": 16}


def cosmos_image_inputs(frames: int) -> dict[str, Any]:
    """Of Cosmos 2.5: frames with timesteps of their own, and tokens of an image beside the text."""
    timestep = torch.full((BATCH, 1, frames, 1, 1), 500)
    timestep[:, :, 0] = 0
    contexts = randn(BATCH, 7, 16, seed=2), randn(BATCH, 5, 24, seed=3)
    return {**cosmos_inputs(frames), "timestep": timestep, "encoder_hidden_states": contexts}


def allegro_inputs(frames: int) -> dict[str, Any]:
    embeddings = pytest.importorskip("diffusers").models.embeddings
    frequencies = embeddings.get_3d_rotary_pos_embed_allegro(
        24, ((0, 0), (HEIGHT, WIDTH)), (HEIGHT, WIDTH), FRAMES
    )  # of each axis
    positions = torch.cartesian_prod(*(torch.arange(size) for size in (frames, HEIGHT, WIDTH))).unbind(1)
    return dict(
        **wan_inputs(frames),
        encoder_attention_mask=torch.ones(BATCH, 7),
        image_rotary_emb=(frequencies[:3], [axis[None] for axis in positions]),
    )


def kandinsky_inputs(frames: int) -> dict[str, Any]:
    return dict(
        hidden_states=latent(frames).movedim(1, 4),
        encoder_hidden_states=randn(BATCH, 7, 16, seed=2),
        timestep=torch.full((BATCH,), 500),
        pooled_projections=randn(BATCH, 12, seed=3),
        visual_rope_pos=[torch.arange(size) for size in (frames, HEIGHT, WIDTH)],
        text_rope_pos=torch.arange(7),
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


def motif_inputs(frames: int) -> dict[str, Any]:
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    return {name: hunyuan_inputs(frames)[name] for name in names}


def motif_image_inputs(frames: int) -> dict[str, Any]:
    return {**motif_inputs(frames), "image_embeds": randn(BATCH, 2, 12, seed=4)}


def hunyuan15_inputs(frames: int) -> dict[str, Any]:
    """Of image to video: tokens of an image, all of them keys, are ahead of the text."""
    return dict(
        hidden_states=randn(BATCH, 4, frames, HEIGHT, WIDTH, seed=1),
        timestep=torch.full((BATCH,), 500.0),
        encoder_hidden_states=randn(BATCH, 6, 16, seed=2),
        encoder_hidden_states_2=randn(BATCH, 3, 8, seed=3),
        encoder_attention_mask=TEXT_MASK,
        encoder_attention_mask_2=torch.tensor([[True, False, False], [True, True, True]]),
        image_embeds=randn(BATCH, 2, 12, seed=4),
    )


def hunyuan15_text_inputs(frames: int) -> dict[str, Any]:
    """Of text to video: no image token is a key."""
    return {**hunyuan15_inputs(frames), "image_embeds": torch.zeros(BATCH, 2, 12)}


def cogvideox_inputs(frames: int) -> dict[str, Any]:
    embeddings = pytest.importorskip("diffusers").models.embeddings
    return dict(
        hidden_states=latent(frames, 6).transpose(1, 2),
        timestep=torch.full((BATCH,), 500),
        encoder_hidden_states=randn(BATCH, 6, 16, seed=2),
        image_rotary_emb=embeddings.get_3d_rotary_pos_embed(16, ((0, 0), (HEIGHT, WIDTH)), (HEIGHT, WIDTH), frames),
    )


def cogvideox2b_inputs(frames: int) -> dict[str, Any]:
    return {**cogvideox_inputs(frames), "image_rotary_emb": None}


def cogvideox15_inputs(frames: int) -> dict[str, Any]:
    return {**cogvideox_inputs(frames), "hidden_states": latent(2 * frames, 6).transpose(1, 2)}


def easyanimate_inputs(frames: int) -> dict[str, Any]:
    return {**wan_inputs(frames), "encoder_hidden_states": randn(BATCH, 6, 16, seed=2)}


def mochi_inputs(frames: int) -> dict[str, Any]:
    """Four tokens of text for one sample, and an empty prompt for the other."""
    mask = TEXT_MASK & torch.tensor([[True], [False]])
    return {**easyanimate_inputs(frames), "encoder_attention_mask": mask}


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

LTX2 = dict(
    **LTX,
    audio_in_channels=4,
    audio_out_channels=4,
    audio_num_attention_heads=2,
    audio_attention_head_dim=4,
    audio_cross_attention_dim=8,
)
LTX2_GATED = dict(**LTX2, rope_type="split", gated_attn=True, audio_gated_attn=True, perturbed_attn=True)
MINIMAX_H3 = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    hidden_size=24,
    num_layers=2,
    num_refiner_layers=1,
    ffn_dim=32,
    in_channels=4,
    audio_in_channels=6,
    text_dim=16,
    freq_dim=16,
    time_embed_hidden_dim=24,
    time_embed_dim=16,
    rope_freq_dim=2,
)
COSMOS = dict(
    **COMMON,
    attention_head_dim=24,
    text_embed_dim=16,
    adaln_lora_dim=8,
    max_size=(8, 32, 32),
    concat_padding_mask=False,
    extra_pos_embed_type=None,  # "learnable", of Cosmos 1, cannot be float64
)
COSMOS_IMAGE = dict(img_context_dim_in=24, img_context_num_tokens=5, img_context_dim_out=48)
ALLEGRO = dict(
    **COMMON,
    attention_head_dim=24,
    cross_attention_dim=48,
    sample_width=32,
    sample_height=32,
    sample_frames=8,
    caption_channels=16,
)
KANDINSKY = dict(
    in_visual_dim=4,
    out_visual_dim=4,
    in_text_dim=16,
    in_text_dim2=12,
    time_dim=32,
    model_dim=24,
    ff_dim=48,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=(4, 4, 4),
)
MOTIF = {name: value for name, value in HUNYUAN.items() if name not in ("num_refiner_layers", "pooled_projection_dim")}
HUNYUAN15 = dict(
    **COMMON,
    attention_head_dim=16,
    num_refiner_layers=1,
    text_embed_dim=16,
    text_embed_2_dim=8,
    image_embed_dim=12,
    rope_axes_dim=(4, 6, 6),
)
CONSISID = dict(
    **{**COMMON, "in_channels": 6},
    attention_head_dim=16,
    time_embed_dim=8,
    text_embed_dim=16,
    sample_width=10,
    sample_height=6,
    sample_frames=13,
    max_text_seq_length=6,
    use_rotary_positional_embeddings=True,
)
COGVIDEOX = dict(**CONSISID, patch_size_t=None)
EASYANIMATE = dict(
    **COMMON,
    attention_head_dim=16,
    time_embed_dim=8,
    text_embed_dim=16,
    mmdit_layers=1,
    patch_size=2,
    sample_width=10,
    sample_height=6,
)
MOCHI = dict(
    **COMMON,
    attention_head_dim=16,
    pooled_projection_dim=16,
    text_embed_dim=16,
    time_embed_dim=8,
    max_sequence_length=6,
)

WAN_CASE = Case("WanTransformer3DModel", WAN, wan_inputs)
HUNYUAN_CASE = Case("HunyuanVideoTransformer3DModel", HUNYUAN, hunyuan_inputs, text="last")
LTX2_CASE = Case("LTX2VideoTransformer3DModel", LTX2_GATED, ltx2_inputs, name="LTX-2.3")
LTX_CASE = Case("LTXVideoTransformer3DModel", LTX, ltx_inputs)
LTX_CONDITION_CASE = Case("LTXVideoTransformer3DModel", LTX, ltx_condition_inputs, text="first", name="LTX-condition")
LTX2_KEYFRAME_CASE = replace(LTX2_CASE, inputs=ltx2_keyframe_inputs, text="last", name="LTX-2-keyframes")
MINIMAX_H3_CASE = Case("MiniMaxH3Transformer3DModel", MINIMAX_H3, minimax_h3_inputs, text="first")
COSMOS_CASE = Case("CosmosTransformer3DModel", COSMOS, cosmos_inputs)
ALLEGRO_CASE = Case("AllegroTransformer3DModel", ALLEGRO, allegro_inputs)
KANDINSKY_CASE = Case(
    "Kandinsky5Transformer3DModel", KANDINSKY, kandinsky_inputs, setup=accept_float32("time_embeddings", "modulation")
)
MOTIF_CASE = Case(
    "MotifVideoTransformer3DModel", MOTIF, motif_inputs, text="last", setup=accept_float32("timestep_embedder")
)
HUNYUAN15_CASE = Case("HunyuanVideo15Transformer3DModel", HUNYUAN15, hunyuan15_inputs, text="last")
COGVIDEOX_CASE = Case("CogVideoXTransformer3DModel", COGVIDEOX, cogvideox_inputs, text="first")
COGVIDEOX15_CASE = replace(
    COGVIDEOX_CASE, arguments={**COGVIDEOX, "patch_size_t": 2}, inputs=cogvideox15_inputs, name="CogVideoX1.5"
)
EASYANIMATE_CASE = Case("EasyAnimateTransformer3DModel", EASYANIMATE, easyanimate_inputs, text="first")
MOCHI_CASE = Case("MochiTransformer3DModel", MOCHI, mochi_inputs, text="last", calls=BATCH)

CASES = [
    WAN_CASE,
    Case("WanTransformer3DModel", WAN_IMAGE, wan_image_inputs, name="Wan-I2V"),
    Case("WanTransformer3DModel", WAN, wan_inputs_with_token_timesteps, name="Wan-TI2V"),
    Case("WanTransformer3DModel", WAN, wan_inputs, name="Wan-fused", setup=lambda model: model.fuse_qkv_projections()),
    Case("WanAnimateTransformer3DModel", WAN_ANIMATE, wan_animate_inputs, one_frame=False),
    Case("WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6}, vace_inputs, modules=4),
    Case("ChronoEditTransformer3DModel", WAN, wan_inputs),
    Case("SkyReelsV2Transformer3DModel", WAN, wan_inputs),
    Case("AnyFlowTransformer3DModel", {**WAN, "in_channels": 6}, anyflow_inputs),
    LTX_CASE,
    LTX_CONDITION_CASE,
    HUNYUAN_CASE,
    Case(
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "image_condition_type": "token_replace"},
        hunyuan_inputs,
        text="last",
        name="HunyuanVideo-I2V",
    ),
    Case("LTX2VideoTransformer3DModel", LTX2, ltx2_inputs),
    LTX2_CASE,
    LTX2_KEYFRAME_CASE,
    MINIMAX_H3_CASE,
    COSMOS_CASE,
    replace(COSMOS_CASE, arguments={**COSMOS, **COSMOS_IMAGE}, inputs=cosmos_image_inputs, name="Cosmos-2.5"),
    ALLEGRO_CASE,
    KANDINSKY_CASE,
    MOTIF_CASE,
    replace(MOTIF_CASE, arguments={**MOTIF, "image_embed_dim": 12}, inputs=motif_image_inputs, name="MotifVideo-I2V"),
    HUNYUAN15_CASE,
    replace(HUNYUAN15_CASE, inputs=hunyuan15_text_inputs, name="HunyuanVideo15-T2V"),
    COGVIDEOX_CASE,
    replace(
        COGVIDEOX_CASE,
        arguments={**COGVIDEOX, "use_rotary_positional_embeddings": False},
        inputs=cogvideox2b_inputs,
        name="CogVideoX-2b",
    ),
    replace(COGVIDEOX_CASE, arguments={**COGVIDEOX, "patch_size_t": 2}, inputs=cogvideox15_inputs, name="CogVideoX1.5"),
    replace(COGVIDEOX_CASE, setup=lambda model: model.fuse_qkv_projections(), name="CogVideoX-fused"),
    replace(
        COGVIDEOX_CASE, model="ConsisIDTransformer3DModel", arguments={**CONSISID, "is_train_face": False}, name=""
    ),
    EASYANIMATE_CASE,
    MOCHI_CASE,
]
