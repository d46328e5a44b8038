"""VMonarch attention of frames that are shared out among processes: against one process."""

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import frameattn
from frameattn import parallel
from frameattn.parallel.exchange import replicated
from video import bind, inputs_of, is_equal_to_one_process, own, parts_of, run, weights_of

# Frames by rank: even, uneven, prime; none on the first rank, in the middle, on the last one; all on one
SPLITS = [(1, 1), (2, 2), (4, 3), (0, 3), (5, 0), (1, 0), (0, 1), (2, 1, 2), (0, 2, 1), (2, 2, 2, 2), (3, 1, 4, 3)]
SPLITS += [(0, 2, 0, 3), (3, 2, 0, 0), (0, 1, 4), (0, 0, 7, 0), (0, 0, 1, 0), (1, 1, 1, 1)]
MASK = [[True, False, True], [False, False, False]]  # all are hidden from the second sample
HALF = [torch.bfloat16, torch.float16]


def equal(processes, counts, **options):
    processes.run(is_equal_to_one_process, counts, ranks=len(counts), **options)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("counts", SPLITS)
def test_equals_one_process(processes, counts, extra, given):
    equal(processes, counts, given=given, mask=MASK if extra else None, sizes=dict(extra=extra))


@pytest.mark.parametrize("counts", [(2, 2), (3, 1, 4, 3), (0, 2, 0, 3)])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_options(processes, first, iterations, counts):
    for entropy_gradient, mass_floor in ((True, 0.9), (False, 1e-6)):  # the mean of the mass is 1
        options = dict(iterations=iterations, dense_first_frame=first, entropy_gradient=entropy_gradient, scale=0.7)
        equal(processes, counts, mass_floor=mass_floor, sizes=dict(extra=3), **options)


