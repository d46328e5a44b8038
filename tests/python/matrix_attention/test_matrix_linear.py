import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from frameattn import _C, functional, reference
from oracle import DTYPES, check_against_reference, randn

OP = torch.ops.frameattn.matrix_linear.default
FORWARD = torch.ops.frameattn.matrix_linear_forward.default
BACKWARD = torch.ops.frameattn.matrix_linear_backward.default

# leading sizes, N, D, M, E: odd, prime, one, larger than any tile, left product first and right product first
SHAPES = [
    ((2, 3), 4, 6, 2, 5),
    ((1, 17), 7, 13, 31, 3),
    ((5,), 1, 1, 1, 1),
    ((), 6, 4, 3, 8),
    ((2, 1, 3), 16, 33, 8, 65),
]


def inputs_of(shape, bias=None, dtype=torch.float64, requires_grad=False):
    leading, n, d, m, e = shape
    sizes = [(*leading, n, d), (n, m), (d, e)]
    if bias:
        sizes.append({"matrix": (m, e), "row": (1, e), "col": (m, 1)}[bias])
    return [randn(*size, dtype=dtype, seed=i, requires_grad=requires_grad) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("bias", [None, "matrix", "row", "col"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, bias):
    check_against_reference(functional.matrix_linear, reference.matrix_linear, inputs_of(shape, bias, dtype))


def linear_inputs(shape, bias=None, dtype=torch.float64, requires_grad=False):
    """Without u: x, w and the bias of a layer that leaves the tokens as they are."""
    leading, n, d, _, e = shape
    x, _, *others = inputs_of((leading, n, d, n, e), bias, dtype, requires_grad)
    return [x, *others]


def without_u(function):
    return lambda x, w, bias=None: function(x, None, w, bias)


@pytest.mark.parametrize("bias", [None, "matrix", "row", "col"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference_without_u(shape, dtype, bias):
    inputs = linear_inputs(shape, bias, dtype)
    check_against_reference(without_u(functional.matrix_linear), without_u(reference.matrix_linear), inputs)


def test_without_u_gradcheck_opcheck_and_compile():
    inputs = linear_inputs(SHAPES[0], "row", requires_grad=True)
    assert torch.autograd.gradcheck(without_u(functional.matrix_linear), inputs)
    x, w, bias = inputs
    torch.library.opcheck(OP, (x, None, w, bias))
    x, w, bias = linear_inputs(SHAPES[0], "row")
    torch.library.opcheck(FORWARD, (x, None, w, bias, True))
    torch.library.opcheck(BACKWARD, (randn(2, 3, 4, 5), x, None, w, bias, None, [True, False, True, True]))
    compiled = torch.compile(without_u(functional.matrix_linear), fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in (SHAPES[0], ((4, 2), 5, 7, 3, 9)):
        check_against_reference(compiled, without_u(reference.matrix_linear), linear_inputs(shape, "row"))


def test_without_u_flops_and_errors():
    x, w = linear_inputs(SHAPES[0], requires_grad=True)  # 6 frames of 4 tokens, 6 -> 5 channels
    operations = counted(functional.matrix_linear, x, None, w)
    assert operations == 2 * 6 * 4 * 6 * 5
    assert counted(lambda: functional.matrix_linear(x, None, w).sum().backward()) == 3 * operations
    with pytest.raises(RuntimeError, match="without u there is no product, got one"):
        BACKWARD(randn(2, 3, 4, 5), x, None, w, None, x, [True, False, True, False])
    with pytest.raises(
        RuntimeError, match=r"bias must be \[M, E\], \[1, E\] or \[M, 1\] with M = 4, E = 5, got \[2, 5\]"
    ):
        functional.matrix_linear(x, None, w, torch.zeros(2, 5, dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.lists(st.integers(0, 3), max_size=2).map(tuple), *[st.integers(1, 20)] * 4),
    dtype=st.sampled_from(DTYPES),
    bias=st.sampled_from([None, "matrix", "row", "col"]),
    transposed=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_matches_reference_for_any_shape_and_strides(shape, dtype, bias, transposed):
    inputs = inputs_of(shape, bias, dtype)
    inputs = [t.mT.contiguous().mT if flip else t for t, flip in zip(inputs, transposed, strict=False)]
    check_against_reference(functional.matrix_linear, reference.matrix_linear, inputs, slack=2)


@pytest.mark.parametrize("bias", [None, "matrix", "row", "col"])
def test_gradcheck_float64(bias):
    for shape in (SHAPES[0], ((2,), 3, 2, 5, 2)):
        assert torch.autograd.gradcheck(functional.matrix_linear, inputs_of(shape, bias, requires_grad=True))


def test_gradient_only_where_it_is_asked_for():
    for wanted in itertools.product([False, True], repeat=4):
        inputs = [t.requires_grad_(w) for t, w in zip(inputs_of(SHAPES[0], "row"), wanted, strict=True)]
        exact = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        out = functional.matrix_linear(*inputs)
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.sum().backward()  # the gradient of a sum arrives expanded, with strides 0
            reference.matrix_linear(*exact).sum().backward()
        for ours, theirs in zip(inputs, exact, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    for bias in (None, "matrix"):
        inputs = inputs_of(SHAPES[0], bias, dtype, requires_grad=True)
        torch.library.opcheck(OP, tuple(inputs))
        for save in (False, True):
            torch.library.opcheck(FORWARD, (*inputs_of(SHAPES[0], None, dtype), None, save))
        plain = inputs_of(SHAPES[0], bias, dtype)
        grad = randn(2, 3, 2, 5, dtype=dtype)
        product = FORWARD(*plain[:3], None, True)[1]
        wanted = [True] * 3 + [bias is not None]
        torch.library.opcheck(BACKWARD, (grad, *plain[:3], plain[3] if bias else None, product, wanted))
        torch.library.opcheck(BACKWARD, (grad, *plain[:3], None, None, [True, False, False, False]))


def test_autocast_runs_in_its_dtype_and_gradients_do_not_depend_on_where_backward_is_called():
    def gradients(backward_inside):
        inputs = inputs_of(SHAPES[1], "matrix", torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = functional.matrix_linear(*inputs)
            assert out.dtype == torch.bfloat16
            if backward_inside:
                out.float().square().sum().backward()
        if not backward_inside:
            out.float().square().sum().backward()
        return [t.grad for t in inputs]

    for inside, outside in zip(gradients(True), gradients(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


def test_backward_inside_autocast_is_not_rounded():
    inputs = inputs_of(SHAPES[1], "matrix", torch.float32, requires_grad=True)
    out = functional.matrix_linear(*inputs)
    grad = torch.ones_like(out)
    outside = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(out, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_autocast_leaves_float64_alone():
    inputs = inputs_of(SHAPES[0], "matrix")
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.matrix_linear(*inputs).dtype == torch.float64


def test_compile_forward_and_backward_in_one_graph():
    compiled = torch.compile(functional.matrix_linear, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in (SHAPES[0], ((4, 2), 5, 7, 3, 9)):
        check_against_reference(compiled, reference.matrix_linear, inputs_of(shape, "matrix", torch.float32))


def test_export_with_a_dynamic_batch():
    class Layer(torch.nn.Module):
        def forward(self, x, u, w):
            return functional.matrix_linear(x, u, w).relu()

    x, u, w = inputs_of(SHAPES[0])
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Layer(), (x, u, w), dynamic_shapes=({0: batch}, None, None))
    larger = randn(7, 3, 4, 6, seed=9)
    torch.testing.assert_close(program.module()(larger, u, w), reference.matrix_linear(larger, u, w).relu())


def test_meta_and_inference_mode():
    inputs = inputs_of(SHAPES[0], "matrix")
    with torch.inference_mode():
        out = functional.matrix_linear(*inputs)
    meta = functional.matrix_linear(*(t.to("meta") for t in inputs))
    assert (meta.shape, meta.dtype, meta.stride()) == (out.shape, out.dtype, out.stride())
    torch.testing.assert_close(out.clone(), reference.matrix_linear(*inputs))


def test_non_contiguous_inputs_give_the_same_result():
    x, u, w, bias = inputs_of(((3, 5), 6, 8, 4, 10), "matrix")
    variants = [
        x.transpose(0, 1).contiguous().transpose(0, 1),  # frames before clips in memory
        x.mT.contiguous().mT,  # last stride not one
        torch.stack([x, x], -1)[..., 0],  # gaps between elements
        x[:, :1].expand(3, 5, 6, 8),  # stride 0 over frames
    ]
    for strided in variants:
        torch.testing.assert_close(
            functional.matrix_linear(
                strided, u.t().contiguous().t(), w.t().contiguous().t(), bias.t().contiguous().t()
            ),
            reference.matrix_linear(strided, u, w, bias),
        )


@pytest.mark.parametrize(
    "shape", [((0, 3), 4, 6, 2, 5), ((2, 3), 4, 6, 0, 5), ((2, 3), 4, 6, 2, 0), ((2,), 0, 6, 2, 5)]
)
def test_empty(shape):
    inputs = [t.requires_grad_() for t in inputs_of(shape, "matrix")]
    out = functional.matrix_linear(*inputs)
    assert out.shape == (*shape[0], shape[3], shape[4])
    torch.testing.assert_close(out, reference.matrix_linear(*inputs))
    out.sum().backward()
    exact = copy.deepcopy(inputs)
    for t in exact:
        t.grad = None
    reference.matrix_linear(*exact).sum().backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn(dtype):
    with torch.backends.mkldnn.flags(enabled=False):
        inputs = inputs_of(((3,), 40, 70, 90, 80), "matrix", dtype)
        check_against_reference(functional.matrix_linear, reference.matrix_linear, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference_at_sizes_of_many_blocks(dtype):
    """More than one block of rows and columns, and depths of more than one round, forward and backward."""
    for shape in (((2,), 150, 140, 200, 130), ((9,), 130, 1100, 70, 66)):
        inputs = inputs_of(shape, "matrix", dtype)
        check_against_reference(functional.matrix_linear, reference.matrix_linear, inputs, slack=2)


def test_deterministic():
    inputs = inputs_of(((4, 16), 32, 48, 24, 40), "matrix", torch.float32, requires_grad=True)

    def run():
        out = functional.matrix_linear(*inputs)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("bias", [None, "matrix", "row", "col"])
def test_gradgradcheck_float64(bias):
    for shape in (((2, 1), 3, 2, 4, 2), ((), 2, 3, 1, 2)):
        for make, form in ((inputs_of, lambda op: op), (linear_inputs, without_u)):
            inputs = [t.mT.contiguous().mT.requires_grad_() for t in make(shape, bias)]
            assert torch.autograd.gradgradcheck(form(functional.matrix_linear), inputs)


@pytest.mark.parametrize("bias", ["matrix", "row", "col"])
@pytest.mark.parametrize("shape", SHAPES)
def test_higher_derivatives_are_those_of_the_reference(shape, bias):
    def third(op, inputs):
        total = op(*inputs).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(total, inputs, create_graph=True)
            total = sum(g.square().mean() for g in gradients)
        return gradients

    for make, form in ((inputs_of, lambda op: op), (linear_inputs, without_u)):
        inputs = [t.mul(0.3).detach().requires_grad_() for t in make(shape, bias)]
        ours, theirs = (third(form(op), inputs) for op in (functional.matrix_linear, reference.matrix_linear))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_with_a_graph_are_those_without(dtype):
    """Also of frames that lie on one another, with gaps, and of none."""
    x, u, w, bias = inputs_of(((3, 5), 6, 8, 4, 10), "matrix", dtype)
    for strided in (x, x[:, :1].expand(3, 5, 6, 8), torch.stack([x, x], -1)[..., 0], x[:0]):
        inputs = [t.requires_grad_() for t in (strided.detach(), u.mT.contiguous().mT, w, bias)]
        out = functional.matrix_linear(*inputs)
        grad = randn(*out.shape, dtype=dtype, seed=9)
        plain = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        for ours, theirs in zip(torch.autograd.grad(out, inputs, grad, create_graph=True), plain, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if ours.numel():
                assert (ours - theirs).abs().max() <= 8 * torch.finfo(dtype).eps * theirs.abs().max()


def test_second_derivatives_only_where_they_are_asked_for():
    for wanted in itertools.product([False, True], repeat=4):
        inputs = [t.requires_grad_(w) for t, w in zip(inputs_of(SHAPES[0], "row"), wanted, strict=True)]
        leaves = [t for t in inputs if t.requires_grad]
        if not leaves:
            continue

        def second(op, inputs=inputs, leaves=leaves):
            gradients = torch.autograd.grad(op(*inputs).pow(3).sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)

        for a, b in zip(second(functional.matrix_linear), second(reference.matrix_linear), strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_with_a_graph_are_not_rounded_inside_autocast():
    inputs = inputs_of(SHAPES[1], "matrix", torch.float32, requires_grad=True)
    out = functional.matrix_linear(*inputs).square().sum()
    outside = torch.autograd.grad(out, inputs, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(out, inputs, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_backward_is_one_operator_unless_it_makes_a_graph():
    inputs = inputs_of(SHAPES[0], "matrix", requires_grad=True)
    for create_graph in (False, True):
        out = functional.matrix_linear(*inputs).sum()
        with torch.profiler.profile() as profile:
            torch.autograd.grad(out, inputs, create_graph=create_graph)
        names = [event.name for event in profile.events()]
        assert names.count("frameattn::matrix_linear_backward") == (not create_graph)
        assert names.count("frameattn::matrix_linear_forward") == (5 if create_graph else 0)


def test_func_transforms_are_an_error_and_not_a_wrong_number():
    x, u, w = inputs_of(SHAPES[0])
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda x: functional.matrix_linear(x, u, w).sum())(x)
    torch.func.grad(lambda x: reference.matrix_linear(x, u, w).sum())(x)  # the reference serves there


def test_pybind_function_is_the_same_operator():
    inputs = inputs_of(SHAPES[0], "matrix")
    assert torch.equal(_C.matrix_linear(*inputs), functional.matrix_linear(*inputs))


# The order of contraction


def multiply_adds(n, d, m, e, left):
    return m * n * d + m * d * e if left else n * d * e + m * n * e


@given(st.tuples(*[st.integers(1, 600)] * 4))
def test_order_has_the_fewest_operations(sizes):
    n, d, m, e = sizes
    left = _C.matrix_linear_left_first(n, d, m, e)
    assert multiply_adds(n, d, m, e, left) <= multiply_adds(n, d, m, e, not left)


def test_order_at_the_sizes_of_the_paper():
    assert _C.matrix_linear_left_first(n=256, d=1152, m=128, e=1152)  # q and k: mix tokens first
    assert not _C.matrix_linear_left_first(n=256, d=1152, m=512, e=1152)  # v: mix channels first
    assert _C.matrix_linear_left_first(n=512, d=1152, m=256, e=1152)  # projection


def counted(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("sizes", [(6, 4, 3, 8), (3, 4, 9, 5), (5, 50, 6, 2)])
def test_backward_plan_is_the_cheapest_and_what_is_counted(sizes, wanted, saved):
    n, d, m, e = sizes

    def products(x_left, u_left, w_left):  # name -> multiply-adds of one frame
        products = {}
        if wanted[0]:
            products |= {"gw": m * d * e, "u.gw": n * m * d} if x_left else {"ug": n * m * e, "ug.w": n * d * e}
        if wanted[1]:
            products |= {"gw": m * d * e, "x.gw": n * m * d} if u_left else {"xw": n * d * e, "xw.g": n * m * e}
        if wanted[2]:
            products |= {"ux": n * m * d, "ux.g": m * d * e} if w_left else {"ug": n * m * e, "x.ug": n * d * e}
        if saved:
            products.pop("ux" if _C.matrix_linear_left_first(n, d, m, e) else "xw", None)
        return products

    plan = _C.plan_matrix_linear_backward(n, d, m, e, wanted, saved)
    cost = sum(products(plan.grad_x_left, plan.grad_u_left, plan.grad_w_left).values())
    assert plan.cost == cost
    assert cost == min(sum(products(*left).values()) for left in itertools.product([True, False], repeat=3))

    x, u, w = inputs_of(((2,), *sizes))
    product = FORWARD(x, u, w, None, True)[1] if saved else None
    assert counted(BACKWARD, randn(2, m, e), x, u, w, None, product, [*wanted, False]) == 2 * 2 * cost


def test_backward_gives_the_same_with_and_without_the_saved_product():
    for shape in SHAPES:
        x, u, w, bias = inputs_of(shape, "matrix")
        out, product = FORWARD(x, u, w, bias, True)
        grad = randn(*out.shape, seed=5)
        with_product, without = (BACKWARD(grad, x, u, w, bias, p, [True] * 4) for p in (product, None))
        for a, b in zip(with_product, without, strict=True):
            torch.testing.assert_close(a, b)


def test_nothing_is_saved_without_gradients():
    x, u, w = inputs_of(SHAPES[0], requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        functional.matrix_linear(x.detach(), u.detach(), w.detach())
        with torch.no_grad():
            functional.matrix_linear(x, u, w)
        assert not saved
        functional.matrix_linear(x, u, w)
    assert len(saved) == 4  # x, u, w and the first product


def test_forward_flops():
    x, u, w = inputs_of(((2, 3), 4, 6, 2, 5))
    assert counted(functional.matrix_linear, x, u, w) == 2 * 6 * min(
        multiply_adds(4, 6, 2, 5, True), multiply_adds(4, 6, 2, 5, False)
    )


# Bad input: operator, requirement, what came


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(x=torch.zeros(4)), r"matrix_linear: x must be \[\.\.\., N, D\], got \[4\]"),
        (dict(u=torch.zeros(5, 2)), r"matrix_linear: u must be \[N, M\] with N = x.size\(-2\) = 4, got \[5, 2\]"),
        (dict(u=torch.zeros(4)), r"matrix_linear: u must be \[N, M\].*got \[4\]"),
        (dict(w=torch.zeros(5, 5)), r"matrix_linear: w must be \[D, E\] with D = x.size\(-1\) = 6, got \[5, 5\]"),
        (dict(w=torch.zeros(1, 6, 5)), r"matrix_linear: w must be \[D, E\].*got \[1, 6, 5\]"),
        (dict(bias=torch.zeros(5)), r"matrix_linear: bias must be \[M, E\], \[1, E\] or \[M, 1\] .*got \[5\]"),
        (dict(bias=torch.zeros(3, 5)), r"bias must be .* with M = 2, E = 5, got \[3, 5\]"),
        (dict(bias=torch.zeros(2, 4)), r"bias must be .* with M = 2, E = 5, got \[2, 4\]"),
        (dict(w=torch.zeros(6, 5).double()), "w must have the dtype of x, Float, got Double"),
        (dict(bias=torch.zeros(2, 5).half()), "bias must have the dtype of x, Float, got Half"),
        (dict(x=torch.zeros(3, 4, 6).int()), "x must be float64, float32, bfloat16 or float16, got Int"),
        (dict(x=torch.zeros(3, 4, 6, dtype=torch.complex64)), "x must be float64, .* got ComplexFloat"),
        (dict(u=torch.zeros(4, 2, device="meta")), "u must be on the device of x, cpu, got meta"),
        (dict(bias=torch.zeros(2, 5, device="meta")), "bias must be on the device of x, cpu, got meta"),
    ],
)
def test_rejects_bad_inputs(change, words):
    good = dict(x=torch.zeros(3, 4, 6), u=torch.zeros(4, 2), w=torch.zeros(6, 5), bias=torch.zeros(2, 5))
    functional.matrix_linear(**good)
    with pytest.raises(RuntimeError, match=words):
        functional.matrix_linear(**(good | change))


@pytest.mark.parametrize("sizes", [(3, 2, 6), (3, 2), (4, 2, 5)])
def test_backward_rejects_a_gradient_of_another_shape(sizes):
    x, u, w = torch.zeros(3, 4, 6), torch.zeros(4, 2), torch.zeros(6, 5)
    with pytest.raises(RuntimeError, match=r"matrix_linear_backward: grad_output must be .* = \[3, 2, 5\], got"):
        BACKWARD(torch.zeros(sizes), x, u, w, None, None, [True, True, True, False])


def test_backward_rejects_another_product():
    x, u, w = torch.zeros(3, 4, 6), torch.zeros(4, 2), torch.zeros(6, 5)
    with pytest.raises(
        RuntimeError, match=r"product must be the first product of forward = \[3, 2, 6\], got \[3, 4, 5\]"
    ):
        BACKWARD(torch.zeros(3, 2, 5), x, u, w, None, torch.zeros(3, 4, 5), [True, True, True, False])
