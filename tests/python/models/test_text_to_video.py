"""FrameDiTHT2V beside the official figures: arguments, images, masks, sizes, dtypes, files, LoRA, compilers, errors."""

import contextlib
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

import official_t2v as official
from frameattn import models
from frameattn._optional import MissingExtra
from frameattn.modules import MatrixLinear
from official import random
from official_t2v import SMALL, fill

pytest.importorskip("diffusers")  # the class is one of its models

NAME = "FrameDiTHT2V-XL/256-2-1-2-concat"
IMAGES = 2


def create(**arguments) -> nn.Module:
    return fill(models.FrameDiTHT2V(**{**SMALL, **arguments}))


@pytest.fixture(scope="module")
def model():
    """Tests leave it as it is."""
    return create().requires_grad_(False)


def inputs(**changes) -> dict:
    return {**official.inputs("default"), **changes}


def cast(values: dict, dtype: torch.dtype) -> dict:
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in values.items()}


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


# ---- Constructor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_layers=0), "num_layers must be at least 1, got 0"),
        (dict(video_length=-1), "video_length must be at least 1, got -1"),
        (dict(num_row_attn_heads=0), "num_row_attn_heads must be at least 1, got 0"),
        (dict(patch_size=3), "patch_size must divide sample_size = 8, got 3"),
        (dict(col_dim=15), r"col_dim must be the tokens of a frame, \(sample_size / patch_size\)\^2 = 16, got 15"),
        (
            dict(cross_attention_dim=20),
            r"cross_attention_dim must be num_row_attn_heads \* row_attn_head_dim = 24, got 20",
        ),
        (
            dict(row_attn_head_dim=11, cross_attention_dim=22),
            r"the channels must be a multiple of 4 \(sines, cosines of 2 axes\), got 22",
        ),
        (dict(fuse_mode="mean"), "fuse_mode must be one of concat, sum, gated, local, global, got 'mean'"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"^FrameDiTHT2V: {message}$"):
        models.FrameDiTHT2V(**{**SMALL, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(u_type="soft"), "MatrixLinear: u_type must be one of"),
        (dict(bias_type="both"), "MatrixLinear: bias_type must be one of"),
        (dict(u_type="identity"), "MatrixLinear: u_type 'identity' keeps the number of tokens, got 16 in and 8 out"),
    ],
)
def test_arguments_that_the_matrices_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        models.FrameDiTHT2V(**{**SMALL, **changes})


def test_the_registered_model_is_what_the_constructor_starts_from():
    with torch.device("meta"):
        assert models.create_model(NAME, num_layers=1).config == models.FrameDiTHT2V(num_layers=1).config
        model = models.create_model(NAME, **SMALL)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert SMALL.items() <= model.config.items()
    assert model.num_frames == 3 and model.checkpointed_layers == 2
    values = {k: v.to("meta") for k, v in cast(inputs(), torch.float32).items()}
    assert model(**values).sample.shape == (2, 8, 3, 8, 8)


# ---- Fresh models ----------------------------------------------------------------------------------------------------


