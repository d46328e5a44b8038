"""SpatialAttention and TemporalAttention against softmax attention written out, on both of their ways."""

import math

import pytest
import torch

from frameattn.modules import SpatialAttention, TemporalAttention, attention
from oracle import randn

D, HEADS = 12, 3
LONG = attention.SHORT + 8
KINDS = [SpatialAttention, TemporalAttention]


def create(kind, seed=0, bias=True, heads=HEADS):
    """A float64 layer whose parameters are all random."""
    layer = kind(D, heads, bias=bias).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i) * 0.5)
    return layer


def forward_of(layer, x):
    """Per head, with the axis of the tokens or of the frames brought next to last."""
    packed = x @ layer.qkv.weight.T
    if layer.qkv.bias is not None:
        packed = packed + layer.qkv.bias
    packed = packed.unflatten(-1, (3, layer.num_heads, D // layer.num_heads))  # B T N 3 h d
    query, key, value = packed.unbind(3)
    equation = "btnhd,btmhd->btnhm" if isinstance(layer, SpatialAttention) else "btnhd,bsnhd->btnhs"
    logits = torch.einsum(equation, query, key) / math.sqrt(D // layer.num_heads)
    weights = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    equation = "btnhm,btmhd->btnhd" if isinstance(layer, SpatialAttention) else "btnhs,bsnhd->btnhd"
    return torch.einsum(equation, weights, value).flatten(3) @ layer.proj.weight.T + layer.proj.bias


def gradients(out, layer, x):
    return torch.autograd.grad(out, [x, *layer.parameters()], randn(*out.shape, seed=77))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, attention.SHORT, attention.SHORT + 1, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_softmax_attention(kind, tokens, bias):
    layer, x = create(kind, bias=bias), randn(2, 3, tokens, D, requires_grad=True)
    out, exact = layer(x), forward_of(layer, x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(gradients(out, layer, x), gradients(exact, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("heads", [1, 2, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_any_heads(kind, heads):
    layer, x = create(kind, heads=heads), randn(2, 3, 4, D)
    torch.testing.assert_close(layer(x), forward_of(layer, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [6, LONG])
def test_short_and_long_frames_take_different_ways_to_the_same_result(monkeypatch, tokens, dtype):
    layer = create(SpatialAttention).to(dtype)
    x = randn(2, 3, tokens, D, dtype=dtype).requires_grad_()
    results = []
    for short in (0, tokens):
        monkeypatch.setattr(attention, "SHORT", short)
        out = layer(x)
        ours = "MatrixAttention" in walk(out.grad_fn)
        assert ours == (short == tokens)
        results.append([out, *gradients(out, layer, x)])
    tolerance = 50 * torch.finfo(dtype).eps
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def walk(node) -> str:
    """The names of all steps of a backward, one behind the other."""
    return " ".join([node.name(), *(walk(inner) for inner, _ in node.next_functions if inner is not None)])


@pytest.mark.parametrize("tokens", [3, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_float64(kind, tokens):
    layer = create(kind)
    x = randn(1, 2, tokens, D, seed=5, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)


def test_each_attends_along_its_own_axis():
    x, other = randn(1, 3, 4, D), randn(1, 3, 4, D)
    other[:, 1] += 1
    other = torch.where(torch.arange(3).view(1, 3, 1, 1) == 1, other, x)  # frame 1 is another
    spatial, temporal = create(SpatialAttention), create(TemporalAttention)
    changed = (spatial(x) - spatial(other)).abs().amax((0, 2, 3)) > 1e-9
    assert changed.tolist() == [False, True, False]
    assert ((temporal(x) - temporal(other)).abs().amax((0, 2, 3)) > 1e-9).all()
    other = torch.where(torch.arange(4).view(4, 1) == 2, x + 1, x)  # token 2 of every frame is another
    changed = (temporal(x) - temporal(other)).abs().amax((0, 1, 3)) > 1e-9
    assert changed.tolist() == [False, False, True, False]
    assert ((spatial(x) - spatial(other)).abs().amax((0, 1, 3)) > 1e-9).all()


@pytest.mark.parametrize("tokens", [4, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous_and_no_clips(kind, tokens):
    layer, x = create(kind), randn(tokens, 2, D, 3).permute(1, 3, 0, 2)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    empty = randn(0, 3, tokens, D, requires_grad=True)
    assert layer(empty).shape == empty.shape
    layer(empty).sum().backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("tokens", [4, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_bfloat16(kind, tokens):
    x = randn(2, 3, tokens, D)
    exact = create(kind)(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = create(kind).float()(x.float())
    for out in (mixed, create(kind).bfloat16()(x.bfloat16())):
        assert out.dtype == torch.bfloat16
        assert (out - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("tokens", [4, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind, tokens):
    layer, x = create(kind), randn(2, 3, tokens, D, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    for ours, theirs in zip(gradients(compiled(x), layer, x), gradients(layer(x), layer, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters(kind):
    layer = kind(D, HEADS, device="meta", dtype=torch.float16)
    shapes = {name: list(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {"qkv.weight": [36, 12], "qkv.bias": [36], "proj.weight": [12, 12], "proj.bias": [12]}
    assert all(p.is_meta and p.dtype == torch.float16 for p in layer.parameters())
    x = torch.empty(2, 3, 4, D, device="meta", dtype=torch.float16)
    assert layer(x).shape == x.shape
    assert list(kind(D, HEADS, bias=False).state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]
    assert layer.extra_repr() == "num_heads=3"


@pytest.mark.parametrize("heads", [0, 5, -3])
@pytest.mark.parametrize("kind", KINDS)
def test_rejects_heads_that_do_not_divide(kind, heads):
    with pytest.raises(ValueError, match=f"{kind.__name__}: num_heads must divide dim = 12, got {heads}"):
        kind(D, heads)
