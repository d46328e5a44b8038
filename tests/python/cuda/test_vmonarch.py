"""What is particular to all of VMonarch attention: shapes, options, extra keys, views, memory."""

import pytest
import torch
from flash_problems import VMONARCH, VMONARCH_EXTRA, WHOLE, inputs_with_extra_keys, vmonarch
from gpu_comparison import check, on_gpu, one_output
from gpu_problems import each_dtype, each_kernel_dtype

from benchmarks.timing import memory_of
from frameattn.functional import vmonarch_attention
from oracle import randn

pytestmark = [pytest.mark.cuda, pytest.mark.kernels(*WHOLE, "flash_join_sm80", "flash_sum_sm80")]
SHAPES = [  # B, H, T, S, D, Dv
    (2, 2, 3, 5, 8, 8),
    (1, 2, 1, 70, 64, 72),  # one frame: dense attention
    (1, 3, 17, 1, 20, 12),  # one position
    (2, 2, 5, 67, 64, 64),
    (1, 2, 2, 130, 128, 96),
    (1, 2, 131, 3, 16, 24),  # more frames than a kernel takes
    (1, 2, 3, 150, 96, 96),
    (1, 1, 2, 40, 200, 256),
    (1, 2, 2, 33, 256, 72),
    (1, 2, 8, 300, 72, 72),  # dense rows whose keys are split
]


def inputs_of(shape, dtype, extra=0):
    batch, heads, frames, positions, dim, value_dim = shape
    tokens = frames * positions
    rows = [(tokens, dim), (tokens, dim), (tokens, value_dim)] + [(extra, dim), (extra, value_dim)] * bool(extra)
    return [randn(batch, heads, *row, dtype=dtype, seed=i) for i, row in enumerate(rows)]


@each_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype):
    check(VMONARCH, shape[2], on_gpu(inputs_of(shape, dtype)))


@each_dtype
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("entropy", [True, False])
def test_matches_reference_for_every_option(dtype, iterations, first, entropy):
    options = dict(iterations=iterations, dense_first_frame=first, entropy_gradient=entropy, mass_floor=0.9, scale=0.2)
    check(vmonarch("vmonarch_attention", WHOLE, None, **options), 4, on_gpu(inputs_of((2, 2, 4, 33, 40, 24), dtype)))


@each_dtype
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("extra", [1, 70, 1100])
def test_extra_keys_match_reference(dtype, first, extra):
    problem = vmonarch("vmonarch_attention", WHOLE, None, dense_first_frame=first)
    check(problem, 3, on_gpu(inputs_of((2, 2, 3, 40, 64, 40), dtype, extra)))


@each_dtype
def test_extra_keys_of_which_none_takes_part_change_nothing(dtype):
    inputs = [t.requires_grad_() for t in on_gpu(inputs_with_extra_keys(7, 16, dtype))]
    mask = torch.zeros(2, 9, dtype=torch.bool, device=inputs[0].device)
    extra = dict(zip(("extra_key", "extra_value"), inputs[3:], strict=True))
    out, lse = vmonarch_attention(*inputs[:3], 7, extra_mask=mask, **extra, return_lse=True)
    plain, plain_lse = vmonarch_attention(*inputs[:3], 7, return_lse=True)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(lse, plain_lse)
    gradients = torch.autograd.grad(out.float().sum() + lse.sum(), inputs)
    assert all(t.isfinite().all() for t in gradients) and all((t == 0).all() for t in gradients[3:])


@each_dtype
@pytest.mark.parametrize("problem", [VMONARCH, VMONARCH_EXTRA], ids=str)
@pytest.mark.parametrize("chosen", [0, 1])
def test_a_gradient_of_one_output_alone(problem, dtype, chosen):
    check(one_output(problem, chosen), 7, on_gpu(problem.inputs(7, 16, dtype)))


@each_dtype
def test_views_of_a_packed_projection(dtype):
    """[B, N, 3, H, D] as one linear layer gives it; and one query for all rows."""
    frames, heads, dim = 3, 4, 32
    packed = randn(2, frames * 21, 3, heads, dim, dtype=dtype).cuda()
    query, key, value = (packed[:, :, i].transpose(1, 2) for i in range(3))
    found = check(VMONARCH, frames, [query, key, value])
    if dtype in (torch.bfloat16, torch.float16):
        contiguous = check(VMONARCH, frames, [t.contiguous() for t in (query, key, value)])
        assert all(torch.equal(a, b) for a, b in zip(found, contiguous, strict=True))
    check(VMONARCH, frames, [query[:, :, :1].expand_as(query), key, value])


