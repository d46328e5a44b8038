"""How the operators behave on a GPU: every byte written, the same bits each time, streams, graphs, fallbacks."""

import warnings

import pytest
import torch
from gpu_comparison import GpuProblem, check, on_gpu, results_of
from gpu_problems import WITH_KERNELS, each, each_dtype, each_kernel_dtype, each_problem
from torch.profiler import ProfilerActivity, profile

from frameattn import build_info, cuda_devices

pytestmark = pytest.mark.cuda
LONG = 100_000_000  # clocks: some 50 ms


def poison(like):
    """Leaves NaN in the memory that the allocator hands out next: in blocks of the sizes that come, and of others."""
    blocks = [torch.full_like(t, float("nan")) for t in like for _ in range(3)]
    blocks += [torch.full((2**power,), float("nan"), device="cuda") for power in range(7, 23) for _ in range(3)]
    torch.cuda.synchronize()
    del blocks


def assert_same(problem: GpuProblem, dtype, actual, expected):
    """Bit for bit where our kernel runs; libraries may choose other products on another stream or in a graph."""
    exact = bool(problem.kernels) and dtype in (torch.bfloat16, torch.float16)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b) if exact else a.isfinite().all()
        torch.testing.assert_close(a, b)


def run(problem: GpuProblem, size: int, inputs):
    return results_of(problem.op, size, inputs, inputs[0].dtype)


@each_problem
@each_dtype
@pytest.mark.parametrize("size, dim", [(7, 20), (17, 72), (33, 128), (130, 20)])
def test_three_repeats_into_poisoned_memory_have_the_same_bits(problem, dtype, size, dim):
    inputs = on_gpu(problem.inputs(size, dim, dtype))
    first = check(problem, size, inputs)
    for _ in range(3):
        poison(first)
        for before, after in zip(first, run(problem, size, inputs), strict=True):
            assert torch.equal(before, after)  # also fails for NaN


@pytest.mark.gpu_only
@each_problem
@each_dtype
def test_runs_on_the_current_stream(problem, dtype):
    inputs = on_gpu(problem.inputs(17, 16, dtype))
    expected = run(problem, 17, inputs)
    late = [torch.full_like(t, float("nan")) for t in inputs]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)  # who does not wait for this stream reads NaN
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        results = run(problem, 17, late)
    stream.synchronize()
    assert_same(problem, dtype, results, expected)


@pytest.mark.gpu_only
@each_problem
@each_dtype
def test_is_captured_in_a_cuda_graph(problem, dtype):
    inputs = on_gpu(problem.inputs(17, 16, dtype))
    expected = run(problem, 17, inputs)
    static = [torch.zeros_like(t).requires_grad_() for t in inputs]
    grads = [torch.zeros_like(out) for out in problem.op(17, *static) if out.requires_grad]

    def step():
        outputs = problem.op(17, *static)
        differentiable = [out for out in outputs if out.requires_grad]
        return [*outputs, *torch.autograd.grad(differentiable, static, grads)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # libraries make their handles and workspaces
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    # What results_of gives as gradients of the outputs.
    record = []
    results_of(lambda size, *leaves: record_outputs(record, problem.op(size, *leaves)), 17, inputs, dtype)
    with torch.no_grad():
        for target, source in zip([*static, *grads], [*inputs, *record], strict=True):
            target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(problem, dtype, results, expected)


def record_outputs(record, outputs):
    """The outputs; when backward comes by, the gradients that it was given are appended to `record` in their order."""
    differentiable = [out for out in outputs if out.requires_grad]
    record.extend([None] * len(differentiable))
    for i, out in enumerate(differentiable):
        out.register_hook(lambda grad, i=i: record.__setitem__(i, grad))
    return outputs


@pytest.mark.gpu_only
@each(WITH_KERNELS)
@each_kernel_dtype
@pytest.mark.parametrize("size", [16, 200])
def test_runs_the_kernel(problem, dtype, size):
    """By their names: what torch's operators computed in their place would pass all other tests."""
    inputs = on_gpu(problem.inputs(size, 16, dtype))
    run(problem, size, inputs)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(problem, size, inputs)
        torch.cuda.synchronize()
    names = {event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    if not names:
        pytest.skip("this machine does not let torch's profiler see kernels")
    for kernel in problem.kernels_behind(size, False) | problem.kernels_behind(size, True):
        assert any(kernel in name for name in names), f"{kernel} did not run, but {names}"


@each(WITH_KERNELS)
@each_kernel_dtype
@pytest.mark.parametrize("size", [7, 33, 150])
def test_kernel_and_composed_are_as_close_as_eager_code(problem, dtype, size, monkeypatch):
    """Each against float64, by what eager code in 16 bits errs: what the kernel rounds to 16 bits is float32 in the
    composed one, whose error is no measure for the kernel's."""
    inputs = on_gpu(problem.inputs(size, 72, dtype))
    check(problem, size, inputs)
    monkeypatch.setenv("FRAMEATTN_KERNELS", "composed")
    check(problem, size, inputs)


@each(WITH_KERNELS)
@each_kernel_dtype
@pytest.mark.parametrize("size, dim", [(1, 72), (16, 72), (21, 128), (64, 64), (150, 64)])
def test_passes_the_check_at_its_first_use(problem, dtype, size, dim, monkeypatch):
    """What users run without a line in trusted_kernels.inc; a mismatch would be a warning."""
    monkeypatch.delenv("FRAMEATTN_KERNELS")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(problem, size, on_gpu(problem.inputs(size, dim, dtype)))
    assert not [str(w.message) for w in caught if "does not agree" in str(w.message)]


@pytest.mark.gpu_only
def test_the_build_fits_the_gpu():
    (line, *_) = cuda_devices()
    major, minor = torch.cuda.get_device_capability(0)
    assert f"compute capability {major}.{minor}" in line
    assert "runs machine code" in line, f"{line}; built for {build_info()['cuda architectures']}"


@pytest.mark.gpu_only
def test_the_gpu_can_run_kernels():
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        pytest.skip(f"compute capability {capability} is below 8.0: torch's operators do all the work")
    assert torch.cuda.is_bf16_supported()
