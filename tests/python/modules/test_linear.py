"""Linear: the same layer, whichever of torch and matrix_linear multiplies."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

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


# ---- What the operator knows nothing of ------------------------------------------------------------------------------


class Quantized(torch.Tensor):
    """Weights as quantization leaves them: parts with a linear layer of their own, and no operator besides."""

    parts: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, parts, scale):
        return Tensor._make_wrapper_subclass(cls, parts.shape, dtype=scale.dtype)

    def __init__(self, parts, scale):
        self.parts, self.scale = parts, scale

    def __repr__(self):  # dynamo logs it; Tensor's own would calculate
        return f"Quantized({self.parts}, {self.scale})"

    def __tensor_flatten__(self):
        return ["parts", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, tensors, context, size, stride):
        return cls(tensors["parts"], tensors["scale"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.parts.to(x.dtype) * weight.scale, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].parts, args[0].scale)
        raise NotImplementedError(function)


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(linear, "_SLOW", frozenset(DTYPES))
    return Linear(3, 2, dtype=torch.float64)


X = randn(3, 4, 3)


def twin_of(layer):
    return functools.partial(nn.functional.linear, weight=layer.weight, bias=layer.bias)


@pytest.fixture(params=["eager", "compiled"])
def run(request):
    """Functions as they are or compiled, without graph breaks."""
    torch._dynamo.reset()
    compiled = request.param == "compiled"
    return lambda function: torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function


def test_quantized_weights(layer, run):
    parts, scale = torch.tensor([[3, -2, 1], [5, 0, 7]], dtype=torch.int8), torch.tensor([[0.25], [0.5]]).double()
    assert called(lambda: layer(X)) == linear.has_block_gemm(X)
    layer.weight = nn.Parameter(Quantized(parts, scale), requires_grad=False)
    torch.testing.assert_close(run(layer)(X), X @ (parts * scale).T + layer.bias)


TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "gradients of samples": lambda f, x: torch.func.vmap(torch.func.grad(lambda x: f(x).pow(3).sum()))(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).pow(3).sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(layer, run, transform):
    ours, theirs = (run(lambda x, f=f: TRANSFORMS[transform](f, x))(X) for f in (layer, twin_of(layer)))
    torch.testing.assert_close(ours, theirs)


def test_torch_func_gradients_of_parameters(layer):
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)
    out = layer(X).detach()
    torch.testing.assert_close(gradients["weight"], 2 * out.mT @ X)
    torch.testing.assert_close(gradients["bias"], 2 * out.sum(1))


@pytest.mark.parametrize("dual", ["x", "weight", "bias"])
def test_forward_mode(layer, run, dual):
    values = {"x": X, "weight": layer.weight.detach(), "bias": layer.bias.detach()}
    layer.requires_grad_(False)

    def of(values):
        return torch.func.functional_call(layer, {name: values[name] for name in ("weight", "bias")}, (values["x"],))

    def tangent(values):
        with forward_ad.dual_level():
            made = values | {dual: forward_ad.make_dual(values[dual], values[dual].cos())}
            return forward_ad.unpack_dual(of(made)).tangent

    expected = {
        "x": X.cos() @ layer.weight.T,
        "weight": X @ layer.weight.cos().T,
        "bias": layer.bias.cos().expand(3, 4, 2),
    }
    torch.testing.assert_close(run(tangent)(values), expected[dual])


def test_compiled_within_a_level_of_forward_mode(layer):
    """Dynamo sees no tangents, only the level."""
    torch._dynamo.reset()
    layer.requires_grad_(False)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), twin_of(layer)(X))
    weight = layer.weight.detach().clone()
    del layer.weight
    with forward_ad.dual_level():
        layer.weight = forward_ad.make_dual(weight, weight.cos())
        tangent = forward_ad.unpack_dual(compiled(X)).tangent
    torch.testing.assert_close(tangent, X @ weight.cos().T)


def test_second_derivatives(layer):
    x = X.clone().requires_grad_()
    inputs = [x, *layer.parameters()]

    def second(function):
        gradients = torch.autograd.grad(function(x).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)

    torch.testing.assert_close(second(layer), second(twin_of(layer)))
    for product in (torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        ours, theirs = (product(lambda x, f=f: f(x).pow(3).sum(), X, X.cos()) for f in (layer, twin_of(layer)))
        torch.testing.assert_close(ours, theirs)
    assert called(lambda: second(layer)) == linear.has_block_gemm(X)