@pytest.mark.parametrize("through", ["out", "lse", "both"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("counts", [(3, 2), (0, 4, 1, 2)])
def test_backward_from_either_result(processes, counts, first, through):
    equal(processes, counts, dense_first_frame=first, through=through, mask=MASK, sizes=dict(extra=3))
    equal(processes, counts, dense_first_frame=first, through=through)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("counts", [(3, 2), (0, 4, 1, 2), (5, 0)])
def test_without_log_sum_exp(processes, counts, first):
    for extra in (0, 3):
        equal(processes, counts, return_lse=False, dense_first_frame=first, sizes=dict(extra=extra))


@pytest.mark.parametrize(
    "sizes",
    [
        dict(positions=1),
        dict(positions=2, extra=1),
        dict(positions=7, batch=1, heads=1, dim=5, value_dim=3),
        dict(positions=5, dim=16, value_dim=40),
        dict(batch=0, extra=2),
        dict(heads=0),
        dict(positions=0, extra=2),
    ],
)
@pytest.mark.parametrize("counts", [(3, 2), (2, 1, 0, 2), (1, 1, 1, 1)])
def test_sizes(processes, counts, sizes):
    """Fewer positions than ranks, too, and nothing at all."""
    equal(processes, counts, sizes=sizes)
    if sizes.get("positions") != 0:  # nobody can tell frames of nothing
        equal(processes, counts, sizes=sizes, given=False)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("counts", [(3, 2), (0, 4, 1, 2)])
def test_dtypes(processes, counts, extra, first, dtype):
    sizes = dict(extra=extra, positions=6, dim=16, value_dim=24)
    equal(processes, counts, dense_first_frame=first, dtype=dtype, sizes=sizes, mask=MASK if extra else None)


def heads_last(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def columns_first(x):
    return x.mT.contiguous().mT


@pytest.mark.parametrize("storage", [heads_last, columns_first])
def test_strides(processes, storage):
    for counts in ((3, 2), (0, 4, 1, 2)):
        equal(processes, counts, storage=storage, sizes=dict(extra=3))


@pytest.mark.parametrize("check", [True, False])
def test_the_default_group(processes, check):
    equal(processes, (3, 1, 0, 2), default_group=True, check=check)


def test_a_group_without_the_first_process(processes):
    for given in (True, False):
        for counts in ((3, 2), (0, 2), (0, 4)):
            processes.run(is_equal_to_one_process, counts, given=given, sizes=dict(extra=2), ranks=(1, 3))


# ---- The same bits ---------------------------------------------------------------------------------------------------


def make(group, counts, call=parallel.vmonarch_attention, sizes=None, **options):
    """The function of own tensors, and these tensors."""
    sizes = dict(positions=6, extra=3, dtype=torch.bfloat16) | (sizes or {})
    parts = parts_of(inputs_of(sum(counts), **sizes), counts, dist.get_rank(group))
    options = dict(frames_per_rank=counts, return_lse=True) | options
    return bind(call, sum(counts), group=group, **options), parts


def same(actual, expected):
    """Of lists of lists of tensors."""
    pairs = zip(itertools.chain(*actual), itertools.chain(*expected), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def is_the_operator(group):
    whole = inputs_of(3, extra=3, dtype=torch.bfloat16)
    for options in (dict(), dict(return_lse=True, iterations=3), dict(dense_first_frame=False)):
        expected = run(bind(frameattn.vmonarch_attention, 3, **options), whole)
        for counts in (None, [3]):
            function = bind(parallel.vmonarch_attention, 3, group=group, frames_per_rank=counts, **options)
            assert same(run(function, whole), expected)


def test_a_group_of_one_is_the_operator(processes):
    processes.run(is_the_operator, ranks=1)


def is_deterministic(group, counts):
    function, parts = make(group, counts)
    first = run(function, parts)
    assert all(same(run(function, parts), first) for _ in range(3))
    for reentrant in (False, True):
        recomputed = functools.partial(checkpoint, function, use_reentrant=reentrant)
        assert same(run(recomputed, parts), first)
    with torch.no_grad():
        assert same([list(function(*parts))], first[:1])
    with torch.inference_mode():
        assert same([list(function(*parts))], first[:1])
    storage = [heads_last(x) for x in parts]
    assert same(run(function, storage), first)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 4, 1, 2)])
def test_every_way_gives_the_same_bits(processes, counts):
    """Another run, checkpointing, inference, other strides."""
    processes.run(is_deterministic, counts, ranks=len(counts))


def autocast_runs_in_its_dtype(group, counts):
    function, parts = make(group, counts, sizes=dict(dtype=torch.float32))
    halves = [x.detach().bfloat16().requires_grad_() for x in parts]
    expected_results, expected_grads = run(function, halves)
    for inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            results = function(*parts)
            weights = weights_of(results)
            grads = torch.autograd.grad(results, parts, weights) if inside else None
        grads = grads or torch.autograd.grad(results, parts, weights)
        assert same([list(results)], [expected_results])
        assert same([list(grads)], [[g.float() for g in expected_grads]])


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 4, 1, 2)])
def test_autocast(processes, counts):
    processes.run(autocast_runs_in_its_dtype, counts, ranks=len(counts))


def sends_expanded_gradients(group, counts):
    function, parts = make(group, counts)
    ones = [torch.ones_like(x) for x in function(*parts)]
    expected = run(function, parts, ones)[1]
    out, lse = function(*parts)
    (out.sum() + lse.sum()).backward()
    assert same([[x.grad for x in parts]], [expected])


def changes_results_in_place(group, counts):
    for sizes in (dict(), dict(batch=1, heads=1), dict(batch=1, heads=1, positions=1)):
        for options in (dict(), dict(return_lse=False), dict(return_lse=False, dense_first_frame=False)):
            function, parts = make(group, counts, sizes=sizes, **options)

            def doubled(*tensors, function=function):
                results = function(*tensors)
                for x in results if isinstance(results, tuple) else (results,):
                    x.mul_(2)
                    x[:, :, :1].mul_(0.5)
                return results

            results, _ = run(function, parts)
            for x in results:
                x[:, :, 1:] *= 2
            assert same(run(doubled, parts)[:1], [results])
            doubles = weights_of(results)
            for x in doubles:
                x[:, :, 1:] *= 2
            assert same([run(doubled, parts)[1]], [run(function, parts, doubles)[1]])
            assert parts[0].eq(make(group, counts, sizes=sizes)[1][0]).all()  # no memory of theirs