def assert_xavier(weight, name):
    """Uniform up to sqrt(6 / (in + out))."""
    bound = math.sqrt(6 / sum(weight.shape))
    assert 0.9 * bound < weight.abs().max() <= bound, name
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_fresh_model():
    torch.manual_seed(0)
    model = models.FrameDiTHT2V(**{**SMALL, "fuse_mode": "gated", "u_type": "softmax"})
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2 * (4 + 4 + 2 + 4 + 2) + 3 + 2 + 1  # two pairs of blocks, timestep, text, output
    for name, module in linear:
        assert_xavier(module.weight, name)
        assert module.bias is None or not module.bias.any(), name
    matrices = [(name, module) for name, module in model.named_modules() if isinstance(module, MatrixLinear)]
    assert len(matrices) == 2 * 4
    for name, module in matrices:
        assert_xavier(module.u, name)
        assert_xavier(module.w, name)
        assert module.u_temperature.eq(1).all() and not module.bias_row.any(), name
        assert 0.8 / math.sqrt(16) < module.bias_col.abs().max() <= 1 / math.sqrt(16), name  # Kaiming, a = sqrt 5
    for block in model.temporal_transformer_blocks:
        attention = block.attn1
        assert attention.alpha.eq(1).all()
        assert attention.gamma_local.eq(1e-4).all() and attention.gamma_global.eq(1e-4).all()
        for norm in (attention.norm_local, attention.norm_global):
            assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    for module in [model, *model.transformer_blocks, *model.temporal_transformer_blocks]:
        assert module.scale_shift_table.std().item() == pytest.approx(1 / math.sqrt(24), rel=0.3)
    bound = 1 / math.sqrt(4 * 2 * 2)  # torch's own start of a convolution
    assert 0.9 * bound < model.pos_embed.proj.weight.abs().max() <= bound
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_table_of_frames():
    table = models.FrameDiTHT2V(**{**SMALL, "video_length": 5}).temp_pos_embed
    angles = torch.arange(5).double()[:, None] * 10000 ** -(torch.arange(12).double() / 12)
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)[None]
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), expected, rtol=0, atol=6e-8)


# ---- Inputs ----------------------------------------------------------------------------------------------------------

MESSAGES = dict(
    hidden_states=(
        r"hidden_states must be \[B, C, T, H, W\] with C = 4, T in 1..3, H and W multiples of 2, got \[{}\]"
    ),
    tokens=r"Matrix Attention is made for 16 tokens in a frame, got {} of hidden_states \[{}\]",
    timestep=r"timestep must be steps \[B\] = \[2\], got {}",
    text=r"encoder_hidden_states must be \[2, L, 6\], got {}",
    mask=r"encoder_attention_mask must be \[2, 5\], got \[{}\]",
)


@pytest.mark.parametrize(
    "key, size, message",
    [
        ("hidden_states", (2, 4, 8, 8), ("hidden_states", "2, 4, 8, 8")),
        ("hidden_states", (2, 3, 3, 8, 8), ("hidden_states", "2, 3, 3, 8, 8")),  # channels
        ("hidden_states", (2, 4, 4, 8, 8), ("hidden_states", "2, 4, 4, 8, 8")),  # frames
        ("hidden_states", (2, 4, 0, 8, 8), ("hidden_states", "2, 4, 0, 8, 8")),
        ("hidden_states", (2, 4, 3, 7, 8), ("hidden_states", "2, 4, 3, 7, 8")),
        ("hidden_states", (2, 4, 3, 8, 9), ("hidden_states", "2, 4, 3, 8, 9")),
        ("hidden_states", (2, 4, 3, 8, 6), ("tokens", 12, "2, 4, 3, 8, 6")),
        ("hidden_states", (2, 4, 3, 0, 8), ("tokens", 0, "2, 4, 3, 0, 8")),
        ("timestep", (3,), ("timestep", r"\[3\]")),
        ("timestep", (2, 1), ("timestep", r"\[2, 1\]")),
        ("timestep", None, ("timestep", "None")),
        ("encoder_hidden_states", (1, 5, 6), ("text", r"\[1, 5, 6\]")),
        ("encoder_hidden_states", (2, 5, 7), ("text", r"\[2, 5, 7\]")),
        ("encoder_hidden_states", (2, 1, 5, 6), ("text", r"\[2, 1, 5, 6\]")),
        ("encoder_hidden_states", (5, 6), ("text", r"\[5, 6\]")),
        ("encoder_hidden_states", (6,), ("text", r"\[6\]")),
        ("encoder_hidden_states", (), ("text", r"\[\]")),
        ("encoder_hidden_states", None, ("text", "None")),
        ("encoder_attention_mask", (2, 4), ("mask", "2, 4")),
        ("encoder_attention_mask", (5,), ("mask", "5")),
        ("encoder_attention_mask", (2, 1, 5), ("mask", "2, 1, 5")),  # what diffusers makes of a mask
    ],
)
def test_shapes_that_do_not_fit(model, key, size, message):
    value = None if size is None else torch.zeros(size)
    with pytest.raises(ValueError, match=f"^FrameDiTHT2V: {MESSAGES[message[0]].format(*message[1:])}$"):
        model(**inputs(**{key: value}))


