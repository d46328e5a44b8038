"""FrameDiTHT2V.from_latte: with its matrix branch disabled it is diffusers' Latte; what is trained; what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_latte
from frameattn import models
from frameattn.models.latte import OPTIONS, copy_latte, latte_arguments
from official import random

pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK = "temporal_transformer_blocks.{}.attn1."
MATRICES = [
    f"matrix_attention.{linear}.{part}"
    for linear in ("linear_q", "linear_k", "linear_v", "proj_v")
    for part in ("u", "w", "bias_col", "bias_row")
]
NORMS = [f"{norm}.{part}" for norm in ("norm_local", "norm_global") for part in ("weight", "bias")]
ADDED = {
    "concat": [*MATRICES, *NORMS, "output_linear.weight", "output_linear.bias"],
    "sum": [*MATRICES, *NORMS],
    "gated": [*MATRICES, *NORMS, "alpha", "gamma_local", "gamma_global"],
    "local": [],
    "global": MATRICES,
}
BY_FUSE_MODE = pytest.mark.parametrize("fuse_mode", ADDED)


def added(fuse_mode: str) -> set[str]:
    """Names of the parameters that Latte does not have."""
    return {BLOCK.format(i) + name for i in range(tiny_latte.LATTE["num_layers"]) for name in ADDED[fuse_mode]}


def name_in_latte(name: str) -> str:
    return name.replace("attn1.attention.", "attn1.") if name.startswith("temporal") else name


@pytest.fixture(scope="module")
def latte():
    """Tests leave it as it is. Its fresh biases of zero are made to matter."""
    model = tiny_latte.latte(dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * random(name, *parameter.shape))
    return model.requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    """Of a Latte."""
    tiny_latte.latte().save_pretrained(tmp_path / "latte")
    return tmp_path / "latte"


def from_latte(latte, *, disabled=True, **options) -> nn.Module:
    model = models.FrameDiTHT2V.from_latte(latte, **options)
    model.disable_matrix_attention = disabled
    return model


def inputs(frames=tiny_latte.FRAMES, height=tiny_latte.SIZE, width=tiny_latte.SIZE, channels=tiny_latte.CHANNELS):
    return dict(
        hidden_states=random("hidden_states", 2, channels, frames, height, width),
        timestep=torch.tensor([3, 871]),
        encoder_hidden_states=random("encoder_hidden_states", 2, 5, tiny_latte.TEXT_CHANNELS),
    )


def assert_close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# ---- Equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse_mode", ["concat", "sum", "gated", "local"])
def test_without_matrix_attention_it_is_latte(latte, fuse_mode):
    values = inputs()
    model = from_latte(latte, fuse_mode=fuse_mode)
    expected = latte(**values).sample
    assert_close(model(**values).sample, expected)
    assert_close(model(**values, return_dict=False)[0], expected)
    model.disable_matrix_attention = False
    assert torch.allclose(model(**values).sample, expected, rtol=1e-3) == (fuse_mode == "local")


def test_global_has_no_temporal_attention_of_latte(latte):
    """The rest of its weights is there: without temporal blocks it is Latte."""
    model, values = from_latte(latte, fuse_mode="global"), inputs()
    assert not any(
        "attn1.to_q" in name or "attn1.attention" in name for name, _ in model.named_parameters() if "temporal" in name
    )
    expected = latte(**values, enable_temporal_attentions=False).sample
    assert_close(model(**values, enable_temporal_attentions=False).sample, expected)
    assert not torch.allclose(model(**values).sample, latte(**values).sample, rtol=1e-3)


@pytest.mark.parametrize(
    "shape, options",
    [
        (dict(frames=1), {}),  # an image has no position in time
        (dict(), dict(enable_temporal_attentions=False)),
        (dict(height=12, width=6), {}),
        (dict(height=4, width=16), {}),
        (dict(height=2, width=2), {}),
    ],
    ids=str,
)
def test_other_calls_that_latte_takes(latte, shape, options):
    values = inputs(**shape)
    assert_close(from_latte(latte)(**values, **options).sample, latte(**values, **options).sample)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(patch_size=1, sample_size=4),
        dict(patch_size=4, out_channels=None),
        dict(attention_bias=False, norm_eps=0.01),
        dict(sample_size=132, patch_size=33),  # positions of 0.5
        dict(num_layers=1, video_length=1),
        dict(num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, in_channels=3),
    ],
    ids=str,
)
def test_sizes_of_latte(arguments):
    latte = tiny_latte.latte(dtype=torch.float64, **arguments)
    config, model = latte.config, from_latte(latte)
    size = config.sample_size
    values = inputs(config.video_length, size, size, config.in_channels)
    with torch.no_grad():
        expected = latte(**values).sample
        assert_close(model(**values).sample, expected)
        model.disable_matrix_attention = False
        assert model(**values).sample.shape == expected.shape
    assert model.config.out_channels == (config.out_channels or config.in_channels)


def test_gradients_are_those_of_latte(latte):
    model, values = from_latte(latte, freeze=False), inputs()
    latte = tiny_latte.latte(dtype=torch.float64)
    latte.load_state_dict({name_in_latte(k): v for k, v in model.state_dict().items() if k not in added("concat")})
    weight = random("weight", 2, 8, 3, 8, 8)
    for one in (latte, model):
        (one(**values).sample * weight).sum().backward()
    expected = dict(latte.named_parameters())
    largest = max(p.grad.abs().max() for p in expected.values())
    for name, parameter in model.named_parameters():
        if name in added("concat"):
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, expected[name_in_latte(name)].grad, rtol=1e-9, atol=1e-12 * largest
            )


# ---- What it is made of ----------------------------------------------------------------------------------------------


@BY_FUSE_MODE
@pytest.mark.parametrize("freeze", [True, False])
def test_freezing(latte, fuse_mode, freeze):
    model = from_latte(latte, fuse_mode=fuse_mode, freeze=freeze)
    names = {name for name, _ in model.named_parameters()}
    theirs = dict(latte.named_parameters()).keys()
    if fuse_mode == "global":
        theirs = {name for name in theirs if not name.startswith("temporal") or ".attn1." not in name}
    assert names - added(fuse_mode) == {
        re.sub(r"^(temporal\w+\.\d+\.attn1\.)", r"\1attention.", name) for name in theirs
    }
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == (added(fuse_mode) if freeze else names)
    assert not any(parameter.requires_grad for parameter in latte.parameters())  # Latte's own stay as they were


def test_freeze_latte_undoes_what_was_set(latte):
    model = from_latte(latte, freeze=False).requires_grad_(False)
    model.freeze_latte()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == added("concat")


def test_a_frozen_model_learns(latte):
    model, values = from_latte(latte, disabled=False), inputs()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves no u of proj_v's bias_col: its bias_row starts from zero
        optimizer.zero_grad()
        model(**values).sample.square().mean().backward()
        optimizer.step()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    # Softmax cancels the bias of keys but for rounding, and behind a norm the bias of what it norms is small, not zero.
    assert moved <= added("concat")
    assert {name for name in added("concat") if "linear_k.bias" not in name} <= moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_are_taken_over_bit_for_bit(dtype):
    latte = tiny_latte.latte(dtype=dtype)
    weights = {name: weight.clone() for name, weight in latte.state_dict().items()}
    model = from_latte(latte, u_type="softmax", fuse_mode="gated")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype} and model.dtype == dtype
    for name, weight in model.state_dict().items():
        if not (".attn1." in name and name.startswith("temporal") and ".attention." not in name):
            assert torch.equal(weight, weights[name_in_latte(name)]), name
    exact = tiny_latte.latte()
    assert model.temp_pos_embed.dtype == model.pos_embed.pos_embed.dtype == torch.float32
    assert torch.equal(model.temp_pos_embed, exact.temp_pos_embed)
    assert torch.equal(model.pos_embed.pos_embed, exact.pos_embed.pos_embed)
    with torch.no_grad():
        model.proj_out.weight.zero_()
        model.transformer_blocks[0].attn1.to_q.weight.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in latte.state_dict().items())  # a copy


@pytest.mark.parametrize("u_type", ["identity", "sparse"])
def test_buffers_of_the_matrices_are_kept(latte, u_type):
    options = dict(u_type=u_type, num_col_attn_heads=2, qk_col_attn_head_dim=8, v_col_attn_head_dim=8)
    model = from_latte(latte, **options)
    matrices = model.temporal_transformer_blocks[0].attn1.matrix_attention.linear_q
    if u_type == "identity":
        assert torch.equal(matrices.u, torch.eye(16).double())
    else:
        assert torch.equal(matrices.u_mask, torch.ones(16, 16).double().triu(-8).tril(7))
    assert_close(model(**inputs()).sample, latte(**inputs()).sample)


def test_on_meta():
    model = from_latte(tiny_latte.latte().to("meta"))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert model.config.col_dim == 16


def test_options(latte):
    config = from_latte(latte).config
    expected = dict(
        col_dim=16, num_col_attn_heads=8, qk_col_attn_head_dim=1, v_col_attn_head_dim=2, num_row_attn_heads=2,
        row_attn_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
        caption_channels=6, cross_attention_dim=24, attention_bias=True, norm_eps=1e-6, use_bias=True,
        bias_type="col_row", u_type="pure-softmax", fuse_mode="concat", video_length=3, disable_matrix_attention=False,
        u_norm_eps_outside=False,
    )  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    options = dict(
        num_col_attn_heads=2, qk_col_attn_head_dim=3, v_col_attn_head_dim=5, use_bias=False, bias_type="row",
        u_type="normalized_l1", fuse_mode="gated", u_norm_eps_outside=True, video_length=4,
    )  # fmt: skip
    assert options.keys() == set(OPTIONS)
    model = from_latte(latte, disabled=False, **options)
    assert {key: model.config[key] for key in expected} == expected | options
    linear = model.temporal_transformer_blocks[1].attn1.matrix_attention.linear_v
    assert linear.u.shape == (16, 10) and linear.bias_type is None and linear.u_norm_eps_outside
    assert model(**inputs(frames=4)).sample.shape == (2, 8, 4, 8, 8)


def test_one_token_has_one_head():
    assert from_latte(tiny_latte.latte(sample_size=2)).config.num_col_attn_heads == 1


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["latte", "pipeline"])
def test_from_a_folder(tmp_path, kind):
    if kind == "latte":
        tiny_latte.latte(seed=3).save_pretrained(tmp_path)
    else:
        tiny_latte.save_pipeline(tmp_path, seed=3)
    expected = tiny_latte.latte(seed=3).state_dict()
    for path in (tmp_path, str(tmp_path)):
        model = from_latte(path, fuse_mode="sum")
        assert model.config.fuse_mode == "sum" and not model.proj_out.weight.requires_grad
        for name, weight in model.state_dict().items():
            if name not in added("sum"):
                assert torch.equal(weight, expected[name_in_latte(name)]), name


def test_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty" / "transformer").mkdir(parents=True)
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path / "empty" / "transformer"):
        with pytest.raises(OSError, match=re.escape(str(path.relative_to(tmp_path)).split("/")[0])):
            from_latte(path)


def test_a_folder_with_weights_missing(folder):
    """diffusers would leave them as they are in memory, with a warning."""
    weights = load_file(folder / WEIGHTS)
    del weights["proj_out.weight"], weights["transformer_blocks.1.attn2.to_k.bias"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError) as raised:
        from_latte(folder)
    message = str(raised.value)
    assert message.startswith(f"the weights of the Latte in {folder} do not fit FrameDiTHT2V: missing ")
    assert "missing proj_out.weight" in message and "missing transformer_blocks.1.attn2.to_k.bias" in message


def test_a_folder_with_weights_of_another_patch_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "patch_size": 4}))
    with pytest.raises(ValueError, match=r"(pos_embed|proj_out).* expected shape"):  # diffusers' own
        from_latte(folder)


# ---- What does not fit -----------------------------------------------------------------------------------------------

CANNOT = "FrameDiTHT2V cannot be made from this Latte: "


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(patch_size=3), "patch_size 3 does not divide sample_size 8"),
        (dict(activation_fn="geglu"), "activation_fn is 'geglu', not 'gelu-approximate'"),
        (dict(cross_attention_dim=20), "cross_attention_dim is 20, not the 24 channels"),
        (
            dict(dropout=0.1, norm_elementwise_affine=True),
            "norm_elementwise_affine is True, not False; dropout is 0.1, not 0.0",
        ),
        (
            dict(norm_type="layer_norm", activation_fn="gelu", dropout=0.5, cross_attention_dim=12),
            "norm_type is 'layer_norm', not 'ada_norm_single'; activation_fn is 'gelu', not 'gelu-approximate'; "
            "dropout is 0.5, not 0.0; cross_attention_dim is 12, not the 24 channels",
        ),
    ],
)
def test_another_latte_is_refused(arguments, message):
    with pytest.raises(ValueError) as raised:
        from_latte(tiny_latte.latte(**arguments))
    assert str(raised.value) == CANNOT + message


def test_sizes_that_are_not_numbers(latte):
    config = {**latte.config, "sample_size": [8, 8], "caption_channels": None, "cross_attention_dim": None}
    with pytest.raises(ValueError) as raised:
        latte_arguments(config, {})
    assert str(raised.value) == (
        f"{CANNOT}sample_size is [8, 8], not a whole number; caption_channels is None, not a whole number; "
        "cross_attention_dim is None, not the 24 channels"
    )


def test_other_weights_are_named(latte):
    model = from_latte(latte)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = dict(latte.state_dict())
    del weights["proj_out.bias"], weights["temporal_transformer_blocks.1.attn1.to_q.weight"]
    weights["extra"] = torch.zeros(1)
    weights["pos_embed.proj.weight"] = torch.zeros(24, 4, 4, 4)
    with pytest.raises(ValueError) as raised:
        copy_latte(weights, model)
    assert str(raised.value) == (
        "the weights of this Latte do not fit FrameDiTHT2V: missing temporal_transformer_blocks.1.attn1.to_q.weight; "
        "missing proj_out.bias; unknown extra; pos_embed.proj.weight is [24, 4, 4, 4], not [24, 4, 2, 2]"
    )
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())  # nothing was copied
    with pytest.raises(ValueError, match=r"FrameDiTHT2V: (missing [\w.]+; ){5}and \d+ more$"):
        copy_latte({}, model)


def test_lora_in_a_latte_is_named():
    peft = pytest.importorskip("peft")
    latte = tiny_latte.latte()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"]), latte)
    with pytest.raises(ValueError, match=r"missing transformer_blocks.0.attn1.to_q.weight"):
        from_latte(latte)


def test_other_options_and_models_are_refused(latte):
    with pytest.raises(TypeError, match=f"^from_latte has no option 'col_dim'; there are {', '.join(OPTIONS)}$"):
        from_latte(latte, col_dim=4)
    for option, message in [
        (dict(fuse_mode="mean"), "fuse_mode must be one of concat, sum, gated, local, global, got 'mean'"),
        (dict(num_col_attn_heads=0), "num_col_attn_heads must be at least 1, got 0"),
        (dict(video_length=0), "video_length must be at least 1, got 0"),
        (dict(u_type="identity"), "u_type 'identity' keeps the number of tokens, got 16 in and 8 out"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_latte(latte, **option)
    for other in (None, nn.Linear(2, 2), from_latte(latte)):
        with pytest.raises(
            TypeError, match=rf"must be a LatteTransformer3DModel or its folder, got {type(other).__name__}$"
        ):
            from_latte(other)
