import pytest
import torch

from frameattn import functional, reference
from oracle import DTYPES, assert_close, check_against_reference, randn

OPS = torch.ops.frameattn
# B, T, N, D: odd, prime, one row, one column, rows of several pieces of the sums
SHAPES = [(2, 3, 5, 8), (1, 17, 7, 13), (1, 1, 1, 1), (3, 1, 2, 65), (1, 2, 201, 33), (2, 3, 1, 384)]
OF = ["clips", "one frame", "frames"]


def modulation_of(shape, of, **options):
    b, t, _, d = shape
    return randn(*{"clips": (b, d), "one frame": (b, 1, d), "frames": (b, t, d)}[of], **options)


def norm_inputs(shape, of="clips", dtype=torch.float64, **options):
    modulations = (modulation_of(shape, of, dtype=dtype, seed=i, **options) for i in (1, 2))
    return [randn(*shape, dtype=dtype, **options), *modulations]


def gate_inputs(shape, of="clips", dtype=torch.float64, **options):
    gate = modulation_of(shape, of, dtype=dtype, seed=1, **options)
    return [randn(*shape, dtype=dtype, **options), gate, randn(*shape, dtype=dtype, seed=2, **options)]


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_match_reference(shape, dtype, of):
    check_against_reference(
        functional.modulated_layer_norm, reference.modulated_layer_norm, norm_inputs(shape, of, dtype)
    )
    check_against_reference(functional.gated_add, reference.gated_add, gate_inputs(shape, of, dtype))


