"""LocalGlobalAttention: each way to fuse local temporal attention and Matrix Attention against its formula."""

import math

import pytest
import torch

from frameattn.modules import FUSE_MODES, LocalGlobalAttention, MatrixAttention, TemporalAttention
from oracle import randn

N, D = 5, 12
SIZES = dict(dim=D, num_tokens=N, qk_col_dim=4, v_col_dim=6, num_row_heads=3, num_col_heads=2)


def create(fuse_mode, seed=0, **options) -> LocalGlobalAttention:
    """A float64 layer whose parameters are all random."""
    layer = LocalGlobalAttention(**SIZES, fuse_mode=fuse_mode, **options).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i) * 0.5)
    return layer


def forward_of(layer, x):
    def normalized(norm, y):
        centred = y - y.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias

    local_part = layer.vanilla_attention(x)
    if layer.fuse_mode == "local":
        return local_part
    local_part = normalized(layer.norm_local, local_part)
    global_part = normalized(layer.norm_global, layer.matrix_attention(x))
    match layer.fuse_mode:
        case "concat":
            weight, bias = layer.output_linear.weight, layer.output_linear.bias
            return local_part @ weight[:, :D].T + global_part @ weight[:, D:].T + bias
        case "sum":
            return local_part / math.sqrt(2) + global_part / math.sqrt(2)
        case "gated":
            gate = 1 / (1 + torch.exp(-layer.alpha))
            return gate * layer.gamma_local * local_part + (1 - gate) * layer.gamma_global * global_part


def gradients(out, layer, x):
    return torch.autograd.grad(out, [x, *layer.parameters()], randn(*out.shape, seed=77))


@pytest.mark.parametrize("fuse_mode", FUSE_MODES)
def test_matches_the_formula(fuse_mode):
    layer, x = create(fuse_mode), randn(2, 3, N, D, requires_grad=True)
    out, exact = layer(x), forward_of(layer, x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-11)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    for name, ours, theirs in zip(names, gradients(out, layer, x), gradients(exact, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)
        if name != "matrix_attention.linear_k.bias":  # cancels
            assert ours.abs().max() > 1e-6, name


LOCAL = {"vanilla_attention.qkv.weight", "vanilla_attention.qkv.bias"}
LOCAL |= {"vanilla_attention.proj.weight", "vanilla_attention.proj.bias"}
PARTS = ("linear_q", "linear_k", "linear_v", "proj_v")
BOTH = LOCAL | {f"matrix_attention.{part}.{name}" for part in PARTS for name in ("u", "w", "bias")}
BOTH |= {f"{norm}.{name}" for norm in ("norm_local", "norm_global") for name in ("weight", "bias")}


@pytest.mark.parametrize(
    "fuse_mode, names",
    [
        ("local", LOCAL),
        ("sum", BOTH),
        ("concat", BOTH | {"output_linear.weight", "output_linear.bias"}),
        ("gated", BOTH | {"alpha", "gamma_local", "gamma_global"}),
    ],
)
def test_names_of_the_parameters(fuse_mode, names):
    layer = LocalGlobalAttention(**SIZES, fuse_mode=fuse_mode)
    assert layer.state_dict().keys() == dict(layer.named_parameters()).keys() == names


def test_shapes_and_values_of_a_fresh_layer():
    concat = LocalGlobalAttention(**SIZES)
    assert concat.fuse_mode == "concat"
    assert concat.output_linear.weight.shape == (D, 2 * D)
    for norm in (concat.norm_local, concat.norm_global):
        assert norm.eps == 1e-5 and norm.weight.eq(1).all() and norm.bias.eq(0).all()
    gated = LocalGlobalAttention(**SIZES, fuse_mode="gated")
    torch.testing.assert_close(gated.alpha.data, torch.zeros(D), rtol=0, atol=0)
    for gamma in (gated.gamma_local, gated.gamma_global):
        torch.testing.assert_close(gamma.data, torch.full((D,), 1e-4), rtol=0, atol=0)


def test_heads_bias_and_options_reach_the_parts():
    layer = LocalGlobalAttention(**SIZES, bias=False, u_type="softmax", bias_type="row", fuse_mode="sum")
    assert type(layer.vanilla_attention) is TemporalAttention and type(layer.matrix_attention) is MatrixAttention
    assert layer.vanilla_attention.num_heads == layer.matrix_attention.num_row_heads == 3
    assert layer.matrix_attention.num_col_heads == 2
    assert layer.vanilla_attention.qkv.bias is None and layer.matrix_attention.linear_q.bias is None
    assert layer.matrix_attention.proj_v.u_type == "softmax"
    row = LocalGlobalAttention(**SIZES, bias_type="row")
    assert row.matrix_attention.linear_v.bias.shape == (1, D)


@pytest.mark.parametrize("fuse_mode", FUSE_MODES)
def test_device_and_dtype(fuse_mode):
    layer = LocalGlobalAttention(**SIZES, fuse_mode=fuse_mode, device="meta", dtype=torch.float16)
    assert all(t.is_meta and t.dtype == torch.float16 for t in layer.state_dict().values())
    x = torch.empty(2, 3, N, D, device="meta", dtype=torch.float16)
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("fuse_mode", FUSE_MODES)
def test_autocast_and_bfloat16(fuse_mode):
    x = randn(2, 3, N, D)
    exact = create(fuse_mode)(x)
    layer = create(fuse_mode).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x.float())
    mixed.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    for out in (mixed, create(fuse_mode).bfloat16()(x.bfloat16())):
        assert (out - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("fuse_mode", FUSE_MODES)
def test_compile(fuse_mode):
    layer, x = create(fuse_mode), randn(2, 3, N, D, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    for ours, theirs in zip(gradients(compiled(x), layer, x), gradients(layer(x), layer, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fuse_mode", FUSE_MODES)
def test_no_clips(fuse_mode):
    assert create(fuse_mode)(randn(0, 3, N, D)).shape == (0, 3, N, D)


def test_repr():
    assert create("gated").extra_repr() == "fuse_mode=gated"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(fuse_mode="add"), "LocalGlobalAttention: fuse_mode must be one of concat, sum, gated, local, got 'add'"),
        (dict(num_row_heads=5), "TemporalAttention: num_heads must divide dim = 12, got 5"),
        (dict(num_col_heads=5), "MatrixAttention: num_col_heads must divide qk_col_dim = 4, got 5"),
        (dict(u_type="soft"), "MatrixLinear: u_type must be one of .*, got 'soft'"),
    ],
)
def test_rejects_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LocalGlobalAttention(**{**SIZES, **options})


def test_rejects_an_unknown_option():
    with pytest.raises(TypeError, match="bandwidth"):
        LocalGlobalAttention(**SIZES, bandwidth=3)
