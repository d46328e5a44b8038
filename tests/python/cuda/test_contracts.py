"""What torch asks of an operator on CUDA tensors, and what it refuses."""

import pytest
import torch
from flash_problems import some
from frame_problems import MASS_FLOOR
from gpu_comparison import OPS, check, on_gpu
from gpu_problems import PROBLEMS
from torch.library import opcheck

from frameattn.functional import vmonarch_attention
from oracle import randn

pytestmark = pytest.mark.cuda
ARGUMENTS = {  # of the operators, from the tensors
    "matrix_attention": lambda *tensors: (*tensors, 2, 3),
    "matrix_linear": lambda *tensors: tensors,
    "temporal_update": lambda *tensors: (*tensors, 7, MASS_FLOOR),
    "temporal_output": lambda *tensors: (*tensors, 7),
    "spatial_step": lambda query, key, value: (query, key, value, 3, 0.25, True, some(key)),
    "vmonarch_attention": lambda *tensors: (*tensors, 7),
}
BY_NAME = {problem.name: problem for problem in PROBLEMS if problem.name in ARGUMENTS}
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def inputs_of(name, dtype=torch.bfloat16):
    return on_gpu(BY_NAME[name].inputs(7, 16, dtype))


def gradient_of(tensor, seed=9):
    return randn(*tensor.shape, seed=seed).to(tensor.device, tensor.dtype)


@each_dtype
@pytest.mark.parametrize("name", BY_NAME)
def test_opcheck(name, dtype):
    inputs = [t.requires_grad_() for t in inputs_of(name, dtype)]
    opcheck(getattr(OPS, name).default, ARGUMENTS[name](*inputs))


@each_dtype
def test_opcheck_of_the_backward_operators(dtype):
    query, key, value = inputs_of("matrix_attention", dtype)
    opcheck(OPS.matrix_attention_backward.default, (gradient_of(value), query, key, value, 2, 3))

    query, weighted_key, entropy = inputs_of("temporal_update", dtype)
    surrogate, mass = OPS.temporal_update(query, weighted_key, entropy, 7, MASS_FLOOR)
    arguments = (gradient_of(surrogate), query, weighted_key, entropy, mass, 7, MASS_FLOOR)
    opcheck(OPS.temporal_update_backward.default, arguments)

    inputs = inputs_of("temporal_output", dtype)
    out, lse = OPS.temporal_output(*inputs, 7)
    for grads in ((gradient_of(out), gradient_of(lse)), (gradient_of(out), None), (None, gradient_of(lse))):
        opcheck(OPS.temporal_output_backward.default, (*grads, *inputs, 7))

    query, key, value = inputs_of("spatial_step", dtype)
    rows = OPS.spatial_step(query, key, value, 3, 0.25, True)
    gradients = [gradient_of(t) for t in rows]
    opcheck(OPS.spatial_step_backward.default, (*gradients, query, key, value, None, *rows, 3, 0.25))


@each_dtype
def test_opcheck_of_all_of_vmonarch(dtype):
    """With extra keys, and the two operators that the public one is made of."""
    query, key, value = inputs_of("vmonarch_attention", dtype)
    extra = [query[:, :, :5].clone(), value[:, :, :5].clone()]
    mask, options = some(extra[0]), (7, 2, True, MASS_FLOOR, 0.25)
    for save in (False, True):
        opcheck(OPS.vmonarch_attention_forward.default, (query, key, value, *options, *extra, mask, save))
    out, lse, saved = OPS.vmonarch_attention_forward(query, key, value, *options, *extra, mask, True)
    gradients = (gradient_of(out), gradient_of(lse))
    backward = (*gradients, query, key, value, out, lse, saved, *options, True, *extra, mask)
    opcheck(OPS.vmonarch_attention_backward.default, (*backward, 1))
    leaves = [t.requires_grad_() for t in (query, key, value, *extra)]
    public = (*leaves[:3], 7, 2, True, MASS_FLOOR, None, True, *leaves[3:], mask, True, 1)
    opcheck(OPS.vmonarch_attention.default, public)


@pytest.mark.parametrize("name", BY_NAME)
def test_gradients_of_some_outputs_and_inputs(name):
    """A gradient does not depend on which others are asked for."""
    problem = BY_NAME[name]
    inputs = [t.requires_grad_() for t in inputs_of(name)]
    out = problem.op(7, *inputs)[0]
    grad = gradient_of(out)
    everything = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    for tensor, expected in zip(inputs, everything, strict=True):
        (alone,) = torch.autograd.grad(out, tensor, grad, retain_graph=True)
        torch.testing.assert_close(alone, expected)