def test_other_inputs_that_do_not_fit(model):
    with pytest.raises(ValueError, match="^FrameDiTHT2V: timestep must be .*, got 3$"):
        model(**inputs(timestep=3))
    with pytest.raises(ValueError, match="^FrameDiTHT2V: use_image_num must be at least 0, got -1$"):
        model(**inputs(use_image_num=-1))
    with pytest.raises(ValueError, match="^FrameDiTHT2V: added_cond_kwargs must be empty, got resolution$"):
        model(**inputs(added_cond_kwargs={"resolution": torch.tensor([[512.0, 512.0]])}))
    expected = model(**inputs()).sample
    for nothing in ({}, {"resolution": None, "aspect_ratio": None}):
        assert torch.equal(model(**inputs(added_cond_kwargs=nothing)).sample, expected)


def test_images_that_do_not_fit(model):
    values = official.inputs("images-mask")
    text, mask = values["encoder_hidden_states"], values["encoder_attention_mask"]
    for changes, message in [
        (dict(encoder_hidden_states=text[:, 0]), r"encoder_hidden_states must be \[2, 3, L, 6\], got \[2, 5, 6\]"),
        (dict(encoder_hidden_states=text[:, :2]), r"encoder_hidden_states must be .*, got \[2, 2, 5, 6\]"),
        (dict(encoder_attention_mask=mask[:, 0]), r"encoder_attention_mask must be \[2, 3, 5\], got \[2, 5\]"),
        (dict(use_image_num=1), r"hidden_states .* T in 1..3 \+ use_image_num = 1, .*, got \[2, 4, 5, 8, 8\]"),
        (dict(use_image_num=5), r"hidden_states .* T in 1..3 \+ use_image_num = 5, .*, got \[2, 4, 5, 8, 8\]"),
        (dict(use_image_num=0), r"hidden_states .* T in 1..3, .*, got \[2, 4, 5, 8, 8\]"),
    ]:
        with pytest.raises(ValueError, match=f"^FrameDiTHT2V: {message}$"):
            model(**{**values, **changes})


# ---- Images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["images", "images-mask"])
@pytest.mark.parametrize("fuse_mode", ["concat", "local"])
def test_images_are_apart_from_the_video(model, case, fuse_mode):
    """Each is what the spatial blocks make of it and its own text."""
    model = model if fuse_mode == "concat" else create(fuse_mode=fuse_mode)
    values = official.inputs(case)
    x, text, mask = (values.get(k) for k in ("hidden_states", "encoder_hidden_states", "encoder_attention_mask"))
    with torch.no_grad():
        out = model(**values).sample
        for i in range(1 + IMAGES):
            frames = slice(3) if i == 0 else slice(2 + i, 3 + i)
            alone = model(
                x[:, :, frames],
                values["timestep"],
                text[:, i],
                None if mask is None else mask[:, i],
                enable_temporal_attentions=i == 0,
            ).sample
            assert_close(out[:, :, frames], alone)


def test_images_of_one_frame_without_temporal_blocks(model):
    """The one frame has no position in time."""
    values = official.inputs("images")
    values["hidden_states"] = values["hidden_states"][:, :, 2:]
    out = model(**values).sample
    alone = model(values["hidden_states"][:, :, :1], values["timestep"], values["encoder_hidden_states"][:, 0]).sample
    assert_close(out[:, :, :1], alone)
    without = model(**values, enable_temporal_attentions=False).sample
    assert_close(without[:, :, 1:], out[:, :, 1:])
    assert not torch.allclose(without[:, :, :1], out[:, :, :1])


# ---- Texts, steps, sizes ---------------------------------------------------------------------------------------------


def test_masked_tokens_are_as_if_cut_out(model):
    values = official.inputs("mask")
    mask = values["encoder_attention_mask"].bool()
    out = model(**values).sample
    for clip in range(2):
        one = slice(clip, clip + 1)
        text = values["encoder_hidden_states"][one, mask[clip]]
        assert_close(out[one], model(values["hidden_states"][one], values["timestep"][one], text).sample)
    assert not torch.allclose(out, model(**inputs()).sample)


