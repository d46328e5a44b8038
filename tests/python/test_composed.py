"""The implementations made of torch's operators, which CUDA uses for float32 and for
what no kernel takes: against the reference, with as little memory as there may be, and with odd inputs."""

import pytest
import torch

from frameattn import _C, reference
from oracle import DTYPES, assert_close, randn

EXACT = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Whole problems; some items at once; one item in parts of frames and columns; one frame and one column at a time.
BYTES = [256 << 20, 20_000, 1500, 1]

# B, T, nq, nv, d, row_heads, col_heads
MATRIX = [(2, 3, 2, 3, 4, 2, 3), (1, 17, 1, 4, 9, 2, 2), (1, 1, 2, 1, 6, 3, 2), (2, 5, 3, 2, 8, 1, 1)]
# B, H, T, S, D, Dv
TEMPORAL = [(2, 2, 3, 5, 8, 6), (1, 2, 1, 7, 4, 6), (1, 1, 17, 1, 5, 3), (1, 3, 7, 4, 16, 24)]


def matrix_inputs(shape, dtype=torch.float64):
    batch, frames, nq, nv, d, row_heads, col_heads = shape
    sizes = [(batch, frames, n * col_heads, d * row_heads) for n in (nq, nq, nv, nv)]
    return [randn(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]  # query, key, value, grad_output


def matrix_results(tensors, heads, scale=None, **options):
    query, key, value, grad = tensors
    out = _C.composed_matrix_attention(query, key, value, *heads, scale, **options)
    return [out, *_C.composed_matrix_attention_backward(grad, query, key, value, *heads, scale, **options)]


def matrix_reference(tensors, heads, scale=None):
    leaves = [t.detach().clone().requires_grad_() for t in tensors[:3]]
    out = reference.matrix_attention(*leaves, *heads, scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


def temporal_inputs(shape, dtype=torch.float64):
    """query, weighted_key, entropy, value, and gradients of surrogate, out and lse"""
    batch, heads, frames, positions, dim, value_dim = shape
    rows, statistics = (batch, heads, frames * positions), torch.float64 if dtype == torch.float64 else torch.float32
    widths = [(dim,), (dim,), (), (value_dim,), (dim,), (value_dim,), ()]
    kinds = [dtype, dtype, statistics, dtype, dtype, dtype, statistics]
    tensors = [randn(*rows, *w, dtype=k, seed=i) for i, (w, k) in enumerate(zip(widths, kinds, strict=True))]
    tensors[1] /= dim**0.5
    return tensors


def temporal_results(tensors, frames, mass_floor=0.9, **options):
    """Of the update form, then of the output form: results and gradients."""
    query, key, entropy, value, grad_surrogate, grad_out, grad_lse = tensors
    surrogate, mass = _C.composed_temporal_update(query, key, entropy, frames, mass_floor, **options)
    update = _C.composed_temporal_update_backward(
        grad_surrogate, query, key, entropy, mass, frames, mass_floor, **options
    )
    out, lse = _C.composed_temporal_output(query, key, entropy, value, frames, **options)
    output = _C.composed_temporal_output_backward(grad_out, grad_lse, query, key, entropy, value, frames, **options)
    return [surrogate, mass, *update, out, lse, *output]


def temporal_reference(tensors, frames, mass_floor=0.9):
    """The same by autograd, products in the dtype of the inputs and softmax in that of entropy, as eager code would."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors[:4]]
    grad_surrogate, grad_out, grad_lse = tensors[4:]

    def at_position(x):  # [B, H, T S, ...] -> [B, H, S, T, ...]
        return x.unflatten(2, (frames, -1)).transpose(2, 3)

    def back(x):
        return x.transpose(2, 3).flatten(2, 3)

    q, k, c, v = map(at_position, leaves)
    logits = (q @ k.mT).to(c.dtype) - c.unsqueeze(-2)
    weights = logits.softmax(-1)
    mass = weights.sum(-2)
    surrogate = back((weights / mass.clamp(min=mass_floor).unsqueeze(-2)).to(q.dtype).mT @ q)
    out, lse = back(weights.to(v.dtype) @ v), back(logits.logsumexp(-1))
    update = torch.autograd.grad(surrogate, leaves[:3], grad_surrogate, retain_graph=True)
    output = torch.autograd.grad([out, lse], leaves, [grad_out, grad_lse])
    return [t.detach() for t in (surrogate, back(mass), *update, out, lse, *output)]


def check(results, rounded, exact):
    # The rule of all tests. Twice its tolerance: at so few numbers eager torch is exact by luck in some.
    assert len(results) == len(rounded) == len(exact)
    for i, tensors in enumerate(zip(results, rounded, exact, strict=True)):
        assert tensors[0].dtype == tensors[1].dtype and tensors[0].is_contiguous()
        assert_close(*tensors, f"result {i}", slack=2)


def doubles(tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("bytes", BYTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRIX)
def test_matrix_attention_matches_reference(shape, dtype, bytes):
    tensors, heads = matrix_inputs(shape, dtype), shape[-2:]
    exact = matrix_reference(doubles(tensors), heads)
    check(matrix_results(tensors, heads, bytes=bytes), matrix_reference(tensors, heads), exact)


@pytest.mark.parametrize("bytes", BYTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", TEMPORAL)
def test_temporal_step_matches_reference(shape, dtype, bytes):
    tensors, frames = temporal_inputs(shape, dtype), shape[2]
    exact = temporal_reference(doubles(tensors), frames)
    check(temporal_results(tensors, frames, bytes=bytes), temporal_reference(tensors, frames), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mass_floor", [0.0, 1e-6, 0.1, 10.0])
def test_temporal_step_is_that_of_the_cpu_kernels(mass_floor, dtype):
    shape = TEMPORAL[3]
    tensors, frames = temporal_inputs(shape, dtype), shape[2]
    query, key, entropy, value, grad_surrogate, grad_out, grad_lse = tensors
    ops = torch.ops.frameattn
    surrogate, mass = ops.temporal_update(query, key, entropy, frames, mass_floor)
    update = ops.temporal_update_backward(grad_surrogate, query, key, entropy, mass, frames, mass_floor)
    out, lse = ops.temporal_output(query, key, entropy, value, frames)
    output = ops.temporal_output_backward(grad_out, grad_lse, query, key, entropy, value, frames)
    expected = [surrogate, mass, *update, out, lse, *output]
    for ours, theirs in zip(temporal_results(tensors, frames, mass_floor), expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        torch.testing.assert_close(ours, theirs, atol=EXACT[dtype], rtol=EXACT[dtype])


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.5])
def test_matrix_attention_takes_a_scale(scale):
    tensors, heads = matrix_inputs(MATRIX[0]), MATRIX[0][-2:]
    expected = matrix_reference(tensors, heads, scale)
    check(matrix_results(tensors, heads, scale), expected, expected)


@pytest.mark.parametrize("bytes", BYTES)
def test_any_strides_are_read_and_inputs_stay_as_they_are(bytes):
    heads = MATRIX[0][-2:]
    tensors = [t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for t in matrix_inputs(MATRIX[0])]
    before = [t.clone() for t in tensors]
    expected = matrix_reference(tensors, heads)
    check(matrix_results(tensors, heads, bytes=bytes), expected, expected)
    assert all(map(torch.equal, tensors, before))

    tensors = temporal_inputs(TEMPORAL[0])
    tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]  # [B, N, H, D]
    tensors[5] = tensors[5][:1, :1, :1, :1].expand_as(tensors[5])  # the gradient of a sum
    before = [t.clone() for t in tensors]
    expected = temporal_reference(tensors, 3)
    check(temporal_results(tensors, 3, bytes=bytes), expected, expected)
    assert all(map(torch.equal, tensors, before))


def test_one_frame_is_a_copy_of_value():
    for dtype in DTYPES:
        query, key, value, _ = matrix_inputs(MATRIX[2], dtype)
        assert torch.equal(_C.composed_matrix_attention(query, key, value, *MATRIX[2][-2:]), value)


@pytest.mark.parametrize("mass_floor", [0.0, 0.9])
@pytest.mark.parametrize("bytes", BYTES)
def test_masked_frames_have_no_weight(bytes, mass_floor):
    tensors = temporal_inputs((1, 1, 4, 3, 8, 8))
    entropy = tensors[2].view(1, 1, 4, 3)
    entropy[..., 1, 0] = torch.inf  # position 0: frame 1 takes no part
    entropy[..., :, 2] = torch.inf  # position 2: no frame does
    results = temporal_results(tensors, 4, mass_floor, bytes=bytes)
    surrogate, mass, grad_query, grad_key, grad_entropy, out, lse, *gradients = results
    assert all(not t.isnan().any() for t in results)
    by_frame = [t.unflatten(2, (4, 3)) for t in (surrogate, mass, grad_query, grad_key, grad_entropy, out, *gradients)]
    assert all((t[:, :, :, 2] == 0).all() for t in by_frame)
    assert (lse.view(4, 3)[:, 2] == -torch.inf).all() and lse.view(4, 3)[:, :2].isfinite().all()
    assert mass.view(4, 3)[1, 0] == 0 and (gradients[1].view(4, 3, 8)[1, 0] == 0).all()
    tensors[2] = entropy[..., [0, 2, 3], :].flatten(2)  # as if the frame were not there
    keep = [t.unflatten(2, (4, 3))[:, :, [0, 2, 3]].flatten(2, 3) for t in (tensors[0], tensors[1], tensors[3])]
    kept, _ = _C.composed_temporal_output(keep[0], keep[1], tensors[2], keep[2], 3)
    rows = out.unflatten(2, (4, 3))[:, :, [0, 2, 3], 0]
    torch.testing.assert_close(rows, kept.unflatten(2, (3, 3))[:, :, :, 0])


def test_gradients_that_are_not_there_are_zero():
    query, key, entropy, value, _, grad_out, grad_lse = temporal_inputs(TEMPORAL[0])
    backward = _C.composed_temporal_output_backward
    both = backward(grad_out, grad_lse, query, key, entropy, value, 3)
    parts = [backward(g, s, query, key, entropy, value, 3) for g, s in ((grad_out, None), (None, grad_lse))]
    for whole, *halves in zip(both, *parts, strict=True):
        torch.testing.assert_close(whole, sum(halves))
    assert all((t == 0).all() for t in backward(None, None, query, key, entropy, value, 3))


@pytest.mark.parametrize("bytes", BYTES)
def test_empty(bytes):
    for size, value_size in [((0, 3, 4, 6), (0, 3, 2, 6)), ((2, 0, 4, 6), (2, 0, 2, 6)), ((2, 3, 4, 0), (2, 3, 2, 0))]:
        query, value = torch.zeros(size), torch.zeros(value_size)
        results = matrix_results([query, query, value, value], (2, 2), bytes=bytes)
        assert [t.shape for t in results] == [value.shape, query.shape, query.shape, value.shape]
    query, value = torch.zeros(1, 3, 0, 4).double(), randn(1, 3, 2, 4)  # no rows to compare by: the mean
    out, *_, grad_value = matrix_results([query, query, value, value], (2, 2), bytes=bytes)
    mean = value.mean(1, keepdim=True).expand_as(value)
    torch.testing.assert_close([out, grad_value], [mean, mean])
    query = randn(1, 3, 2, 4)
    _, grad_query, grad_key, _ = matrix_results([query, query, value[:, :, :0], value[:, :, :0]], (2, 2), bytes=bytes)
    assert (grad_query == 0).all() and (grad_key == 0).all()
    for shape in [(0, 2, 3, 5, 8, 6), (1, 0, 3, 5, 8, 6), (1, 2, 3, 0, 8, 6)]:
        batch, heads, frames, positions, dim, _ = shape
        results = temporal_results([t.contiguous() for t in temporal_inputs(shape)], frames, bytes=bytes)
        assert results[0].shape == (batch, heads, frames * positions, dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_logits_stay_finite(dtype):
    tensors = [100 * t for t in matrix_inputs(MATRIX[1], dtype)]
    assert all(t.isfinite().all() for t in matrix_results(tensors, MATRIX[1][-2:], bytes=2000))


@pytest.mark.parametrize("frames, dim", [(64, 64), (1000, 16)])
def test_memory_is_bounded(frames, dim):
    query = torch.randn(1, frames, 8, 8 * dim)
    limit = 8 << 20
    with torch.profiler.profile(profile_memory=True) as profiler:
        _C.composed_matrix_attention_backward(query, query, query, query, 8, 8, bytes=limit)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak <= limit + 3 * query.nbytes + (1 << 20)  # the three results


@pytest.mark.parametrize("capability, kernel", [(75, False), (80, True), (86, True), (90, True), (120, True)])
@pytest.mark.parametrize("backward", [False, True])
def test_choice_by_capability_and_dtype(capability, kernel, backward):
    how = dict(backward=backward, capability=capability)
    for dtype in DTYPES:
        half = dtype in (torch.bfloat16, torch.float16)
        frames = torch.empty(2, 16, 4, 72, dtype=dtype, device="meta")
        rows = torch.empty(1, 2, 21 * 6, 128, dtype=dtype, device="meta")
        for choice in (
            _C.choose_matrix_attention_kernel(frames, frames, 1, 2, **how),
            _C.choose_temporal_step_kernel(rows, rows, 21, **how),
            _C.choose_temporal_step_kernel(rows, None, 21, **how),
        ):
            assert choice.kernel.endswith("_sm80") == (half and kernel)
            assert bool(choice.reason) == (half and not kernel)


@pytest.mark.parametrize(("has_value", "backward", "most"), [(True, False, 128), (True, True, 128), (False, True, 64)])
def test_more_frames_than_a_kernel_takes_are_computed_by_blocks(has_value, backward, most):
    def choose(frames):
        rows = torch.empty(1, 2, frames * 6, 64, dtype=torch.bfloat16, device="meta")
        value = rows if has_value else None
        return _C.choose_temporal_step_kernel(rows, value, frames, backward=backward, capability=90)

    for frames in (1, most, most + 1, 1000):
        choice = choose(frames)
        assert choice.kernel and choice.reason == ""
        assert choice.by_blocks == (frames > most)


def test_every_operator_answers_to_cuda_tensors():
    for op in (
        "matrix_linear_forward", "matrix_linear_backward", "matrix_attention", "matrix_attention_backward",
        "spatial_step", "spatial_step_backward", "temporal_update", "temporal_update_backward", "temporal_output",
        "temporal_output_backward", "vmonarch_attention_forward", "vmonarch_attention_backward",
        "modulated_layer_norm_forward", "modulated_layer_norm_backward", "gated_add_forward", "gated_add_backward",
        "gelu_tanh_forward", "gelu_tanh_backward",
    ):  # fmt: skip
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"frameattn::{op}", "CUDA"), op