def test_a_gradient_without_contiguous_memory():
    for name in BY_NAME.keys() - {"matrix_linear"}:  # a library's products
        inputs = [t.requires_grad_() for t in inputs_of(name)]
        out = BY_NAME[name].op(7, *inputs)[0]
        expanded = torch.ones((), device="cuda", dtype=out.dtype).expand_as(out)
        for a, b in zip(
            torch.autograd.grad(out, inputs, expanded, retain_graph=True),
            torch.autograd.grad(out, inputs, expanded.contiguous()),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", BY_NAME)
def test_autocast(name):
    inputs = [t.requires_grad_() for t in inputs_of(name, torch.float32)]
    with torch.autocast("cuda", torch.bfloat16):
        out = BY_NAME[name].op(7, *inputs)[0]
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", BY_NAME)
def test_compiles_into_one_graph(name):
    problem = BY_NAME[name]
    compiled = torch.compile(lambda *tensors: problem.op(7, *tensors), fullgraph=True, backend="aot_eager")
    inputs = inputs_of(name)
    for actual, expected in zip(compiled(*inputs), problem.op(7, *inputs), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.gpu_only
@pytest.mark.parametrize(
    "name, index, words",
    [
        ("matrix_attention", 1, "matrix_attention: key must be on the device of query, cuda:0, got cpu"),
        ("matrix_attention", 2, "matrix_attention: value must be on the device of query, cuda:0, got cpu"),
        ("matrix_attention", 0, "matrix_attention: key must be on the device of query, cpu, got cuda:0"),
        ("matrix_linear", 1, "matrix_linear: u must be on the device of x, cuda:0, got cpu"),
        ("matrix_linear", 2, "matrix_linear: w must be on the device of x, cuda:0, got cpu"),
        ("matrix_linear", 3, "matrix_linear: bias must be on the device of x, cuda:0, got cpu"),
        ("temporal_update", 1, "temporal_update: weighted_key must be on the device of query, cuda:0, got cpu"),
        ("temporal_update", 2, "temporal_update: entropy must be Float on cuda:0, got Float on cpu"),
        ("temporal_output", 3, "temporal_output: value must be on the device of query, cuda:0, got cpu"),
        ("spatial_step", 1, "spatial_step: key must be on the device of query, cuda:0, got cpu"),
        ("spatial_step", 2, "spatial_step: value must be on the device of key, cuda:0, got cpu"),
        ("vmonarch_attention", 1, "vmonarch_attention: key must be on the device of query, cuda:0, got cpu"),
        ("vmonarch_attention", 2, "vmonarch_attention: value must be on the device of query, cuda:0, got cpu"),
    ],
)
def test_rejects_tensors_on_two_devices(name, index, words):
    inputs = inputs_of(name)
    inputs[index] = inputs[index].cpu()
    with pytest.raises(RuntimeError, match=words):
        BY_NAME[name].op(7, *inputs)


@pytest.mark.parametrize("name", BY_NAME)
def test_rejects_other_shapes_and_dtypes_and_works_afterwards(name):
    problem, inputs = BY_NAME[name], inputs_of(name)
    with pytest.raises(RuntimeError, match=f"{name}: "):
        problem.op(7, inputs[0][..., :-1], *inputs[1:])
    with pytest.raises(RuntimeError, match=f"{name}: .* must have the dtype of .*, BFloat16, got Half"):
        problem.op(7, inputs[0], inputs[1].half(), *inputs[2:])
    check(problem, 7, inputs)  # an error leaves nothing behind on the device


@pytest.mark.gpu_only
def test_rejects_masks_and_extra_keys_on_another_device():
    query, key, value = inputs_of("spatial_step")
    with pytest.raises(RuntimeError, match="spatial_step: key_mask must be on the device of the keys, cuda:0, got cpu"):
        OPS.spatial_step(query, key, value, 3, 0.25, True, some(key.cpu()))
    query, key, value = inputs_of("vmonarch_attention")
    with pytest.raises(RuntimeError, match="extra_key must be on the device of query, cuda:0, got cpu"):
        vmonarch_attention(query, key, value, 7, extra_key=key.cpu(), extra_value=value)
    with pytest.raises(RuntimeError, match="extra_mask must be on the device of the keys, cuda:0, got cpu"):
        vmonarch_attention(query, key, value, 7, extra_key=key, extra_value=value, extra_mask=some(key.cpu()))


def test_rejects_a_mask_of_another_dtype():
    query, key, value = inputs_of("spatial_step")
    with pytest.raises(RuntimeError, match="spatial_step: key_mask must be bool"):
        OPS.spatial_step(query, key, value, 3, 0.25, True, some(key).float())