@each_kernel_dtype
@pytest.mark.parametrize("shape", SHAPES[:7])
def test_inference_and_training_give_the_same_bits(shape, dtype):
    inputs = on_gpu(inputs_of(shape, dtype, extra=9))
    extra = dict(zip(("extra_key", "extra_value"), inputs[3:], strict=True))
    trained = vmonarch_attention(*(t.clone().requires_grad_() for t in inputs[:3]), shape[2], iterations=3, **extra)
    assert torch.equal(vmonarch_attention(*inputs[:3], shape[2], iterations=3, **extra), trained.detach())


@each_kernel_dtype
@pytest.mark.parametrize("shape", [SHAPES[3], (1, 5, 4, 67, 64, 64)])
def test_gradients_have_the_same_bits_whatever_the_workspace(shape, dtype):
    inputs = [t.requires_grad_() for t in on_gpu(inputs_of(shape, dtype, extra=9))]
    extra = dict(zip(("extra_key", "extra_value"), inputs[3:], strict=True))

    def gradients(workspace_bytes):
        out = vmonarch_attention(*inputs[:3], shape[2], **extra, workspace_bytes=workspace_bytes)
        return torch.autograd.grad(out.float().square().sum(), inputs)

    expected = gradients(None)
    for workspace_bytes in (0, 20 * inputs[0][0, 0].nbytes):
        assert all(map(torch.equal, gradients(workspace_bytes), expected))


@each_kernel_dtype
def test_values_at_the_edge_of_float16(dtype):
    query, key, value = on_gpu(inputs_of(SHAPES[3], dtype))
    inputs = [t.requires_grad_() for t in (query, torch.ones_like(key), value.sign() * 65504)]
    out = vmonarch_attention(*inputs, SHAPES[3][2])
    assert out.isfinite().all()
    assert all(t.isfinite().all() for t in torch.autograd.grad(out, inputs, torch.full_like(out, 1e-3)))


@pytest.mark.gpu_only
@pytest.mark.parametrize("first", [True, False])
def test_memory(first):
    """Beside the output, inference holds one tensor like query, and dense rows another at most; for backward are kept
    `iterations` tensors like query, one like value and 3 * iterations numbers a row."""
    shape = (1, 12, 16, 256, 128, 128)
    inputs = on_gpu(inputs_of(shape, torch.bfloat16))
    tensor, number, iterations = inputs[0].nbytes, 4 * inputs[0][..., 0].numel(), 2

    def run():
        return vmonarch_attention(*inputs, shape[2], iterations=iterations, dense_first_frame=first)

    run()
    device, spare = inputs[0].device, 2**20
    with torch.no_grad():
        assert memory_of(run, device).peak <= (2 + first) * tensor + 4 * number + spare
    for t in inputs:
        t.requires_grad_()
    # The output and its log-sum-exp; mass is kept for all iterations but the last.
    assert memory_of(run, device).kept <= (iterations + 2) * tensor + 3 * iterations * number + spare


@pytest.mark.gpu_only
@pytest.mark.parametrize("chunks", [1, 3])
def test_memory_of_backward(chunks):
    """Beside results and statistics 6 tensors like query, or a part of them."""
    shape = (1, 12, 16, 256, 128, 128)
    inputs = [t.requires_grad_() for t in on_gpu(inputs_of(shape, torch.bfloat16))]
    tensor, number = inputs[0].nbytes, 4 * inputs[0][..., 0].numel()
    out = vmonarch_attention(*inputs, shape[2], workspace_bytes=6 * tensor // chunks)
    grad = torch.ones_like(out)

    def run():
        return torch.autograd.grad(out, inputs, grad, retain_graph=True)

    run()
    assert memory_of(run, inputs[0].device).peak <= (3 + 6 / chunks) * tensor + 6 * number + 2**20


@each_kernel_dtype
def test_offsets_beyond_32_bits(dtype):
    """Two clips that lie more than 2^31 elements apart."""
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("this needs 8 GiB of memory")
    shape = (2, 1, 3, 5, 8, 8)
    apart, size = 2**31 + 8, 3 * 5 * 8
    storage = torch.empty(apart + 3 * size, dtype=dtype, device="cuda")
    near = on_gpu(inputs_of(shape, dtype))
    far = [storage.as_strided(t.shape, (apart, size, 8, 1), i * size) for i, t in enumerate(near)]
    for target, source in zip(far, near, strict=True):
        target.copy_(source)
    for a, b in zip(check(VMONARCH, 3, far), check(VMONARCH, 3, near), strict=True):
        assert torch.equal(a, b)