def test_masks_of_every_dtype(model):
    values = official.inputs("mask")
    expected = model(**values).sample
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.float32, torch.float64):
        mask = values["encoder_attention_mask"].to(dtype)
        assert torch.equal(model(**{**values, "encoder_attention_mask": mask}).sample, expected)


def test_steps_of_every_shape_and_dtype(model):
    expected = model(**inputs(timestep=torch.tensor([871, 871]))).sample
    for step in (torch.tensor(871), torch.tensor([871]), torch.tensor([871.0, 871.0]), torch.tensor(871.0).double()):
        assert torch.equal(model(**inputs(timestep=step)).sample, expected)


def test_clips_do_not_see_each_other(model):
    values = inputs()
    out = model(**values).sample
    for clip in range(2):
        assert_close(out[clip : clip + 1], model(**{k: v[clip : clip + 1] for k, v in values.items()}).sample)


def test_fewer_frames_are_the_first(model):
    """They have the positions of a model of so few frames."""
    values = inputs(hidden_states=inputs()["hidden_states"][:, :, :2])
    assert_close(model(**values).sample, create(video_length=2)(**values).sample)


def test_other_sizes(model):
    """Where frames have the tokens that Matrix Attention is made for, or it is not asked for."""
    values = inputs(hidden_states=random("wide", 2, 4, 3, 4, 16))
    wide = model(**values).sample
    turned = model(**inputs(hidden_states=values["hidden_states"].mT)).sample
    assert wide.shape == (2, 8, 3, 4, 16) and turned.shape == (2, 8, 3, 16, 4)
    x = random("other", 2, 4, 3, 6, 10)
    for other in (create(disable_matrix_attention=True), create(fuse_mode="local")):
        assert other(**inputs(hidden_states=x)).sample.shape == (2, 8, 3, 6, 10)
    with pytest.raises(ValueError, match="Matrix Attention is made for 16 tokens"):
        create(fuse_mode="global", disable_matrix_attention=True)(**inputs(hidden_states=x))
    without = model(**inputs(hidden_states=x), enable_temporal_attentions=False).sample
    frame = model(**inputs(hidden_states=x[:, :, 1:2]), enable_temporal_attentions=False).sample
    assert_close(without[:, :, 1:2], frame)


# ---- Dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mask", "images-mask"])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.006), ("autocast", 0.06)]
)
def test_dtypes(case, dtype, tolerance):
    model, values = create(**official.CASES[case][0]), official.inputs(case)
    with torch.no_grad():
        expected = model(**values).sample
    stored, context = (
        (torch.float32, torch.autocast("cpu", torch.bfloat16))
        if dtype == "autocast"
        else (
            dtype,
            contextlib.nullcontext(),
        )
    )
    model = model.to(stored)
    with context:
        out = model(**cast(values, stored)).sample
    assert out.dtype == (torch.bfloat16 if dtype == "autocast" else dtype)
    assert_close(out.detach(), expected, tolerance)
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == stored for p in model.parameters())


def test_layerwise_casting():
    """Weights are kept in bfloat16, but for norms and what has no layer of torch."""
    model, values = create().float().requires_grad_(False), cast(inputs(), torch.float32)
    expected = model(**values).sample
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    attention = model.temporal_transformer_blocks[0].attn1
    assert attention.attention.to_q.weight.dtype == torch.bfloat16
    assert attention.norm_local.weight.dtype == attention.matrix_attention.linear_q.w.dtype == torch.float32
    assert_close(model(**values).sample, expected, 0.03)


# ---- Gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed_layers", [None, 1, 0])
def test_gradient_checkpointing(checkpointed_layers):
    model, values = create(), official.inputs("mask")
    weight = random("weight", 2, 8, 3, 8, 8)

    def gradients():
        (model(**values).sample * weight).sum().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        return found

    expected = gradients()
    model.enable_gradient_checkpointing()
    if checkpointed_layers is not None:
        model.checkpointed_layers = checkpointed_layers
    runs = Counter()
    for kind in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, kind)):
            block.register_forward_pre_hook(lambda *_, place=(kind, i): runs.update([place]))
    actual = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-9)
    again = 2 if checkpointed_layers is None else checkpointed_layers
    assert runs == {
        (kind, i): 2 if i < again else 1
        for kind in ("transformer_blocks", "temporal_transformer_blocks")
        for i in (0, 1)
    }
    runs.clear()
    with torch.no_grad():
        model(**values)
    model.disable_gradient_checkpointing()
    gradients()
    assert set(runs.values()) == {2}


