"""modulated_layer_norm and gated_add on a GPU: what these alone have, beside the tests of all problems."""

import warnings
from itertools import product

import pytest
import torch
from gpu_comparison import OPS, check, on_gpu, results_of
from modulation_problems import GATE, MODULATION_PROBLEMS, NORM
from torch.library import opcheck

from frameattn import functional, reference
from oracle import assert_close, check_against_reference, randn

pytestmark = [pytest.mark.cuda, pytest.mark.kernels(*NORM.kernels, *GATE.kernels)]
each_problem = pytest.mark.parametrize("problem", MODULATION_PROBLEMS, ids=str)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@each_problem
@pytest.mark.parametrize("dtype", DTYPES)
# Models' widths; one more than whole pieces; two pieces in a thread; longer than a kernel takes, by torch's operators.
@pytest.mark.parametrize("dim", [384, 768, 1152, 1153, 1536, 3072, 5120, 6150])
def test_widths(problem, dtype, dim):
    check(problem, 3, on_gpu(problem.inputs(3, dim, dtype)))


def modulations(of, clips, frames, dim, dtype, seeds=(1,)):
    sizes = {"clips": (clips, dim), "one frame": (clips, 1, dim), "frames": (clips, frames, dim)}[of]
    return [randn(*sizes, dtype=dtype, seed=seed) for seed in seeds]


@pytest.mark.parametrize("of", ["clips", "one frame", "frames"])
@pytest.mark.parametrize("rows, other, modulation", list(product(DTYPES, DTYPES, DTYPES)))
def test_dtypes_may_differ(rows, other, modulation, of):
    """bfloat16 with float16 by torch's operators."""
    x, y = on_gpu([randn(2, 3, 7, 72, dtype=rows), randn(2, 3, 7, 72, dtype=other, seed=3)])
    shift, scale = on_gpu(modulations(of, 2, 3, 72, modulation, (1, 2)))

    def compare(op, exact_op, inputs, out_dtype):
        leaves, wide = ([t.detach().requires_grad_() for t in ts] for ts in (inputs, [t.double() for t in inputs]))
        out, exact = op(*leaves), exact_op(*wide)
        assert out.dtype == out_dtype
        grad = randn(*out.shape, dtype=out_dtype, seed=9).to(out.device)
        found, right = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(exact, wide, grad.double())
        assert [g.dtype for g in found] == [t.dtype for t in inputs]
        # The composed operators round in the dtype of either.
        coarse = 4 if {rows, other} == {torch.bfloat16, torch.float16} else 1
        for result, value in zip((out.detach(), *found), (exact.detach(), *right), strict=True):
            rounded = value.to(torch.bfloat16) if coarse > 1 else value.to(result.dtype)
            assert_close(result, rounded.to(result.dtype), value, f"{op}", slack=3 * coarse)

    compare(
        lambda *tensors: functional.modulated_layer_norm(*tensors, dtype=other),
        reference.modulated_layer_norm,
        (x, shift, scale),
        other,
    )
    compare(functional.gated_add, reference.gated_add, (x, scale, y), rows)


