"""Linear: the same layer, whichever of torch and matrix_linear multiplies."""

import pytest
import torch
from torch import nn

from frameattn.modules import Linear, linear
from oracle import DTYPES, check_against_reference, randn

WAYS = {"torch": frozenset(), "matrix_linear": frozenset(DTYPES)}
CALLS = "frameattn::matrix_linear"


def called(function) -> bool:
    """Whether matrix_linear was."""
    with torch.profiler.profile() as profile:
        function()
    return any(event.name == CALLS for event in profile.events())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_is_torchs_layer(monkeypatch, way, dtype, bias):
    monkeypatch.setattr(linear, "_SLOW", WAYS[way])
    layer = Linear(13, 7, bias=bias, dtype=dtype)
    x = randn(2, 3, 13, dtype=dtype)
    assert called(lambda: layer(x)) == (way == "matrix_linear" and linear.has_block_gemm(x))

    def of(function):
        def call(x, weight, *bias):
            return function(x, weight, bias[0] if bias else None)

        return call

    def by_layer(x, weight, bias):
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, parameters, (x,))

    inputs = [x, *(p.detach() for p in layer.parameters())]
    check_against_reference(of(by_layer), of(nn.functional.linear), inputs, slack=2)


def test_autocast_and_rows_alone(monkeypatch):
    layer, x = Linear(13, 7), randn(3, 13, dtype=torch.float32)
    monkeypatch.setattr(linear, "_SLOW", frozenset({torch.bfloat16}))
    assert not called(lambda: layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert called(lambda: layer(x)) == linear.has_block_gemm(x)
        assert layer(x[0]).shape == (7,)
    with pytest.raises(RuntimeError):
        layer(x.bfloat16())  # as torch's: dtypes differ


def test_what_torch_multiplies_slowly(monkeypatch):
    for capability, has_bfloat16, has_float16, slow in (
        ("AVX512", True, False, {torch.float32, torch.float16}),
        ("AVX512", False, False, {torch.float32, torch.bfloat16, torch.float16}),
        ("AVX2", False, False, {torch.bfloat16, torch.float16}),
        ("AVX2", True, True, set()),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        for name, has in (("bf16", has_bfloat16), ("fp16", has_float16)):
            monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda has=has: has)
        assert linear._dtypes_that_torch_multiplies_slowly() == slow
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert linear._dtypes_that_torch_multiplies_slowly() == {torch.bfloat16, torch.float16}


def test_when_the_bias_is_summed_beside_a_product_on_cuda(monkeypatch):
    def asked(layer=None, x=None, **options):
        layer = layer or Linear(4, 3, dtype=torch.bfloat16, **options)
        return layer._sums_bias_on_cuda(torch.zeros(8, 4, dtype=torch.bfloat16) if x is None else x)

    assert asked()
    assert not asked(bias=False)
    assert not asked(x=torch.zeros(3, 4, dtype=torch.bfloat16))  # few rows
    assert not asked(x=torch.zeros(8, 4))  # torch says what is wrong with it
    assert not asked(Linear(4, 3), torch.zeros(8, 4))  # float32: TF32 is not for every user
    with monkeypatch.context() as patched:  # torch.autocast("cuda") is none without a GPU
        patched.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        patched.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
        assert asked(Linear(4, 3), torch.zeros(8, 4))
    with torch.no_grad():
        assert not asked()
    for name in ("weight", "bias"):
        layer = Linear(4, 3, dtype=torch.bfloat16)
        getattr(layer, name).requires_grad_(False)
        assert not asked(layer)
    compiled = torch.compile(lambda x: torch.tensor(asked(x=x)), backend="eager")
    assert not compiled(torch.zeros(8, 4, dtype=torch.bfloat16))


def test_torch_func_has_torchs_layer(monkeypatch):
    monkeypatch.setattr(linear, "_SLOW", frozenset(DTYPES))
    layer, x = Linear(3, 2, dtype=torch.float64), randn(5, 3)
    slope = torch.func.grad(lambda x: layer(x).sum())(x)
    torch.testing.assert_close(slope, layer.weight.detach().sum(0).expand(5, 3))
    tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, layer.weight.detach().sum(1).expand(5, 2))
