"""The layer MatrixAttention against the reference, and the cases in which it is something simpler."""

import pytest
import torch

from frameattn import reference
from frameattn.modules import BIAS_TYPES, U_TYPES, MatrixAttention, TemporalAttention
from oracle import randn

N, D = 5, 12
SIZES = dict(dim=D, num_tokens=N, qk_col_dim=4, v_col_dim=6, num_row_heads=3, num_col_heads=2)
SQUARE = dict(qk_col_dim=6, v_col_dim=6, num_tokens=6)  # identity and sparse keep the number of tokens


def create(seed=0, **options) -> MatrixAttention:
    """A float64 layer whose parameters are all random."""
    if options.get("u_type") in ("identity", "sparse"):
        options = {**SQUARE, **options}
    layer = MatrixAttention(**{**SIZES, **options}).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(layer.named_parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i) * 0.5)
            if name.endswith("u_temperature"):
                parameter.abs_().add_(0.5)
    return layer


def forward_of(layer: MatrixAttention, x: torch.Tensor) -> torch.Tensor:
    def linear(part, frames):
        return reference.matrix_linear(frames, part.mixing_matrix(), part.w, part.bias_matrix())

    query, key, value = (linear(part, x) for part in (layer.linear_q, layer.linear_k, layer.linear_v))
    return linear(layer.proj_v, reference.matrix_attention(query, key, value, layer.num_row_heads, layer.num_col_heads))


def gradients(out, layer, x):
    return torch.autograd.grad(out, [x, *layer.parameters()], randn(*out.shape, seed=77))


