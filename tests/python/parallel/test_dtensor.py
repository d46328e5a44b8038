"""DTensors as arguments, and how often processes communicate."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import frameattn
from frameattn import parallel
from video import bind, inputs_of, parts_of, run, weights_of


@functools.cache
def mesh_of(group, shape):
    """All four processes as a grid, or a group as a line."""
    return init_device_mesh("cpu", shape) if len(shape) > 1 else DeviceMesh.from_group(group, "cpu")


def is_the_operator(group, shape, placements, frames, positions, extra, **options):
    """Results and gradients of DTensors, whole, are those of one process."""
    mesh = mesh_of(group, shape)
    options = dict(return_lse=True, extra_mask=torch.tensor([[True, False, True]] * 4) if extra else None) | options
    whole = inputs_of(frames, positions, batch=4, heads=3, extra=3 if extra else 0)
    expected_results, expected = run(bind(frameattn.vmonarch_attention, frames, **options), whole)

    plain = [Replicate() if p == Shard(2) else p for p in placements]  # extra keys have other tokens
    tensors = [distribute_tensor(x, mesh, placements).requires_grad_() for x in whole[:3]]
    if extra == "DTensor":
        tensors += [distribute_tensor(x, mesh, plain).requires_grad_() for x in whole[3:]]
        options["extra_mask"] = distribute_tensor(
            options["extra_mask"], mesh, [p if p == Shard(0) else Replicate() for p in plain]
        )
    elif extra:
        tensors += [x.detach().requires_grad_() for x in whole[3:]]
    results = bind(parallel.vmonarch_attention, frames, **options)(*tensors)
    for x, wanted in zip(results, expected_results, strict=True):
        assert isinstance(x, DTensor) and x.placements == tuple(placements) and x.shape == wanted.shape
        assert x.stride() == wanted.stride()
        torch.testing.assert_close(x.full_tensor(), wanted)
    weights = [distribute_tensor(w, mesh, placements) for w in weights_of(expected_results)]
    torch.autograd.backward(results, weights)
    for x, wanted in zip(tensors, expected, strict=True):
        grad = x.grad.full_tensor() if isinstance(x.grad, DTensor) else x.grad
        torch.testing.assert_close(grad, wanted)
    for x in tensors[:3]:
        assert x.grad.placements == tuple(placements)
    loss = results[0].detach().requires_grad_()
    loss.sum().backward()  # a result takes part in what DTensors do


@pytest.mark.parametrize("extra", [None, "DTensor", "plain"])
@pytest.mark.parametrize(
    "ranks, frames, positions", [(1, 3, 3), (2, 4, 3), (4, 8, 3), (2, 5, 1), (4, 2, 1), (3, 1, 1), (4, 5, 1)]
)
def test_shares_of_tokens(processes, ranks, frames, positions, extra):
    """Even ones, and of frames of one token others: those of 5 among 4 are 2, 2, 1 and none."""
    processes.run(is_the_operator, (ranks,), (Shard(2),), frames, positions, extra, ranks=ranks)


@pytest.mark.parametrize("extra", [None, "DTensor"])
@pytest.mark.parametrize(
    "placements", [(Shard(1), Shard(2)), (Shard(2), Shard(0)), (Shard(0), Shard(2)), (Replicate(), Shard(2))]
)
def test_shares_of_heads_or_samples_too(processes, placements, extra):
    """Heads 3 on two ranks: not as many on each."""
    processes.run(is_the_operator, (2, 2), placements, 4, 3, extra, ranks=4)
    processes.run(is_the_operator, (2, 2), placements, 3, 1, extra, dense_first_frame=False, iterations=1, ranks=4)


def raises(group, words, changes, ranks=2):
    mesh = mesh_of(group, (ranks,))
    whole = dict(zip(("query", "key", "value"), inputs_of(4), strict=True))
    arguments = {name: distribute_tensor(x, mesh, [Shard(2)]) for name, x in whole.items()}
    for name, change in changes.items():
        if name == "extra":
            extra = inputs_of(1, extra=4)[3:]
            extra = [DTensor.from_local(x, mesh, [change], run_check=False) for x in extra]
            arguments |= dict(zip(("extra_key", "extra_value"), extra, strict=True))
        elif isinstance(change, Partial):
            arguments[name] = DTensor.from_local(whole[name], mesh, [change], run_check=False)
        elif change == "plain":
            arguments[name] = arguments[name].to_local()
        elif name in whole:
            arguments[name] = distribute_tensor(whole[name], mesh, [change])
        else:
            arguments[name] = change
    arguments.setdefault("frames", 4)
    if "group" in arguments:
        arguments["group"] = group
    with pytest.raises(RuntimeError, match=words):
        parallel.vmonarch_attention(**arguments)


ALONG = "query must be sharded along its tokens, dimension 2, by one dimension of the mesh"
ALIKE = "must be a DTensor laid out as query, .*Shard.dim=2.*, got"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(frames=3, query=Shard(2)), "every rank must have whole frames; 12 tokens in 3 frames are 4 in each, and"),
        (dict(frames=5), "frames must divide the tokens of all ranks, 12, got 5"),
        (dict(key=Shard(1)), f"key {ALIKE} .*Shard.dim=1"),
        (dict(value=Replicate()), f"value {ALIKE} .*Replicate"),
        (dict(value=Partial()), f"value {ALIKE} .*Partial"),
        (dict(key="plain"), f"key {ALIKE} a plain tensor"),
        (dict(query="plain"), "query must be a DTensor where others are"),
        (dict.fromkeys(("query", "key", "value"), Partial()), ALONG),
        (dict.fromkeys(("query", "key", "value"), Replicate()), ALONG),
        (dict.fromkeys(("query", "key", "value"), Shard(3)), ALONG),
        (
            dict(extra=Shard(2)),
            "extra_key must be replicated along the dimension of the mesh that shares out tokens, got",
        ),
        (dict(extra=Partial()), "extra_key must be replicated along the dimension of the mesh that shares out tokens"),
        (dict(group=True), "DTensors say by their layout what group and frames_per_rank are; give neither"),
        (dict(frames_per_rank=[2, 2]), "DTensors say by their layout what group and frames_per_rank are; give neither"),
    ],
)
def test_layouts_that_are_refused(processes, changes, words):
    processes.run(raises, f"^frameattn.parallel.vmonarch_attention: {words}", changes)


# ---- How often they communicate --------------------------------------------------------------------------------------


def communicates(group, counts, iterations, extra, given, function):
    parts = parts_of(inputs_of(sum(counts), heads=3, extra=extra), counts, dist.get_rank(group))
    with CommDebugMode() as forward:
        out = function(group, parts, counts, iterations, given)
    with CommDebugMode() as backward:
        out.sum().backward()
    return [
        {str(op).split(".")[-1]: count for op, count in mode.get_comm_counts().items() if count}
        for mode in (forward, backward)
    ]


def vmonarch(group, parts, counts, iterations, given):
    options = dict(group=group, iterations=iterations, frames_per_rank=counts if given else None)
    return bind(parallel.vmonarch_attention, sum(counts), **options)(*parts)


def ulysses(group, parts, counts, iterations, given):
    tokens = [3 * count for count in counts] if given else None
    return parallel.ulysses(*parts[:3], lambda q, k, v: q @ k.mT @ v, group=group, tokens_per_rank=tokens)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("counts", [(3, 2), (0, 2, 2)])
def test_collectives_of_vmonarch(processes, counts, iterations, extra):
    for given in (True, False):
        for forward, backward in processes.run(
            communicates, counts, iterations, extra, given, vmonarch, ranks=len(counts)
        ):
            count = max(2 * iterations, 4)  # in one iteration frame 0 takes two of its own
            assert forward == {"all_to_all_single": count + (not given)}
            assert backward == {"all_to_all_single": count} | ({"all_reduce": 1} if extra else {})


def test_collectives_of_ulysses(processes):
    for forward, backward in processes.run(communicates, (3, 2), 2, 0, True, ulysses):
        assert forward == backward == {"all_to_all_single": 2}


def test_one_rank_with_all_frames_communicates_nothing(processes):
    for extra in (0, 3):
        for answer in processes.run(communicates, (0, 2), 2, extra, True, vmonarch):
            assert answer == [{}, {"all_reduce": 1} if extra else {}]