# ---- Files -----------------------------------------------------------------------------------------------------------

OTHER = dict(
    sample_size=12, col_dim=36, in_channels=3, out_channels=6, caption_channels=5, num_layers=1, video_length=2,
    qk_col_attn_head_dim=1, v_col_attn_head_dim=2,
)  # fmt: skip
OTHER_INPUTS = dict(
    hidden_states=random("x", 1, 3, 2, 12, 12), timestep=torch.tensor([5]), encoder_hidden_states=random("y", 1, 4, 5)
)


@pytest.mark.parametrize("u_type", ["pure-softmax", "identity", "sparse"])
def test_save_pretrained_and_from_pretrained(tmp_path, u_type):
    square = official.SQUARE if u_type != "pure-softmax" else {}
    model = create(fuse_mode="gated", u_type=u_type, **square).float()
    model.save_pretrained(tmp_path)
    values = cast(inputs(), torch.float32)
    with torch.no_grad():
        expected = model(**values).sample
        loaded = models.FrameDiTHT2V.from_pretrained(tmp_path)
        assert torch.equal(loaded(**values).sample, expected)
    assert not loaded.training and loaded.config.fuse_mode == "gated" and loaded.config.u_type == u_type
    half = models.FrameDiTHT2V.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16()), name
    assert torch.equal(half.temp_pos_embed, loaded.temp_pos_embed)  # no weight, so not rounded
    placed = models.FrameDiTHT2V.from_pretrained(tmp_path, device_map="auto")
    with torch.no_grad():
        assert torch.equal(placed(**values).sample, expected)


def test_save_checkpoint_and_from_checkpoint(tmp_path):
    path, model, arguments = tmp_path / "model.safetensors", create(**OTHER), {**SMALL, **OTHER}
    models.save_checkpoint(model.state_dict(), path, name=NAME, arguments=arguments)
    loaded = models.from_checkpoint(path)
    assert arguments.items() <= loaded.config.items() and not loaded.training
    with torch.no_grad():
        assert_close(loaded.double()(**OTHER_INPUTS).sample, model(**OTHER_INPUTS).sample, 1e-5)  # float32 between
    assert models.from_checkpoint(path, disable_matrix_attention=True).disable_matrix_attention
    with pytest.raises(ValueError, match=r"does not fit FrameDiTHT2V: missing scale_shift_table; missing"):
        models.load_checkpoint(model, official_file(tmp_path, {"x": torch.zeros(1)}))
    with pytest.raises(TypeError, match="FrameDiTHT2V has no argument 'depth'"):
        models.from_checkpoint(path, depth=2)


def test_the_configuration_can_be_the_arguments_of_a_checkpoint(tmp_path):
    """But for what diffusers notes in it, of a fresh model and of one that it read."""
    path, model = tmp_path / "model.safetensors", create(**OTHER)
    model.save_pretrained(tmp_path / "folder")
    for one in (model, models.FrameDiTHT2V.from_pretrained(tmp_path / "folder")):
        models.save_checkpoint(one.state_dict(), path, name=NAME, arguments=dict(one.config))
        assert {**SMALL, **OTHER}.items() <= models.from_checkpoint(path).config.items()


def official_file(folder, weights, ema=None):
    """As the official training of a compiled model writes it."""
    path, prefix = folder / "0150000.pt", "_orig_mod."
    content = {"model": {prefix + name: tensor for name, tensor in weights.items()}, "train_steps": 150_000}
    if ema is not None:
        content["ema"] = {prefix + name: tensor for name, tensor in ema.items()}
    torch.save(content, path)
    return path