@pytest.mark.parametrize("of", OF)
def test_gradcheck(of):
    for shape in ((2, 3, 2, 4), (1, 2, 70, 3)):
        options = dict(requires_grad=True)
        if of == "frames" and shape[2] > 2:
            continue
        assert torch.autograd.gradcheck(functional.modulated_layer_norm, norm_inputs(shape, of, **options))
        assert torch.autograd.gradcheck(functional.gated_add, gate_inputs(shape, of, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    for of in OF:
        options = dict(dtype=dtype, requires_grad=True)
        torch.library.opcheck(OPS.modulated_layer_norm.default, tuple(norm_inputs(SHAPES[0], of, **options)))
        torch.library.opcheck(OPS.gated_add.default, tuple(gate_inputs(SHAPES[0], of, **options)))
        x, shift, scale = norm_inputs(SHAPES[0], of, dtype)
        for out_dtype in (None, dtype):
            torch.library.opcheck(OPS.modulated_layer_norm_forward.default, (x, shift, scale, 1e-6, out_dtype))
        _, mean, rstd = OPS.modulated_layer_norm_forward(x, shift, scale, 1e-6, None)
        torch.library.opcheck(OPS.modulated_layer_norm_backward.default, (x, x, scale, mean, rstd))
        torch.library.opcheck(OPS.gated_add_forward.default, tuple(gate_inputs(SHAPES[0], of, dtype)))
        torch.library.opcheck(OPS.gated_add_backward.default, tuple(gate_inputs(SHAPES[0], of, dtype)))


def test_rows_may_lie_anywhere():
    x, shift, scale = norm_inputs((4, 3, 5, 8))
    views = [x.transpose(0, 1)[:, ::2], x.permute(2, 1, 0, 3), x.permute(3, 0, 1, 2)[..., :1].expand(8, 4, 3, 8)]
    wide = randn(4, 6 * 8, seed=7)
    for view in views:
        shift, scale = (part[: view.size(0)] for part in wide.repeat(2, 1).chunk(6, dim=-1)[2:4])
        check_against_reference(functional.modulated_layer_norm, reference.modulated_layer_norm, [view, shift, scale])
        y = randn(*view.shape, seed=3).transpose(0, 1).contiguous().transpose(0, 1)
        check_against_reference(functional.gated_add, reference.gated_add, [view, scale, y])


def test_no_rows():
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        inputs = norm_inputs(shape, requires_grad=True)
        gradients = torch.autograd.grad(functional.modulated_layer_norm(*inputs).sum(), inputs)
        assert [g.shape for g in gradients] == [t.shape for t in inputs]
        assert all(g.eq(0).all() for g in gradients)
        inputs = gate_inputs(shape, requires_grad=True)
        gradients = torch.autograd.grad(functional.gated_add(*inputs).sum(), inputs)
        assert all(g.eq(0).all() for g in gradients)


def test_values_by_hand():
    x = torch.tensor([[[[1.0, 3.0]]], [[[4.0, 4.0]]]])  # normalised: -1, 1 and 0, 0
    shift, scale = torch.tensor([[10.0, 20.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [5.0, 5.0]])
    out = functional.modulated_layer_norm(x, shift, scale, eps=1e-12)
    torch.testing.assert_close(out, torch.tensor([[[[8.0, 23.0]]], [[[1.0, 2.0]]]]))
    # variance 1, eps 3: half as far from the mean
    out = functional.modulated_layer_norm(x, shift, scale, eps=3)
    torch.testing.assert_close(out[0], torch.tensor([[[9.0, 21.5]]]))
    gate = torch.tensor([[2.0, -1.0], [0.0, 0.5]])
    torch.testing.assert_close(functional.gated_add(x, gate, x), torch.tensor([[[[3.0, 0.0]]], [[[4.0, 6.0]]]]))


def test_a_frame_has_the_modulation_of_its_own():
    x, shift, scale = norm_inputs((2, 3, 4, 5), "frames")
    out = functional.modulated_layer_norm(x, shift, scale)
    for frame in range(3):
        alone = functional.modulated_layer_norm(x[:, frame : frame + 1], shift[:, frame], scale[:, frame])
        assert torch.equal(out[:, frame : frame + 1], alone)


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("modulation", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_modulation_may_have_different_dtypes(rows, modulation):
    shape = (2, 3, 5, 64)
    x, y = randn(*shape, dtype=rows), randn(*shape, dtype=modulation, seed=5)
    shift, scale = (modulation_of(shape, "clips", dtype=modulation, seed=i) for i in (1, 2))
    wide = [t.double() for t in (x, shift, scale, y)]
    for dtype in (None, torch.float32, torch.bfloat16):
        out = functional.modulated_layer_norm(x, shift, scale, dtype=dtype)
        assert out.dtype == (dtype or rows)
        exact = reference.modulated_layer_norm(*wide[:3])
        assert_close(out, exact.to(out.dtype), exact, f"to {dtype}", slack=2)
    inputs = [t.requires_grad_() for t in (x, scale, y)]
    out = functional.gated_add(*inputs)
    assert out.dtype == rows
    gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    assert_close(gradients[1], wide[3].sum((1, 2)).to(modulation), wide[3].sum((1, 2)), "gate", slack=2)


def test_autocast_rounds_once_and_lets_gradients_be():
    x, shift, scale = norm_inputs((2, 3, 5, 64), dtype=torch.float32, requires_grad=True)
    plain = functional.modulated_layer_norm(x, shift, scale)
    gradients = torch.autograd.grad(plain, (x, shift, scale), torch.ones_like(plain))
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.modulated_layer_norm(x, shift, scale)
        found = torch.autograd.grad(out, (x, shift, scale), torch.ones_like(out))
        assert functional.modulated_layer_norm(x.double(), shift.double(), scale.double()).dtype == torch.float64
        assert functional.modulated_layer_norm(x, shift, scale, dtype=torch.float32).dtype == torch.float32
        assert functional.gated_add(x, scale.bfloat16(), out).dtype == torch.float32
    assert torch.equal(out, plain.bfloat16())
    assert all(map(torch.equal, found, gradients))


def test_rows_far_from_zero_keep_their_digits():
    x, shift, scale = norm_inputs((1, 2, 3, 256), dtype=torch.float32)
    check_against_reference(
        functional.modulated_layer_norm, reference.modulated_layer_norm, [x + 1000, shift, scale], slack=2
    )


def test_results_do_not_depend_on_the_threads():
    def results():
        found = []
        for function, inputs in (
            (functional.modulated_layer_norm, norm_inputs((2, 5, 131, 96), dtype=torch.float32, requires_grad=True)),
            (functional.gated_add, gate_inputs((2, 5, 131, 96), dtype=torch.float32, requires_grad=True)),
        ):
            out = function(*inputs)
            found += [out, *torch.autograd.grad(out, inputs, randn(*out.shape, dtype=out.dtype, seed=9))]
        return found

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        assert all(map(torch.equal, one, results()))
    finally:
        torch.set_num_threads(before)


def test_backward_keeps_no_other_tensor_of_the_size_of_x():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        inputs = norm_inputs((2, 3, 5, 64), requires_grad=True)
        functional.modulated_layer_norm(*inputs)
    assert sorted(t.numel() for t in kept) == [2 * 3 * 5, 2 * 3 * 5, 2 * 64, inputs[0].numel()]


@pytest.mark.parametrize("of", OF)
def test_compile_in_one_graph(of):
    def block(x, shift, scale, y):
        return functional.gated_add(x, scale, functional.modulated_layer_norm(y, shift, scale))

    def expected(x, shift, scale, y):
        return reference.gated_add(x, scale, reference.modulated_layer_norm(y, shift, scale))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 5, 8), (3, 4, 6, 10)):
        check_against_reference(compiled, expected, [*norm_inputs(shape, of), randn(*shape, seed=4)])


def test_second_derivatives_are_refused():
    for function, inputs in (
        (functional.modulated_layer_norm, norm_inputs(SHAPES[0], requires_grad=True)),
        (functional.gated_add, gate_inputs(SHAPES[0], requires_grad=True)),
    ):
        gradient = torch.autograd.grad(function(*inputs).square().sum(), inputs[1], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="can be differentiated once"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=(3, 5, 8)), r"modulated_layer_norm: x must be \[B, T, N, D\], got \[3, 5, 8\]"),
        (dict(scale=(8,)), r"scale must be \[B, D\], \[B, 1, D\] or \[B, T, D\] with x .* = \[2, 3, 5, 8\], got \[8\]"),
        (dict(scale=(2, 5, 8)), r"scale must be .* got \[2, 5, 8\]"),
        (dict(scale=(3, 8)), r"scale must be .* got \[3, 8\]"),
        (dict(scale=(2, 7)), r"scale must be .* got \[2, 7\]"),
        (dict(scale=(2, 1, 8)), r"shift must have the sizes of scale, \[2, 1, 8\], got \[2, 8\]"),
        (dict(dtype=torch.int64), "x must be float64, float32, bfloat16 or float16, got Long"),
        (dict(modulation=torch.float64), "scale must be float64 where x is, got Double and Float"),
        (dict(device="meta"), "scale must be on the device of x, cpu, got meta; move one of them"),
    ],
)
def test_errors_of_the_norm(change, message):
    x = torch.zeros(change.get("x", SHAPES[0]), dtype=change.get("dtype", torch.float32))
    modulation = dict(dtype=change.get("modulation", torch.float32), device=change.get("device", "cpu"))
    scale = torch.zeros(change.get("scale", (2, 8)), **modulation)
    with pytest.raises(RuntimeError, match=message):
        functional.modulated_layer_norm(x, torch.zeros(2, 8, **modulation), scale)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_errors_of_the_dtype(device):
    x, shift, scale = (t.to(device) for t in norm_inputs(SHAPES[0]))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype must be float64 where x is, got .* and Double"):
            functional.modulated_layer_norm(x, shift, scale, dtype=dtype)
    x, shift, scale = x.float(), shift.float(), scale.float()
    with pytest.raises(RuntimeError, match="dtype must be float64 where x is, got Double and Float"):
        functional.modulated_layer_norm(x, shift, scale, dtype=torch.float64)
    for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(RuntimeError, match="dtype must be float64, float32, bfloat16 or float16, got"):
            functional.modulated_layer_norm(x, shift, scale, dtype=dtype)


