"""MatrixLinear: every form of U and of the bias against the formula, and how a fresh layer starts."""

import math

import pytest
import torch

from frameattn.modules import BIAS_TYPES, U_TYPES, MatrixLinear
from oracle import randn

N, D, M, E = 7, 6, 5, 4
RANK = 16  # of col_row


def create(u_type="param", bias_type="matrix", seed=0, **options) -> MatrixLinear:
    """A float64 layer whose parameters are all random."""
    m = N if u_type in ("identity", "sparse") else M
    layer = MatrixLinear((N, D), (m, E), u_type=u_type, bias_type=bias_type, **options).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(layer.named_parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i))
            if name == "u_temperature":
                parameter.abs_().add_(0.5)
    return layer


def u_of(layer: MatrixLinear, sparse_bandwidth: int = 16) -> torch.Tensor:
    u = layer.u
    match layer.u_type:
        case "softmax":
            weights = torch.exp(u / layer.u_temperature)
            return weights / weights.sum(0)
        case "pure-softmax":
            return torch.exp(u) / torch.exp(u).sum(0)
        case "normalized_l1":
            return u / (u.abs().sum(0) + 1e-6)
        case "normalized_l2":
            return u / (u.square().sum(0).sqrt() + 1e-6)
        case "identity":
            return torch.eye(N).double()
        case "sparse":
            half = sparse_bandwidth // 2
            kept = [[i - half <= j <= i + half - 1 for j in range(N)] for i in range(N)]
            return torch.where(torch.tensor(kept), u, 0)
    return u


def bias_of(layer: MatrixLinear) -> torch.Tensor:
    if layer.bias_type == "col_row":
        return torch.einsum("mr,re->me", layer.bias_col, layer.bias_row)
    return layer.bias if layer.bias_type else torch.zeros(1, 1).double()


def forward_of(layer: MatrixLinear, x: torch.Tensor, **options) -> torch.Tensor:
    return torch.einsum("nm,...nd,de->...me", u_of(layer, **options), x, layer.w) + bias_of(layer)


@pytest.mark.parametrize("bias_type", BIAS_TYPES)
@pytest.mark.parametrize("u_type", U_TYPES)
def test_matches_the_formula(u_type, bias_type):
    options = dict(sparse_bandwidth=4) if u_type == "sparse" else {}
    layer = create(u_type, bias_type, **options)
    x = randn(2, 3, N, D, seed=50)
    out, exact = layer(x), forward_of(layer, x, **options)
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)
    weight = randn(*out.shape, seed=51)
    parameters = list(layer.parameters())
    for ours, theirs, (name, _) in zip(
        torch.autograd.grad(out, parameters, weight),
        torch.autograd.grad(exact, parameters, weight),
        layer.named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("bias_type", BIAS_TYPES)
def test_without_bias(bias_type):
    layer = create(bias_type=bias_type, bias=False)
    assert list(layer.state_dict()) == ["u", "w"]
    assert layer.bias is None and layer.bias_type is None and layer.bias_matrix() is None
    x = randn(3, N, D)
    torch.testing.assert_close(layer(x), layer.u.T @ x @ layer.w)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 3), (0, 3)])
def test_any_leading_sizes_and_strides(leading):
    layer = create("softmax", "row")
    x = randn(*leading, D, N).transpose(-1, -2)
    assert layer(x).shape == (*leading, M, E)
    torch.testing.assert_close(layer(x), forward_of(layer, x))


@pytest.mark.parametrize("u_type", ["normalized_l1", "normalized_l2"])
def test_u_norm_eps_outside(u_type):
    inside, outside = create(u_type), create(u_type, u_norm_eps_outside=True)
    with torch.no_grad():  # a column small enough for the 1e-6 to matter either way
        for layer in (inside, outside):
            layer.u[:, 0] *= 1e-6
    u = inside.u.detach()
    norm = u.abs().sum(0) if u_type == "normalized_l1" else u.square().sum(0).sqrt()
    torch.testing.assert_close(inside.mixing_matrix(), u / (norm + 1e-6), rtol=1e-12, atol=0)
    torch.testing.assert_close(outside.mixing_matrix(), u / norm + 1e-6, rtol=1e-12, atol=0)
    assert (inside.mixing_matrix() - outside.mixing_matrix()).abs().max() > 0.01