@pytest.mark.parametrize("bias_type", [*BIAS_TYPES, None])
@pytest.mark.parametrize("u_type", U_TYPES)
def test_matches_reference(u_type, bias_type):
    bias = dict(bias=False) if bias_type is None else dict(bias_type=bias_type)
    layer = create(u_type=u_type, sparse_bandwidth=4, **bias)
    x = randn(2, 3, layer.linear_q.in_size[0], D, requires_grad=True)
    out, exact = layer(x), forward_of(layer, x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-11)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    for name, ours, theirs in zip(names, gradients(out, layer, x), gradients(exact, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("num_row_heads, num_col_heads", [(1, 1), (12, 1), (1, 2), (4, 2)])
def test_matches_reference_for_any_heads(num_row_heads, num_col_heads):
    layer = create(num_row_heads=num_row_heads, num_col_heads=num_col_heads)
    x = randn(2, 7, N, D)
    torch.testing.assert_close(layer(x), forward_of(layer, x), rtol=1e-11, atol=1e-11)


def test_gradcheck_float64():
    layer = MatrixAttention(4, 3, qk_col_dim=2, v_col_dim=4, num_row_heads=2, num_col_heads=2, u_type="softmax")
    layer.double()
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach() + 0.1 for p in layer.parameters()]

    def forward(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, [v.requires_grad_() for v in (randn(1, 2, 3, 4), *values)])


def test_one_frame_is_its_own_value():
    layer, x = create(), randn(3, 1, N, D)
    torch.testing.assert_close(layer(x), layer.proj_v(layer.linear_v(x)), rtol=0, atol=0)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_one_token_high_without_mixing_are_temporal_attention(heads):
    """C = N, n = 1, U = 1: the attention over time at each position of Latte, with the same weights."""
    local = TemporalAttention(D, heads).double()
    layer = create(
        num_row_heads=heads,
        u_type="identity",
        bias_type="row",
        num_tokens=N,
        qk_col_dim=N,
        v_col_dim=N,
        num_col_heads=N,
    )
    with torch.no_grad():
        parts = (layer.linear_q, layer.linear_k, layer.linear_v)
        weights = zip(local.qkv.weight.chunk(3), local.qkv.bias.normal_().chunk(3), strict=True)
        for part, (weight, bias) in zip(parts, weights, strict=True):
            part.w.copy_(weight.T)
            part.bias.copy_(bias)
        layer.proj_v.w.copy_(local.proj.weight.T)
        layer.proj_v.bias.copy_(local.proj.bias)
    x = randn(2, 4, N, D)
    torch.testing.assert_close(layer(x), local(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias_type", BIAS_TYPES)
def test_bias_of_the_key_cancels(bias_type):
    layer, x = create(bias_type=bias_type), randn(2, 4, N, D)
    before = layer(x)
    before.square().sum().backward()
    largest = max(p.grad.abs().max() for p in layer.parameters())
    of_key = {name: p for name, p in layer.linear_k.named_parameters() if name.startswith("bias")}
    assert of_key
    for name, parameter in of_key.items():
        assert parameter.grad.abs().max() < 1e-13 * largest, name
        with torch.no_grad():
            parameter.add_(3 * randn(*parameter.shape, seed=8))
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # unlike the bias of the query
        for name, parameter in layer.linear_q.named_parameters():
            if name.startswith("bias"):
                parameter.add_(3)
    assert (layer(x) - before).abs().max() > 1e-3


def test_frames_have_no_order():
    layer, x, order = create(), randn(2, 5, N, D), [3, 0, 4, 1, 2]
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-12, atol=1e-12)


def test_non_contiguous():
    layer, x = create(), randn(N, 2, D, 3)
    x = x.permute(1, 3, 0, 2)
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    one_frame = randn(2, 1, N, D).expand(2, 3, N, D)
    torch.testing.assert_close(layer(one_frame), layer(one_frame.contiguous()))


def test_no_clips():
    layer = create()
    x = randn(0, 3, N, D, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.eq(0).all() for p in layer.parameters())


def test_autocast_and_bfloat16():
    exact, x = create(), randn(2, 4, N, D)
    wanted = exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = create().float()(x.float())
    for out in (mixed, create().bfloat16()(x.bfloat16())):
        assert out.dtype == torch.bfloat16
        assert (out - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_compile():
    layer, x = create(u_type="softmax"), randn(2, 3, N, D, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    for ours, theirs in zip(gradients(compiled(x), layer, x), gradients(layer(x), layer, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_device_dtype_and_options_reach_every_part():
    layer = MatrixAttention(**SIZES, u_type="softmax", bias_type="col", device="meta", dtype=torch.float16)
    assert all(t.is_meta and t.dtype == torch.float16 for t in layer.state_dict().values())
    x = torch.empty(2, 3, N, D, device="meta", dtype=torch.float16)
    assert layer(x).shape == x.shape
    parts = {
        "linear_q": ((N, D), (4, D)),
        "linear_k": ((N, D), (4, D)),
        "linear_v": ((N, D), (6, D)),
        "proj_v": ((6, D), (N, D)),
    }
    assert dict(layer.named_children()).keys() == parts.keys()
    for name, part in layer.named_children():
        assert (part.in_size, part.out_size) == parts[name]
        assert (part.u_type, part.bias_type) == ("softmax", "col")
    outside = MatrixAttention(**SIZES, u_type="normalized_l1", u_norm_eps_outside=True)
    assert all(part.u_norm_eps_outside for part in outside.children())
    sparse = MatrixAttention(**{**SIZES, **SQUARE}, u_type="sparse", sparse_bandwidth=2)
    assert all(torch.equal(part.u_mask.sum(1), torch.tensor([1.0, 2, 2, 2, 2, 2])) for part in sparse.children())


def test_repr():
    lines = repr(create()).splitlines()
    assert lines[:2] == ["MatrixAttention(", "  num_row_heads=3, num_col_heads=2"]
    assert lines[2] == "  (linear_q): MatrixLinear((5, 12) -> (4, 12), u_type=param, bias_type=matrix)"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_row_heads=5), "MatrixAttention: num_row_heads must divide dim = 12, got 5"),
        (dict(num_row_heads=0), "MatrixAttention: num_row_heads must divide dim = 12, got 0"),
        (dict(num_col_heads=3), "MatrixAttention: num_col_heads must divide qk_col_dim = 4, got 3"),
        (dict(num_col_heads=4), "MatrixAttention: num_col_heads must divide v_col_dim = 6, got 4"),
        (dict(num_col_heads=-1), "MatrixAttention: num_col_heads must divide qk_col_dim = 4, got -1"),
        (dict(u_type="none"), "MatrixLinear: u_type must be one of .*, got 'none'"),
        (dict(bias_type="none"), "MatrixLinear: bias_type must be one of .*, got 'none'"),
        (dict(u_type="identity"), "MatrixLinear: u_type 'identity' keeps the number of tokens, got 5 in and 4 out"),
    ],
)
def test_rejects_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MatrixAttention(**{**SIZES, **options})


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 3, N + 1, D), r"matrix_linear: u must be \[N, M\] with N = x.size\(-2\) = 6, got \[5, 4\]"),
        ((2, 3, N, D + 1), r"matrix_linear: w must be \[D, E\] with D = x.size\(-1\) = 13, got \[12, 12\]"),
        ((3, N, D), r"matrix_attention: query must be \[B, T, M, D\], got \[3, 4, 12\]"),
    ],
)
def test_rejects_frames_of_another_size(shape, message):
    with pytest.raises(RuntimeError, match=message):
        create()(randn(*shape))
