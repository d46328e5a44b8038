import pytest
import torch
from torch.nn import functional as F

from frameattn import functional, reference
from frameattn.models.framedit import Mlp
from oracle import DTYPES, check_against_reference, randn

OPS = torch.ops.frameattn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5), (1023,), (3, 1025), (40, 1024)])
def test_match_reference(shape, dtype):
    check_against_reference(functional.gelu_tanh, reference.gelu_tanh, [3 * randn(*shape, dtype=dtype)])


def test_is_what_torch_calls_tanh():
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(
        (functional.gelu_tanh(x), *torch.autograd.grad(functional.gelu_tanh(x).sum(), x)),
        (F.gelu(x, approximate="tanh"), *torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_small_results_keep_their_digits():
    # 1 + tanh is 0 in float32 from -5.5 on, where the sigmoid is still exact. Exact values: expm1 in float64.
    x = torch.tensor([-5.5, -7.0, -9.0], dtype=torch.float64)
    z = 2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    exact = x * z.exp() / (1 + z.exp())
    torch.testing.assert_close(functional.gelu_tanh(x.float()).double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_finite_number(dtype):
    most = torch.finfo(dtype).max
    x = torch.tensor([most, -most, most**0.5, -(most**0.5), 60, -60, 0], dtype=dtype, requires_grad=True)
    y = functional.gelu_tanh(x)
    assert torch.equal(y, x.clamp_min(0))
    slopes = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    assert slopes.tolist() == [1, 0, 1, 0, 1, 0, 0.5]
    assert functional.gelu_tanh(torch.tensor([float("nan")], dtype=dtype)).isnan().all()


def test_strides_and_nothing():
    x = randn(6, 5, 4)
    for view in (x.transpose(0, 2), x[::2, :, 1:3], x[:, :1].expand(6, 5, 4), x[:0]):
        check_against_reference(functional.gelu_tanh, reference.gelu_tanh, [view])
        assert functional.gelu_tanh(view).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    torch.library.opcheck(OPS.gelu_tanh.default, (randn(3, 5, dtype=dtype, requires_grad=True),))
    torch.library.opcheck(OPS.gelu_tanh_forward.default, (randn(3, 5, dtype=dtype),))
    torch.library.opcheck(OPS.gelu_tanh_backward.default, (randn(3, 5, dtype=dtype), randn(3, 5, dtype=dtype)))


def test_gradients():
    assert torch.autograd.gradcheck(functional.gelu_tanh, [2 * randn(4, 33, requires_grad=True)])
    x = randn(3, requires_grad=True)
    slope = torch.autograd.grad(functional.gelu_tanh(x).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once"):
        slope.sum().backward()


def test_forward_mode_is_refused_and_not_zero():
    x = randn(3)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(functional.gelu_tanh, (x,), (torch.ones_like(x),))


def test_threads_do_not_matter():
    x, threads = randn(5, 40001, dtype=torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(functional.gelu_tanh(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_wrong_inputs():
    with pytest.raises(RuntimeError, match=r"gelu_tanh: x must be float64, float32, bfloat16 or float16, got Int"):
        functional.gelu_tanh(torch.ones(2, dtype=torch.int32))
    for grad_out in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(RuntimeError, match=r"grad_out must have the sizes of x, \[2\]"):
            OPS.gelu_tanh_backward(grad_out, torch.ones(2))
    with pytest.raises(RuntimeError, match=r"grad_out must have the dtype of x, Float, got Double"):
        OPS.gelu_tanh_backward(torch.ones(2).double(), torch.ones(2))


def test_mlp_compiled_is_mlp():
    mlp, x = Mlp(8, 32), randn(2, 3, 8, dtype=torch.float32, requires_grad=True)
    expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
    for model in (mlp, torch.compile(mlp, fullgraph=True)):
        y = model(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for z in (y, expected)))
