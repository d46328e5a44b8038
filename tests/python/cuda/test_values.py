"""Values and gradients of every operator on a GPU against the reference in float64."""

import pytest
import torch
from frame_problems import MATRIX_ATTENTION, MATRIX_LINEAR, TEMPORAL_OUTPUT
from gpu_comparison import check, on_gpu, results_of
from gpu_problems import SIZES, each_dtype, each_kernel_dtype, each_problem

pytestmark = pytest.mark.cuda


@each_problem
@each_dtype
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference(problem, dtype, size):
    check(problem, size, on_gpu(problem.inputs(size, 16, dtype)))


@each_problem
@each_dtype
@pytest.mark.parametrize("dim", [1, 20, 64, 72, 128])
def test_matches_reference_for_any_width(problem, dtype, dim):
    check(problem, 17, on_gpu(problem.inputs(17, dim, dtype)))


@each_problem
@each_dtype
def test_non_contiguous_inputs(problem, dtype):
    inputs = on_gpu(problem.inputs(7, 24, dtype))
    for dims in ((0, 1), (1, 2)):  # the order in memory; [B, N, H, D] is what models have
        swapped = [t.transpose(*dims).contiguous().transpose(*dims) if t.dim() > 2 else t for t in inputs]
        check(problem, 7, swapped)
    columns_first = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in inputs]
    check(problem, 7, columns_first)


@each_problem
@each_dtype
@pytest.mark.parametrize("offset", [1, 3])
def test_storage_that_begins_at_no_multiple_of_16_bytes(problem, dtype, offset):
    def shifted(tensor):
        storage = tensor.new_full((tensor.numel() + offset,), float("nan"))
        storage[offset:] = tensor.flatten()
        return storage[offset:].view(tensor.shape)

    check(problem, 17, [shifted(t) for t in on_gpu(problem.inputs(17, 16, dtype))])


@each_problem
@each_kernel_dtype
@pytest.mark.parametrize("size", [17, 64, 200])
def test_large_logits(problem, dtype, size):
    """Weights that are 0 and 1: the largest logit has to be taken off before the exponential."""
    first, *others = on_gpu(problem.inputs(size, 16, dtype))
    factor = 100 if dtype == torch.bfloat16 else 10  # gradients in float16 have to stay below 65504
    results = results_of(problem.op, size, [first * factor, *others], dtype)
    assert all(t.isfinite().all() for t in results)


@pytest.mark.kernels("frame_attention_forward_sm80")
@each_kernel_dtype
@pytest.mark.parametrize("frames", [7, 200])
def test_an_infinite_entropy_takes_a_frame_out(dtype, frames):
    problem = TEMPORAL_OUTPUT
    query, weighted_key, entropy, value = on_gpu(problem.inputs(frames, 16, dtype))
    positions = entropy.size(2) // frames
    entropy[:, :, :positions] = float("inf")  # of the first frame
    value[:, :, :positions] = 1e4
    out, _ = problem.op(frames, query, weighted_key, entropy, value)
    value[:, :, :positions] = 0
    assert torch.equal(out, problem.op(frames, query, weighted_key, entropy, value)[0])


@each_problem
@each_dtype
def test_empty(problem, dtype):
    inputs = problem.inputs(7, 16, dtype)
    batched = [t[:0] if t.dim() > 2 else t for t in inputs]  # no clip
    results = results_of(problem.op, 7, on_gpu(batched), dtype)
    shapes = [t.shape for t in results_of(problem.exact, 7, batched, dtype)]
    assert [t.shape for t in results] == shapes
    assert all((t == 0).all() for t in results)


@pytest.mark.parametrize("problem", [MATRIX_ATTENTION, MATRIX_LINEAR], ids=str)
@each_dtype
def test_no_channels(problem, dtype):
    """Weights of equal size, on a GPU as on a CPU; the reference has no scale for it. The temporal step refuses it."""
    inputs = problem.inputs(7, 0, dtype)
    on_cpu = results_of(problem.op, 7, inputs, dtype)
    for actual, expected in zip(results_of(problem.op, 7, on_gpu(inputs), dtype), on_cpu, strict=True):
        torch.testing.assert_close(actual.cpu(), expected)
