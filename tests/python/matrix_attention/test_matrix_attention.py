import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from frameattn import _C, functional, reference
from oracle import DTYPES, check_against_reference, randn

OP = torch.ops.frameattn.matrix_attention.default
BACKWARD = torch.ops.frameattn.matrix_attention_backward.default

# B, T, nq, nv, d, row_heads, col_heads: odd and prime T, more frames than a query block, d not a multiple of a vector
SHAPES = [
    (2, 3, 2, 3, 4, 2, 3),
    (1, 17, 1, 4, 9, 2, 2),
    (1, 1, 2, 1, 6, 3, 2),
    (1, 131, 1, 2, 5, 1, 2),
    (2, 16, 2, 8, 17, 1, 1),
    (1, 70, 2, 3, 90, 12, 2),  # more than the row heads of one task
]


def inputs_of(shape, dtype=torch.float64, requires_grad=False):
    batch, frames, nq, nv, d, row_heads, col_heads = shape
    sizes = [(batch, frames, n * col_heads, d * row_heads) for n in (nq, nq, nv)]
    return [randn(*size, dtype=dtype, seed=i, requires_grad=requires_grad) for i, size in enumerate(sizes)]


def ops_of(shape, scale=None):
    heads = dict(row_heads=shape[-2], col_heads=shape[-1], scale=scale)
    return tuple(
        lambda q, k, v, f=f: f(q, k, v, **heads) for f in (functional.matrix_attention, reference.matrix_attention)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype):
    check_against_reference(*ops_of(shape), inputs_of(shape, dtype))


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.5])
def test_matches_reference_with_a_scale(scale):
    check_against_reference(*ops_of(SHAPES[0], scale), inputs_of(SHAPES[0]))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(
        st.integers(0, 2), st.integers(1, 20), *[st.integers(1, 4)] * 2, st.integers(1, 20), *[st.integers(1, 3)] * 2
    ),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(4)),
)
def test_matches_reference_for_any_shape_and_strides(shape, dtype, order):
    back = [order.index(i) for i in range(4)]
    inputs = [t.permute(order).contiguous().permute(back) for t in inputs_of(shape, dtype)]
    check_against_reference(*ops_of(shape), inputs, slack=2)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradcheck_float64(shape):
    assert torch.autograd.gradcheck(ops_of(shape)[0], inputs_of(shape, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    heads = SHAPES[0][-2:]
    torch.library.opcheck(OP, (*inputs_of(SHAPES[0], dtype, requires_grad=True), *heads))
    query, key, value = inputs_of(SHAPES[0], dtype)
    torch.library.opcheck(BACKWARD, (randn(*value.shape, dtype=dtype), query, key, value, *heads, 0.5))


def test_autocast_runs_in_its_dtype_and_gradients_do_not_depend_on_where_backward_is_called():
    def gradients(backward_inside):
        inputs = inputs_of(SHAPES[1], torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = ops_of(SHAPES[1])[0](*inputs)
            assert out.dtype == torch.bfloat16
            if backward_inside:
                out.float().square().sum().backward()
        if not backward_inside:
            out.float().square().sum().backward()
        return [t.grad for t in inputs]

    for inside, outside in zip(gradients(True), gradients(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


def test_autocast_casts_mixed_inputs():
    query, key, value = inputs_of(SHAPES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ops_of(SHAPES[0])[0](query.bfloat16(), key, value.half())
        assert mixed.dtype == torch.bfloat16


def test_compile_forward_and_backward_in_one_graph():
    op, exact = ops_of(SHAPES[0])
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, frames in ((2, 3), (3, 5)):
        check_against_reference(compiled, exact, inputs_of((batch, frames, *SHAPES[0][2:]), torch.float32))


def test_inductor_compiles_both_operators_forward_and_backward():
    def layer(x, u, w):
        y = functional.matrix_linear(x, u, w)
        return functional.matrix_attention(y, y, y, row_heads=2, col_heads=2).relu()

    def exact(x, u, w):
        y = reference.matrix_linear(x, u, w)
        return reference.matrix_attention(y, y, y, row_heads=2, col_heads=2).relu()

    inputs = [randn(2, 3, 6, 8, seed=1), randn(6, 4, seed=2), randn(8, 8, seed=3)]
    check_against_reference(torch.compile(layer, fullgraph=True), exact, inputs)


def test_export_with_a_dynamic_batch():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return ops_of(SHAPES[0])[0](q, k, v)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Layer(), tuple(inputs_of(SHAPES[0])), dynamic_shapes=[{0: batch}] * 3)
    larger = inputs_of((5, *SHAPES[0][1:]))
    torch.testing.assert_close(program.module()(*larger), ops_of(SHAPES[0])[1](*larger))


def test_meta_and_inference_mode():
    inputs = inputs_of(SHAPES[0])
    op, exact = ops_of(SHAPES[0])
    with torch.inference_mode():
        out = op(*inputs)
    meta = op(*(t.to("meta") for t in inputs))
    assert (meta.shape, meta.dtype, meta.stride()) == (out.shape, out.dtype, out.stride())
    torch.testing.assert_close(out.clone(), exact(*inputs))


def test_strided_views_are_read_in_place():
    query, key, value = inputs_of(SHAPES[4])
    op, exact = ops_of(SHAPES[4])
    packed = torch.cat([query, key, value], dim=2)
    sizes = [query.size(2), key.size(2), value.size(2)]
    torch.testing.assert_close(op(*packed.split(sizes, dim=2)), exact(query, key, value))
    expanded = query[:, :1].expand_as(query)  # stride 0 over frames
    torch.testing.assert_close(op(expanded, key, value), exact(expanded, key, value))


def test_offsets_beyond_32_bits():
    # Two clips that lie 2^31 elements apart in a storage whose pages between them are never touched.
    shape, sizes, apart = (2, 3, 2, 2, 4, 2, 3), (2, 3, 6, 8), 2**31 + 7
    storage = torch.empty(apart + 3 * 6 * 8, dtype=torch.bfloat16)
    far = storage.as_strided(sizes, (apart, 6 * 8, 8, 1))
    query, key, value = inputs_of(shape, torch.bfloat16)
    far.copy_(value)
    op = ops_of(shape)[0]
    assert torch.equal(op(query, key, far), op(query, key, value))


@pytest.mark.parametrize(
    "query_size, value_size", [((0, 3, 4, 6), (0, 3, 2, 6)), ((2, 0, 4, 6), (2, 0, 2, 6)), ((2, 3, 4, 0), (2, 3, 2, 0))]
)
def test_empty(query_size, value_size):
    inputs = [torch.zeros(s, requires_grad=True) for s in (query_size, query_size, value_size)]
    out = functional.matrix_attention(*inputs, row_heads=2, col_heads=2)
    assert out.shape == value_size
    out.sum().backward()
    assert [t.grad.shape for t in inputs] == [t.shape for t in inputs]


def test_heads_without_query_rows_average_and_heads_without_value_rows_give_no_gradient():
    query = torch.zeros(1, 3, 0, 4, requires_grad=True)
    value = randn(1, 3, 2, 4)
    out = functional.matrix_attention(query.double(), query.double(), value, row_heads=2, col_heads=2)
    torch.testing.assert_close(out, value.mean(1, keepdim=True).expand_as(value))
    query = randn(1, 3, 2, 4, requires_grad=True)
    functional.matrix_attention(query, query, value[:, :, :0], row_heads=2, col_heads=2).sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    inputs = inputs_of((2, 16, 2, 3, 24, 4, 5), dtype, requires_grad=True)

    def run(threads):
        torch.set_num_threads(threads)
        out = functional.matrix_attention(*inputs, row_heads=4, col_heads=5)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    before = torch.get_num_threads()
    try:
        one, two, three = run(1), run(2), run(3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three, strict=True))


def test_large_logits_stay_finite():
    query, key, value = (t * 1e4 for t in inputs_of(SHAPES[1], torch.float32, requires_grad=False))
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = ops_of(SHAPES[1])[0](*leaves)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves))


def test_second_derivative_is_refused():
    query, key, value = inputs_of(SHAPES[0], requires_grad=True)
    (grad,) = torch.autograd.grad(ops_of(SHAPES[0])[0](query, key, value).square().sum(), key, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once.*frameattn\.reference"):
        grad.sum().backward()


def test_pybind_function_is_the_same_operator():
    inputs = inputs_of(SHAPES[0])
    assert torch.equal(_C.matrix_attention(*inputs, 2, 3, 0.5), functional.matrix_attention(*inputs, 2, 3, 0.5))


def test_flops():
    query, key, value = inputs_of((2, 5, 2, 3, 4, 2, 3), requires_grad=True)
    scores, sums = 2 * 2 * 25 * 6 * 8, 2 * 2 * 25 * 9 * 8
    with FlopCounterMode(display=False) as counter:
        out = functional.matrix_attention(query, key, value, 2, 3)
    assert counter.get_total_flops() == scores + sums
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 3 * scores + 2 * sums  # S, dQ, dK and dP, dV


# Identities of the paper


def test_one_frame_is_a_copy_of_value():
    for dtype in DTYPES:
        query, key, value = inputs_of(SHAPES[2], dtype)
        out = ops_of(SHAPES[2])[0](query, key, value)
        assert torch.equal(out, value)
        assert out.data_ptr() != value.data_ptr()


def test_one_row_heads_are_temporal_attention_at_each_position():
    batch, frames, tokens, heads, d = 2, 5, 7, 3, 4
    q, k, v = (randn(batch, frames, tokens, heads * d, seed=i) for i in range(3))
    ours = functional.matrix_attention(q, k, v, row_heads=heads, col_heads=tokens)
    q, k, v = (t.unflatten(-1, (heads, d)).permute(0, 2, 3, 1, 4) for t in (q, k, v))  # [B, N, heads, T, d]
    latte = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(-2)
    torch.testing.assert_close(ours, latte)


def test_one_head_has_one_score_for_a_pair_of_frames():
    q, k, v = (randn(2, 5, 6, 8, seed=i) for i in range(3))
    scores = torch.einsum("btmd,bsmd->bts", q, k) / (6 * 8) ** 0.5
    expected = torch.einsum("bts,bsmd->btmd", scores.softmax(-1), v)
    torch.testing.assert_close(functional.matrix_attention(q, k, v, row_heads=1, col_heads=1), expected)


def test_the_bias_of_key_changes_nothing():
    q, k, v = inputs_of(SHAPES[4])
    bias = randn(*k.shape[2:], seed=7)
    op = ops_of(SHAPES[4])[0]
    torch.testing.assert_close(op(q, k + bias, v), op(q, k, v))


# Bad input: operator, requirement, what came


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(query=torch.zeros(3, 4, 6)), r"matrix_attention: query must be \[B, T, M, D\], got \[3, 4, 6\]"),
        (dict(value=torch.zeros(3, 4, 6)), r"matrix_attention: value must be \[B, T, M, D\], got \[3, 4, 6\]"),
        (dict(key=torch.zeros(2, 3, 2, 6)), r"key must have the shape of query, \[2, 3, 4, 6\], got \[2, 3, 2, 6\]"),
        (
            dict(value=torch.zeros(2, 2, 2, 6)),
            r"value must be \[B, T, Mv, D\] with B, T, D of query.*got \[2, 2, 2, 6\]",
        ),
        (
            dict(value=torch.zeros(2, 3, 2, 4)),
            r"value must be \[B, T, Mv, D\] with B, T, D of query.*got \[2, 3, 2, 4\]",
        ),
        (dict(row_heads=4), "row_heads must divide the channels D = 6, got 4"),
        (dict(col_heads=3), "col_heads must divide the rows of query and key, 4, got 3"),
        (dict(col_heads=4), "col_heads must divide the rows of value, 2, got 4"),
        (dict(row_heads=0), "row_heads must be at least 1, got 0"),
        (dict(col_heads=-1), "col_heads must be at least 1, got -1"),
        (dict(key=torch.zeros(2, 3, 4, 6).half()), "key must have the dtype of query, Float, got Half"),
        (dict(value=torch.zeros(2, 3, 2, 6, device="meta")), "value must be on the device of query, cpu, got meta"),
        (dict(query=torch.zeros(2, 3, 4, 6).long()), "query must be float64, float32, bfloat16 or float16, got Long"),
    ],
)
def test_rejects_bad_inputs(change, words):
    frames = torch.zeros(2, 3, 4, 6)
    good = dict(query=frames, key=frames, value=frames[:, :, :2], row_heads=2, col_heads=2)
    functional.matrix_attention(**good)
    with pytest.raises(RuntimeError, match=words):
        functional.matrix_attention(**(good | change))


@pytest.mark.parametrize("sizes", [(2, 3, 4, 6), (2, 3, 2)])
def test_backward_rejects_a_gradient_of_another_shape(sizes):
    query, value = torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 2, 6)
    with pytest.raises(RuntimeError, match=r"grad_output must have the shape of value, \[2, 3, 2, 6\], got"):
        BACKWARD(torch.zeros(sizes), query, query, value, 2, 2)
