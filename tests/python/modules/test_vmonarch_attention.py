"""VMonarchAttention against the same composition of reference.vmonarch_attention or of softmax attention."""

import math

import pytest
import torch

from frameattn import reference
from frameattn.modules import ATTENTIONS, VMonarchAttention
from oracle import randn

D, HEADS, FRAMES, POSITIONS = 24, 3, 3, 5
TOKENS, SIZE = FRAMES * POSITIONS, D // HEADS


def create(seed=0, **options):
    """A float64 layer whose parameters are all random."""
    layer = VMonarchAttention(D, HEADS, **options).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i) * 0.5)
    return layer


def angles(*sizes, seed=50):
    """cos and sin that differ in all channels, so that a wrong half shows."""
    return randn(*sizes, seed=seed).cos(), randn(*sizes, seed=seed).sin()


def forward_of(layer, x, frames, rotary=None):
    packed = x @ layer.qkv.weight.T
    if layer.qkv.bias is not None:
        packed = packed + layer.qkv.bias
    query, key, value = (y.unflatten(2, (HEADS, SIZE)).permute(0, 2, 1, 3) for y in packed.split(D, dim=2))
    if "norm_q.weight" in layer.state_dict():
        query = query / torch.sqrt((query**2).mean(-1, keepdim=True) + 1e-6) * layer.norm_q.weight
        key = key / torch.sqrt((key**2).mean(-1, keepdim=True) + 1e-6) * layer.norm_k.weight
    if rotary is not None:
        query, key = (rotated(y, *rotary) for y in (query, key))
    if layer.attention == "dense":
        out = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(SIZE), dim=-1) @ value
    else:
        options = {name: getattr(layer, name) for name in ("iterations", "dense_first_frame", "mass_floor")}
        out = reference.vmonarch_attention(query, key, value, frames, **options)
    return out.permute(0, 2, 1, 3).reshape(x.shape) @ layer.proj.weight.T + layer.proj.bias


def rotated(x, cos, sin):
    """Channel by channel: c turns with c + d / 2."""
    cos, sin = cos.expand(x.shape), sin.expand(x.shape)
    half, out = SIZE // 2, []
    for c in range(SIZE):
        partner = -x[..., c + half] if c < half else x[..., c - half]
        out.append(x[..., c] * cos[..., c] + partner * sin[..., c])
    return torch.stack(out, dim=-1)