def test_official_checkpoint(tmp_path):
    """The tensors tell their sizes, the caller heads and frames."""
    model = create(**OTHER)
    ema = {name: 0.5 * tensor for name, tensor in model.state_dict().items()}
    path = official_file(tmp_path, model.state_dict(), ema)
    told = ("num_row_attn_heads", "row_attn_head_dim", "num_col_attn_heads", "video_length")
    told = {key: {**SMALL, **OTHER}[key] for key in (*told, "qk_col_attn_head_dim", "v_col_attn_head_dim")}
    loaded = models.from_checkpoint(path, NAME, weights="model", **told)
    assert {**SMALL, **OTHER}.items() <= loaded.config.items()
    with torch.no_grad():
        assert_close(loaded.double()(**OTHER_INPUTS).sample, model(**OTHER_INPUTS).sample, 1e-5)
    of_ema = models.from_checkpoint(path, NAME, **told)
    assert torch.equal(of_ema.proj_out.weight, ema["proj_out.weight"].float())
    with pytest.raises(ValueError, match=r"cross_attention_dim must be .* = 1152, got 24"):
        models.from_checkpoint(path, NAME)


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    model, values = create(num_layers=1), inputs()
    with torch.no_grad():
        before = model(**values).sample
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    model.double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    places = [
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.attn2",
        "temporal_transformer_blocks.0.attn1.attention",
    ]
    assert trained.keys() == {
        f"{place}.{layer}.lora_{side}.default.weight" for place in places for layer in layers for side in "AB"
    }
    adapted = model(**values).sample
    (adapted * random("weight", *adapted.shape)).sum().backward()
    assert all(p.grad.any() for p in trained.values())
    assert not torch.allclose(adapted, before, rtol=0.01, atol=0.01)

    model.save_lora_adapter(tmp_path)
    other = create(num_layers=1)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    with torch.no_grad():
        assert_close(other.double()(**values).sample, adapted)
        other.disable_adapters()
        assert_close(other(**values).sample, before)
        model.fuse_lora()
        model.unload_lora()
        assert_close(model(**values).sample, adapted)


# ---- Compilers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compile(fresh_compiler):
    """Value and gradients, in one graph."""
    model, values = create(num_layers=1, fuse_mode="sum"), official.inputs("images-mask")
    out = model(**values).sample
    weight = random("weight", *out.shape)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(**values).sample
    assert_close(compiled, out)
    actual = torch.autograd.grad((compiled * weight).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_compile_repeated_blocks(model, fresh_compiler):
    if not hasattr(model, "compile_repeated_blocks"):
        pytest.skip("this diffusers compiles no repeated blocks")
    model, values = create(), official.inputs("mask")
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    with torch.no_grad():
        expected = model(**values).sample
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
        assert_close(model(**values).sample, expected)
    assert len(compiled) == 2  # a spatial and a temporal block, each for all that are like it


def test_export(model):
    values = official.inputs("mask")
    program = torch.export.export(create(num_layers=1), (), {**values, "return_dict": False})
    with torch.no_grad():
        expected = create(num_layers=1)(**values).sample
        assert_close(program.module()(**values, return_dict=False)[0], expected)


# ---- diffusers -------------------------------------------------------------------------------------------------------


def test_importing_the_models_does_not_import_diffusers():
    code = (
        "import sys, frameattn.models as models; models.list_models(); "
        "assert not {'diffusers', 'transformers', 'frameattn.models.text_to_video'} & set(sys.modules), 'imported'; "
        "assert 'FrameDiTHT2V' in models.__all__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    message = r'^diffusers does not import \(.*\): pip install "frameattn\[video\]"$'
    for ask in (lambda: models.FrameDiTHT2V, lambda: models.create_model(NAME, num_layers=1)):
        with pytest.raises(MissingExtra, match=message):
            ask()
    assert NAME in models.list_models()
    assert models.create_model("FrameDiTG-S/64-256/2", depth=2).config["depth"] == 2
    with pytest.raises(AttributeError, match="module 'frameattn.models' has no attribute 'FrameDiTT2V'"):
        models.FrameDiTT2V  # noqa: B018