@pytest.mark.parametrize("u_type", ["normalized_l1", "normalized_l2"])
def test_a_column_of_zeros_is_no_division_by_zero(u_type):
    layer = create(u_type)
    with torch.no_grad():
        layer.u[:, 1] = 0
    layer(randn(2, N, D)).sum().backward()
    assert layer.mixing_matrix()[:, 1].eq(0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("u_type", ["softmax", "pure-softmax"])
def test_softmax_mixes_tokens_with_weights_that_sum_to_one(u_type):
    u = create(u_type).mixing_matrix()
    torch.testing.assert_close(u.sum(0), torch.ones(M).double())
    hot = create(u_type)
    with torch.no_grad():
        hot.u.mul_(1e4)  # exp would overflow
    assert hot.mixing_matrix().isfinite().all()


@pytest.mark.parametrize("bias_type", ["matrix", "col_row"])
@pytest.mark.parametrize(
    "u_type, u_norm_eps_outside",
    [*((u_type, False) for u_type in U_TYPES), ("normalized_l1", True), ("normalized_l2", True)],
)
def test_gradcheck_float64(u_type, u_norm_eps_outside, bias_type):
    n, m = 3, 3 if u_type in ("identity", "sparse") else 2
    options = dict(sparse_bandwidth=2, u_norm_eps_outside=u_norm_eps_outside)
    layer = MatrixLinear((n, 2), (m, 3), u_type=u_type, bias_type=bias_type, **options).double()
    names = [name for name, _ in layer.named_parameters()]
    values = [randn(*p.shape, seed=i).abs().add(0.3) for i, p in enumerate(layer.parameters())]

    def forward(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, [v.requires_grad_() for v in (randn(2, n, 2, seed=9), *values)])


@pytest.mark.parametrize("bandwidth", [2, 3, 4, 6, 16])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_sparse_keeps_its_band(n, bandwidth):
    layer = MatrixLinear((n, 2), (n, 2), u_type="sparse", sparse_bandwidth=bandwidth)
    with torch.no_grad():
        layer.u.fill_(3.0)
    u = layer.mixing_matrix()
    for i in range(n):
        kept = range(max(0, i - bandwidth // 2), min(n, i + bandwidth // 2))  # i - w//2 .. i + w//2 - 1
        assert u[i].nonzero().flatten().tolist() == list(kept)
    assert set(u.unique().tolist()) <= {0.0, 3.0}
    layer(torch.randn(2, n, 2)).square().sum().backward()
    assert layer.u.grad[layer.u_mask == 0].eq(0).all()


def test_identity_is_a_persistent_buffer():
    layer = create("identity")
    assert torch.equal(layer.u, torch.eye(N).double())
    assert "u" in dict(layer.named_buffers()) and "u" not in dict(layer.named_parameters())
    with torch.no_grad():
        layer.u.mul_(2)
    fresh = create("identity")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.u, 2 * torch.eye(N).double())


@pytest.mark.parametrize(
    "u_type, bias_type, names",
    [
        ("param", "matrix", {"u": (N, M), "w": (D, E), "bias": (M, E)}),
        ("param", "row", {"u": (N, M), "w": (D, E), "bias": (1, E)}),
        ("param", "col", {"u": (N, M), "w": (D, E), "bias": (M, 1)}),
        ("pure-softmax", "col_row", {"u": (N, M), "w": (D, E), "bias_col": (M, RANK), "bias_row": (RANK, E)}),
        ("softmax", "matrix", {"u": (N, M), "u_temperature": (1, M), "w": (D, E), "bias": (M, E)}),
        ("normalized_l1", "matrix", {"u": (N, M), "w": (D, E), "bias": (M, E)}),
        ("normalized_l2", "matrix", {"u": (N, M), "w": (D, E), "bias": (M, E)}),
        ("identity", "matrix", {"u": (N, N), "w": (D, E), "bias": (N, E)}),
        ("sparse", "matrix", {"u": (N, N), "u_mask": (N, N), "w": (D, E), "bias": (N, E)}),
    ],
)
def test_names_and_shapes_of_the_state_dict(u_type, bias_type, names):
    layer = create(u_type, bias_type)
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == names
    buffers = {"identity": {"u"}, "sparse": {"u_mask"}}.get(u_type, set())
    assert {name for name, _ in layer.named_buffers()} == buffers


def assert_fills(tensor, bound):
    """Uniform between -bound and bound."""
    assert tensor.abs().max() <= bound
    assert tensor.max() > 0.9 * bound and tensor.min() < -0.9 * bound
    assert abs(tensor.mean().item()) < 0.1 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("u_type", U_TYPES)
def test_fresh_layer(u_type):
    torch.manual_seed(0)
    n, m = (40, 40) if u_type in ("identity", "sparse") else (60, 20)
    layer = MatrixLinear((n, 30), (m, 50), u_type=u_type, bias_type="col_row")
    assert_fills(layer.w, math.sqrt(6 / (30 + 50)))
    if u_type == "identity":
        assert torch.equal(layer.u, torch.eye(n))
    else:
        assert_fills(layer.u, math.sqrt(6 / (n + m)))
    if u_type == "softmax":
        assert torch.equal(layer.u_temperature, torch.ones(1, m))
    assert_fills(layer.bias_col, 1 / math.sqrt(RANK))  # Kaiming uniform with a = sqrt(5)
    assert not layer.bias_row.any()
    assert not layer.bias_matrix().any()


@pytest.mark.parametrize("bias_type", ["matrix", "row", "col"])
def test_fresh_bias_is_zero_and_reset_parameters_starts_again(bias_type):
    layer = create("softmax", bias_type)
    assert layer.bias.all()
    layer.reset_parameters()
    assert not layer.bias.any()
    assert layer.u_temperature.eq(1).all()
    assert layer.w.abs().max() <= math.sqrt(6 / (D + E))


@pytest.mark.parametrize("bias_type", ["matrix", "col_row"])
@pytest.mark.parametrize("u_type", U_TYPES)
def test_device_and_dtype(u_type, bias_type):
    sizes = (N, D), (N, E)
    layer = MatrixLinear(*sizes, u_type=u_type, bias_type=bias_type, device="meta", dtype=torch.bfloat16)
    for name, tensor in layer.state_dict().items():
        assert (tensor.device.type, tensor.dtype) == ("meta", torch.bfloat16), name
    out = layer(torch.empty(2, 3, N, D, device="meta", dtype=torch.bfloat16))
    assert (out.shape, out.device.type, out.dtype) == ((2, 3, N, E), "meta", torch.bfloat16)
    with torch.device("meta"):
        assert all(t.is_meta for t in MatrixLinear(*sizes, u_type=u_type, bias_type=bias_type).state_dict().values())
    half = MatrixLinear(*sizes, u_type=u_type, bias_type=bias_type, dtype=torch.float16)
    assert all(t.dtype == torch.float16 for t in half.state_dict().values())
    assert half(randn(2, N, D, dtype=torch.float16)).isfinite().all()


def test_extra_repr():
    assert repr(create("softmax", "col")) == "MatrixLinear((7, 6) -> (5, 4), u_type=softmax, bias_type=col)"
    assert create(bias=False).extra_repr() == "(7, 6) -> (5, 4), u_type=param, bias_type=None"


@pytest.mark.parametrize("bias_type", ["matrix", "col_row"])
@pytest.mark.parametrize("u_type", U_TYPES)
def test_autocast(u_type, bias_type):
    exact = create(u_type, bias_type)
    layer = create(u_type, bias_type).float()
    x = randn(2, 3, N, D, seed=50)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.float())
    assert out.dtype == torch.bfloat16
    wanted = exact(x)
    assert (out - wanted).abs().max() < 0.02 * wanted.abs().max()
    out.float().square().sum().backward()
    wanted.square().sum().backward()
    for (name, ours), theirs in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs.grad).abs().max() < 0.05 * theirs.grad.abs().max(), name


