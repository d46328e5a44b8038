"""What is particular to the spatial step: widths, keys that take no part, and gradients of some outputs."""

import pytest
import torch
from flash_problems import DENSE_ROWS, FLASH, MIDDLE_STEP, SPATIAL_STEP, Step, step_inputs, step_problem
from gpu_comparison import OPS, check, on_gpu, one_output, results_of
from gpu_problems import each_dtype, each_kernel_dtype

from oracle import randn

pytestmark = [pytest.mark.cuda, pytest.mark.kernels(*FLASH)]
# Of every width that the kernels compute with, 64, 96, 128 and 256: all of it, less, and values of another.
WIDTHS = [
    (8, 64),
    (20, 9),
    (64, 8),
    (72, 96),
    (96, 96),
    (96, 20),
    (128, 64),
    (128, 128),
    (200, 136),
    (64, 256),
    (256, 256),
]


@each_kernel_dtype
@pytest.mark.parametrize("dim, value_dim", WIDTHS)
@pytest.mark.parametrize("keys", [True, False])
def test_widths(dtype, dim, value_dim, keys):
    problem = step_problem("spatial_step", FLASH, step_inputs, Step(keys=keys))
    check(problem, 70, on_gpu(step_inputs(70, dim, dtype, value_dim)))


@each_kernel_dtype
@pytest.mark.parametrize("size", [1, 63, 129, 300])
@pytest.mark.parametrize("more_keys", [0, 1, 130])
def test_more_keys_than_queries(dtype, size, more_keys):
    inputs = step_inputs(size, 64, dtype, frames=2, more_keys=more_keys)
    check(step_problem("spatial_step", FLASH, step_inputs, Step(frames=2)), size, on_gpu(inputs))


@each_kernel_dtype
@pytest.mark.parametrize("problem", [SPATIAL_STEP, MIDDLE_STEP, DENSE_ROWS], ids=str)
@pytest.mark.parametrize("chosen", [0, -1])  # rows, and the log-sum-exp
def test_a_gradient_of_one_output_alone(problem, dtype, chosen):
    check(one_output(problem, chosen), 70, on_gpu(problem.inputs(70, 40, dtype)))


@each_dtype
@pytest.mark.parametrize("keys", [0, 4])
def test_rows_without_keys_are_zero(dtype, keys):
    """No key at all; or four, of which in the first of two clips none takes part."""
    sizes = ((10, 16), (keys, 16), (keys, 24))
    inputs = on_gpu([randn(2, 3, *size, dtype=dtype, seed=i) for i, size in enumerate(sizes)])
    inputs = [t.requires_grad_() for t in inputs]
    mask = torch.tensor([[False], [True]], device=inputs[0].device).expand(2, keys)
    rows = OPS.spatial_step(*inputs, 2, 0.25, True, mask)
    weighted_key, weighted_value, lse = (t[: 1 if keys else 2] for t in rows)
    assert (weighted_key == 0).all() and (weighted_value == 0).all() and (lse == -float("inf")).all()
    gradients = torch.autograd.grad(rows[:2], inputs, [torch.ones_like(t) for t in rows[:2]])
    assert all((t[:1] == 0).all() and t.isfinite().all() for t in gradients)


@each_kernel_dtype
def test_masked_keys_are_not_read(dtype):
    """What they hold changes no bit; they get no gradient."""
    query, key, value = on_gpu(step_inputs(70, 32, dtype))
    mask = torch.arange(key.size(2), device=key.device).expand(2, -1) % 3 != 1

    def run(number):
        tensors = [query.clone(), *(t.masked_fill(~mask[:, None, :, None], number) for t in (key, value))]
        return results_of(lambda size, *leaves: OPS.spatial_step(*leaves, 3, 0.2, True, mask), 70, tensors, dtype)

    *_, grad_key, grad_value = expected = run(0)
    assert all(torch.equal(a, b) for a, b in zip(run(50), expected, strict=True))
    for gradient in (grad_key, grad_value):
        assert (gradient.transpose(1, 2)[~mask] == 0).all()