def differentiates_some(group, counts):
    """Gradients of some tensors are those that they have among all."""
    function, parts = make(group, counts)
    results, grads = run(function, parts)
    weights = weights_of(results)
    for wanted in ([0], [1], [2], [3], [4], [0, 2], [1, 4]):
        tensors = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(parts)]
        out = function(*tensors)
        some = torch.autograd.grad(out, [tensors[i] for i in wanted], weights)
        assert same([list(some)], [[grads[i] for i in wanted]]), wanted


def differentiates_two_calls(group, counts):
    """Two calls in one graph, and backward twice through it."""
    function, parts = make(group, counts)
    results, grads = run(function, parts)
    weights = weights_of(results)
    first, second = function(*[x * 1 for x in parts]), function(*[x * 1 for x in parts])
    for _ in range(2):
        twice = torch.autograd.grad([*first, *second], parts, weights * 2, retain_graph=True)
        assert same([list(twice)], [[2 * g for g in grads]])


@pytest.mark.parametrize("function", [sends_expanded_gradients, differentiates_some, differentiates_two_calls])
@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 4, 1, 2)])
def test_graphs(processes, counts, function):
    processes.run(function, counts, ranks=len(counts))


@pytest.mark.parametrize("counts", [(3, 2), (0, 4, 1, 2)])
def test_results_may_be_changed_in_place(processes, counts):
    processes.run(changes_results_in_place, counts, ranks=len(counts))


# ---- Derivatives -----------------------------------------------------------------------------------------------------


class Gather(torch.autograd.Function):
    """Own frames of every process -> the whole, of which every process computes the same."""

    @staticmethod
    def forward(ctx, x, group, counts):
        ctx.place = counts, dist.get_rank(group)
        pieces = [None] * len(counts)
        dist.all_gather_object(pieces, x, group)
        return torch.cat(pieces, dim=2)

    @staticmethod
    def backward(ctx, grad):
        return own(grad, *ctx.place), None, None


def passes_gradcheck(group, counts, options):
    rank = dist.get_rank(group)

    def whole(query, key, value, extra_key, extra_value):
        parts = [own(x, counts, rank) for x in replicated(group, query, key, value)]
        function = bind(
            parallel.vmonarch_attention, sum(counts), group=group, frames_per_rank=counts, return_lse=True, **options
        )
        return tuple(Gather.apply(x, group, counts) for x in function(*parts, extra_key, extra_value))

    sizes = dict(positions=2, batch=1, heads=1, dim=3, value_dim=2, extra=2)
    inputs = [x.requires_grad_() for x in inputs_of(sum(counts), **sizes)]
    assert torch.autograd.gradcheck(whole, inputs)


@pytest.mark.parametrize("counts", [(2, 1), (0, 2)])
@pytest.mark.parametrize("options", [dict(), dict(dense_first_frame=False, mass_floor=0.9)])
def test_gradcheck(processes, options, counts):
    processes.run(passes_gradcheck, counts, options)


def refuses_second_derivatives(group, counts):
    function, parts = make(group, counts)
    for i in range(5):
        grads = torch.autograd.grad(function(*parts), parts, weights_of(function(*parts)), create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once|differentiate twice"):
            grads[i].sum().backward()
    (x,) = replicated(group, parts[3])
    (grad,) = torch.autograd.grad(x.square().sum(), parts[3], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def refuses_function_transforms(group, counts):
    function, parts = make(group, counts)
    query, *others = [x.detach() for x in parts]
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda query: function(query, *others)[0].sum())(query)
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.jvp(lambda query: function(query, *others)[0], (query,), (query,))


@pytest.mark.parametrize("function", [refuses_second_derivatives, refuses_function_transforms])
def test_what_is_not_differentiable_is_an_error(processes, function):
    for counts in ((3, 2), (0, 2, 2)):
        processes.run(function, counts, ranks=len(counts))


@pytest.mark.parametrize("counts, positions", [((1, 1), 1), ((2, 1, 0), 4), ((2, 1), 2)])
def test_odd_widths_of_16_bits(processes, counts, positions):
    """A statistic lies behind an odd number of 16-bit columns, and nothing of it may be there."""
    sizes = dict(batch=1, heads=1, positions=positions, dim=4, value_dim=5)
    equal(processes, counts, dtype=torch.bfloat16, sizes=sizes)