@each_problem
def test_views_are_read_where_they_lie(problem):
    """Rows of a wider tensor, clips inside frames, a chunk of all modulations; other columns are copied."""
    x = on_gpu([randn(4, 2, 9, 3 * 64, dtype=torch.bfloat16)])[0]
    chunk = on_gpu([randn(2, 6 * 64, dtype=torch.bfloat16, seed=5)])[0].chunk(6, dim=1)
    for view in (x.transpose(0, 1)[..., 64:128], x.transpose(0, 1)[..., 1:65], x.transpose(0, 1)[..., ::3]):
        inputs = [view, chunk[1], chunk[2]] if problem is NORM else [view, chunk[3], view.transpose(1, 2)[:, :4]]
        if problem is GATE:
            inputs[2] = view.flip(1)
        check(problem, 4, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_far_from_zero_and_rows_of_equal_numbers(dtype):
    x, shift, scale = on_gpu(NORM.inputs(3, 256, torch.float32))
    far = (x + 1000 if dtype == torch.float32 else x + 8).to(dtype)
    check_against_reference(
        functional.modulated_layer_norm,
        reference.modulated_layer_norm,
        [far, shift.to(dtype), scale.to(dtype)],
        slack=2,
    )
    for value in (0.1, 1000.0 / 3, 30000.0):
        equal = torch.full_like(x, value).to(dtype)
        out = functional.modulated_layer_norm(equal, shift.to(dtype), scale.to(dtype))
        assert torch.equal(out, shift.to(dtype).unsqueeze(2).expand_as(out))


def test_sums_of_many_rows_keep_their_digits():
    x, shift, scale = on_gpu(
        [randn(1, 4, 2000, 8, dtype=torch.float32), *modulations("clips", 1, 4, 8, torch.float32, (1, 2))]
    )
    shift.requires_grad_()
    functional.modulated_layer_norm(x, shift, scale).backward(torch.full_like(x, 0.1))
    exact = 8000 * torch.tensor(0.1).double()
    assert (shift.grad.double() - exact).abs().max() < 5e-6 * exact


def test_gradients_in_float16_may_have_large_sums():
    """A sum of products beyond 65504 in a row, and of rows where the modulation is float32."""
    x, grad = on_gpu(
        [300 * randn(1, 2, 50, 512, dtype=torch.float16), 300 * randn(1, 2, 50, 512, dtype=torch.float16, seed=3)]
    )
    shift, scale = on_gpu(modulations("clips", 1, 2, 512, torch.float32, (1, 2)))
    inputs = [t.requires_grad_() for t in (x, shift, scale)]
    gradients = torch.autograd.grad(functional.modulated_layer_norm(*inputs), inputs, grad)
    assert all(g.isfinite().all() for g in gradients)
    y = x.detach().clone().requires_grad_()
    (of_gate,) = torch.autograd.grad(functional.gated_add(x, scale, y), [scale], grad)
    assert of_gate.isfinite().all() and of_gate.abs().max() > 65504


@each_problem
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(problem, dtype):
    inputs = [t.requires_grad_() for t in on_gpu(problem.inputs(3, 24, dtype))]
    opcheck(getattr(OPS, problem.name).default, tuple(inputs))
    inputs = [t.detach() for t in inputs]
    if problem is GATE:
        opcheck(OPS.gated_add_backward.default, (inputs[2], inputs[1], inputs[0]))
        return
    _, mean, rstd = OPS.modulated_layer_norm_forward(*inputs, 1e-6, None)
    opcheck(OPS.modulated_layer_norm_forward.default, (*inputs, 1e-6, torch.float32))
    opcheck(OPS.modulated_layer_norm_backward.default, (inputs[0], inputs[0], inputs[2], mean, rstd))


@each_problem
def test_float32_and_mixtures_pass_the_check_at_their_first_use(problem, monkeypatch):
    monkeypatch.delenv("FRAMEATTN_KERNELS")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype, dim in product(DTYPES, (88, 89)):
            first, *others = on_gpu(problem.inputs(3, dim, dtype))
            results_of(problem.op, 3, [first.float(), *others], dtype)
            results_of(problem.op, 3, [first, *(t.float() for t in others)], dtype)
    assert not [str(w.message) for w in caught if "does not agree" in str(w.message)]


def test_what_has_no_elements():
    for sizes in ((0, 2, 3, 8), (2, 0, 3, 8), (2, 3, 0, 8), (2, 3, 4, 0)):
        for problem in MODULATION_PROBLEMS:
            x, *others = (t[: sizes[0], ..., : sizes[3]] for t in problem.inputs(max(sizes[1], 1), 8, torch.bfloat16))
            first = x[:, : sizes[1], :1].expand(*sizes).contiguous()
            others = [first if t.dim() == 4 else t[:, : sizes[1]] if t.size(1) > 1 else t for t in others]
            results = results_of(problem.op, sizes[1], on_gpu([first, *others]), torch.bfloat16)
            assert results[0].shape == sizes
            assert all((t == 0).all() for t in results)