def test_sums_of_many_rows_keep_their_digits():
    x, shift, scale = norm_inputs((1, 4, 50_000, 8), dtype=torch.float32)
    shift.requires_grad_()
    functional.modulated_layer_norm(x, shift, scale).backward(torch.full_like(x, 0.1))
    exact = 200_000 * torch.tensor(0.1).double()
    assert (shift.grad.double() - exact).abs().max() < 5e-6 * exact


def test_errors_of_the_gate():
    x, gate, y = gate_inputs(SHAPES[0])
    with pytest.raises(
        RuntimeError, match=r"gated_add: y must have the sizes of x, \[2, 3, 5, 8\], got \[2, 3, 1, 8\]"
    ):
        functional.gated_add(x, gate, y[:, :, :1])
    with pytest.raises(RuntimeError, match=r"gated_add: gate must be \[B, D\], .* got \[8\]"):
        functional.gated_add(x, gate[0], y)
    with pytest.raises(RuntimeError, match="gated_add: y must be float64 where x is, got Float and Double"):
        functional.gated_add(x, gate, y.float())
    with pytest.raises(RuntimeError, match="shift must have the dtype of scale, Half, got Float"):
        functional.modulated_layer_norm(x.float(), gate.float(), gate.half())
    with pytest.raises(RuntimeError, match=r"grad_out must have the sizes of x, \[2, 3, 5, 8\], got \[2, 3, 5, 4\]"):
        OPS.modulated_layer_norm_backward(x[..., :4], x, gate, x[..., 0], x[..., 0])
    with pytest.raises(RuntimeError, match=r"mean must have a number for each row of x, \[2, 3, 5\], got \[2, 3\]"):
        OPS.modulated_layer_norm_backward(x, x, gate, x[..., 0, 0], x[..., 0])
    with pytest.raises(RuntimeError, match="rstd must be Double, got Float"):
        OPS.modulated_layer_norm_backward(x, x, gate, x[..., 0], x[..., 0].float())
    with pytest.raises(RuntimeError, match="grad_out must have the sizes of y"):
        OPS.gated_add_backward(x[:1], gate, y)