@pytest.mark.parametrize("u_type, bias_type", [("softmax", "col_row"), ("normalized_l2", "matrix"), ("sparse", "row")])
def test_compile(u_type, bias_type):
    layer = create(u_type, bias_type)
    x = randn(2, 3, N, D, seed=50, requires_grad=True)
    inputs = [x, *layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    for ours, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), inputs),
        torch.autograd.grad(layer(x).square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(u_type="soft"), r"MatrixLinear: u_type must be one of param, softmax, .*, sparse, got 'soft'"),
        (dict(bias_type="rows"), r"MatrixLinear: bias_type must be one of matrix, row, col, col_row, got 'rows'"),
        (dict(bias_type="rows", bias=False), r"MatrixLinear: bias_type must be one of .*, got 'rows'"),
        (dict(u_type="identity"), r"MatrixLinear: u_type 'identity' keeps the number of tokens, got 7 in and 5 out"),
        (
            dict(u_type="sparse", sparse_bandwidth=1),
            r"MatrixLinear: u_type 'sparse' keeps the number of tokens, got 7 in and 5 out",
        ),
    ],
)
def test_rejects_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MatrixLinear((N, D), (M, E), **options)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 9, D), r"matrix_linear: u must be \[N, M\] with N = x.size\(-2\) = 9, got \[7, 5\]"),
        ((2, N, 9), r"matrix_linear: w must be \[D, E\] with D = x.size\(-1\) = 9, got \[6, 4\]"),
        ((D,), r"matrix_linear: x must be \[\.\.\., N, D\], got \[6\]"),
    ],
)
def test_rejects_frames_of_another_size(shape, message):
    with pytest.raises(RuntimeError, match=message):
        create()(randn(*shape))


def test_rejects_a_band_of_nothing():
    with pytest.raises(ValueError, match="MatrixLinear: sparse_bandwidth must be at least 2, got 1"):
        MatrixLinear((N, D), (N, E), u_type="sparse", sparse_bandwidth=1)


@pytest.mark.parametrize("u_type", ["identity", "sparse"])
def test_reset_parameters_fills_the_buffers_too(u_type):
    layer, expected = (MatrixLinear((N, D), (N, E), u_type=u_type, sparse_bandwidth=4) for _ in range(2))
    for buffer in layer.buffers():
        buffer.fill_(torch.nan)
    layer.reset_parameters()
    for ours, theirs in zip(layer.buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, theirs)