def check(layer, frames=FRAMES, rotary=None):
    x = randn(2, TOKENS, D, seed=9, requires_grad=True)
    inputs = [x, *layer.parameters()]
    out, exact = layer(x, frames, rotary), forward_of(layer, x, frames, rotary)
    assert out.shape == x.shape
    torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-11)
    grad = randn(*out.shape, seed=77)
    ours, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(exact, inputs, grad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_matches_composition_of_references(attention, bias):
    for frames in (1, FRAMES, TOKENS):
        check(create(attention=attention, bias=bias), frames)


@pytest.mark.parametrize(
    "options", [dict(iterations=1), dict(iterations=3), dict(dense_first_frame=False), dict(mass_floor=0.9)]
)
def test_passes_its_options_on(options):
    layer, x = create(**options), randn(2, TOKENS, D, seed=9)
    check(layer)
    assert (layer(x, FRAMES) - create()(x, FRAMES)).abs().max() > 1e-6


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_qk_norm_and_rotary_match_their_formulas(attention):
    check(create(attention=attention, qk_norm=True))
    for sizes in [(TOKENS, SIZE), (1, SIZE), (HEADS, 1, SIZE), (2, 1, TOKENS, SIZE), (2, HEADS, TOKENS, SIZE)]:
        check(create(attention=attention, qk_norm=sizes[0] == 2), rotary=angles(*sizes))


def test_rotary_depends_on_differences_of_positions_only():
    layer, x = create(attention="dense"), randn(2, TOKENS, D, seed=9)

    def at(start):
        turn = torch.outer(torch.arange(start, start + TOKENS).double(), 0.3 ** torch.arange(SIZE // 2).double())
        turn = torch.cat([turn, turn], dim=-1)
        return layer(x, FRAMES, (turn.cos(), turn.sin()))

    torch.testing.assert_close(at(0), at(7))
    assert (at(0) - layer(x, FRAMES)).abs().max() > 1e-3


def test_attention_is_switched_with_the_same_parameters():
    layer, x = create(qk_norm=True), randn(2, TOKENS, D, seed=9)
    dense = create(seed=20, qk_norm=True, attention="dense")
    names = ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "norm_q.weight", "norm_k.weight"]
    assert list(layer.state_dict()) == list(dense.state_dict()) == names
    dense.load_state_dict(layer.state_dict())
    monarch = layer(x, FRAMES)
    assert (monarch - dense(x, FRAMES)).abs().max() > 1e-4
    torch.testing.assert_close(layer(x, 1), dense(x, 1))
    layer.attention, dense.attention = "dense", "vmonarch"
    assert torch.equal(dense(x, FRAMES), monarch)
    torch.testing.assert_close(layer(x, FRAMES), forward_of(layer, x, FRAMES))


def test_parameters():
    layer = VMonarchAttention(D, HEADS, bias=False, qk_norm=True, device="meta", dtype=torch.float16)
    assert list(layer.state_dict()) == ["qkv.weight", "proj.weight", "proj.bias", "norm_q.weight", "norm_k.weight"]
    assert list(VMonarchAttention(D, HEADS, bias=False).state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]
    assert all(p.is_meta and p.dtype == torch.float16 for p in layer.parameters())
    x = torch.empty(2, TOKENS, D, device="meta", dtype=torch.float16)
    assert layer(x, FRAMES).shape == x.shape
    expected = "num_heads=3, attention='vmonarch', iterations=2, dense_first_frame=True, mass_floor=0.1"
    assert layer.extra_repr() == expected


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_query_key_and_value_are_views_of_the_projection(monkeypatch, attention):
    layer, seen = create(attention=attention), []
    monkeypatch.setattr(layer, "attend", lambda *inputs: seen.extend(inputs[:3]) or inputs[0])
    layer(randn(2, TOKENS, D), FRAMES)
    assert len({x.untyped_storage().data_ptr() for x in seen}) == 1
    assert all(x.stride() == (TOKENS * 3 * D, SIZE, 3 * D, 1) for x in seen)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_non_contiguous_and_no_clips(attention):
    layer, x = create(attention=attention), randn(D, TOKENS, 2).permute(2, 1, 0)
    torch.testing.assert_close(layer(x, FRAMES), layer(x.contiguous(), FRAMES))
    empty = randn(0, TOKENS, D, requires_grad=True)
    layer(empty, FRAMES).sum().backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_autocast_and_bfloat16(attention, qk_norm):
    x, rotary = randn(2, TOKENS, D), angles(TOKENS, SIZE)
    exact = create(attention=attention, qk_norm=qk_norm)(x, FRAMES, rotary)
    rotary = [y.float() for y in rotary]
    layer = create(attention=attention, qk_norm=qk_norm).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x.float(), FRAMES, rotary)
    mixed.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    half = create(attention=attention, qk_norm=qk_norm).bfloat16()(x.bfloat16(), FRAMES, rotary)
    for out in (mixed, half):
        assert out.dtype == torch.bfloat16
        assert (out - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compile(attention):
    layer, x = create(attention=attention, qk_norm=True), randn(2, TOKENS, D, requires_grad=True)
    compiled, rotary = torch.compile(layer, fullgraph=True, backend="aot_eager"), angles(TOKENS, SIZE)
    inputs, grad = [x, *layer.parameters()], randn(2, TOKENS, D, seed=77)
    results = []
    for function in (compiled, layer):
        out = function(x, FRAMES, rotary)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    layer.attention = next(other for other in ATTENTIONS if other != attention)
    torch.testing.assert_close(compiled(x, FRAMES, rotary), layer(x, FRAMES, rotary))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=5), "num_heads must divide dim = 24, got 5"),
        (dict(num_heads=0), "num_heads must divide dim = 24, got 0"),
        (dict(attention="sparse"), "attention must be one of vmonarch, dense, got 'sparse'"),
        (dict(iterations=0), "iterations must be at least 1, got 0"),
        (dict(workspace_bytes=-1), "workspace_bytes must be at least 0, got -1"),
        (dict(mass_floor=0.0), "mass_floor must be more than 0, got 0.0"),
        (dict(mass_floor=math.nan), "mass_floor must be more than 0, got nan"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=f"^VMonarchAttention: {message}$"):
        VMonarchAttention(D, **{"num_heads": HEADS, **options})


def test_rejects_another_attention_later():
    layer = create()
    with pytest.raises(ValueError, match="VMonarchAttention: attention must be one of vmonarch, dense, got None"):
        layer.attention = None
    assert layer.attention == "vmonarch"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_rejects_inputs(attention):
    layer, x, (cos, sin) = create(attention=attention), randn(2, TOKENS, D), angles(TOKENS, SIZE)

    def rejects(message, *inputs, layer=layer):
        with pytest.raises(ValueError) as error:
            layer(*inputs)
        assert str(error.value) == f"VMonarchAttention: {message}"

    rejects("x must be [B, N, 24], got [2, 15, 23]", x[..., 1:], FRAMES)
    rejects("x must be [B, N, 24], got [15, 24]", x[0], FRAMES)
    rejects("frames must divide the 15 tokens of x, got 4", x, 4)
    rejects("frames must divide the 15 tokens of x, got 0", x, 0)
    shape = "must be [15, 8] or broadcast to [2, 3, 15, 8], got"
    rejects(f"rotary cos {shape} [15, 4]", x, FRAMES, (cos[:, :4], sin))
    rejects(f"rotary sin {shape} [14, 8]", x, FRAMES, (cos, sin[1:]))
    rejects(f"rotary sin {shape} [1, 1, 1, 15, 8]", x, FRAMES, (cos, sin[None, None, None]))
    odd = VMonarchAttention(D, 8, attention=attention).double()
    rejects("rotary needs an even number of channels a head, got 3", x, FRAMES, (cos, sin), layer=odd)
