"""Calls that are wrong, or not the same on all processes: an error on every one, and no waiting."""

import functools
import os
import re

import pytest
import torch
import torch.distributed as dist

from frameattn import parallel
from processes import Processes
from video import inputs_of, parts_of

OP = "frameattn.parallel.vmonarch_attention: "
ULYSSES = "frameattn.parallel.ulysses: "


def error_of(group, call, arguments, changes):
    """What a call says on this process, with the changes of its rank."""
    arguments = arguments | changes.get(dist.get_rank(group), {})
    with pytest.raises(Exception) as caught:
        call(**arguments, group=group)
    dist.barrier(group)  # nobody is left behind
    return f"{type(caught.value).__name__}: {caught.value}"


def dense(query, key, value, *replicated):
    return query @ key.mT @ value


def errors(processes, changes, ranks=2, call=parallel.vmonarch_attention, **common):
    arguments = dict(zip(("query", "key", "value"), inputs_of(2, 3), strict=True))  # 2 frames of 3 on each
    arguments |= dict(frames=2 * ranks) if call is parallel.vmonarch_attention else dict(attention=dense)
    return processes.run(error_of, call, arguments | common, changes, ranks=ranks)


def all_say(messages, words):
    for message in messages:
        assert re.search(words, message), f"{message!r} does not say {words!r}"


def tensors(dim=8, value_dim=6, batch=2, heads=2, dtype=torch.float64, wanted=()):
    made = inputs_of(2, 3, batch, heads, dim, value_dim, dtype=dtype)
    return {n: x.requires_grad_(n in wanted) for n, x in zip(("query", "key", "value"), made, strict=True)}


EXTRA = dict(zip(("extra_key", "extra_value"), inputs_of(1, extra=3)[3:], strict=True))
MASK = dict(extra_mask=torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "change, words",
    [
        (
            tensors(dtype=torch.float32),
            "dtype must be the same .* got torch.float32 on rank 1 and torch.float64 on rank 0",
        ),
        (tensors(batch=1), "B must be the same .* got 1 on rank 1 and 2 on rank 0"),
        (tensors(heads=3), "H must be the same .* got 3 on rank 1 and 2 on rank 0"),
        (tensors(dim=4), "D must be the same .* got 4 on rank 1 and 8 on rank 0"),
        (tensors(value_dim=5), "Dv must be the same .* got 5 on rank 1 and 6 on rank 0"),
        (dict(frames=2, frames_per_rank=[0, 2]), r"frames must be the same .* got 2 on rank 1 and 4 on rank 0"),
        (dict(iterations=3), "iterations must be the same .* got 3 on rank 1 and 2 on rank 0"),
        (dict(dense_first_frame=False), "dense_first_frame must be the same .* got False on rank 1 and True on rank 0"),
        (dict(mass_floor=0.25), "mass_floor must be the same .* got 0.25 on rank 1 and 0.1 on rank 0"),
        (dict(scale=0.5), "scale must be the same .* got 0.5 on rank 1 and None on rank 0"),
        (dict(entropy_gradient=False), "entropy_gradient must be the same .* got False on rank 1 and True on rank 0"),
        (dict(return_lse=True), "return_lse must be the same .* got True on rank 1 and False on rank 0"),
        (dict(workspace_bytes=7), "workspace_bytes must be the same .* got 7 on rank 1 and None on rank 0"),
        (EXTRA, "extra_keys must be the same .* got 96 on rank 1 and None on rank 0"),
        (tensors(wanted=["query"]), "requires_grad of query must be the same .* True on rank 1 and False on rank 0"),
        (tensors(wanted=["value"]), "requires_grad of value must be the same .* True on rank 1 and False on rank 0"),
    ],
)
def test_a_rank_that_means_another_call(processes, change, words, check):
    given = dict(frames_per_rank=[2, 2], check=True) if check else {}
    if not check:
        change = {name: x for name, x in change.items() if name != "frames_per_rank"}
    all_say(errors(processes, {1: change}, **given), f"^RuntimeError: {OP}{words}")
    all_say(errors(processes, {1: change}, ranks=3, **given | (dict(frames_per_rank=[2, 2, 2]) if check else {}))
            if "frames" not in change else [], words)  # fmt: skip


def test_a_rank_that_means_other_extra_keys(processes):
    masked = errors(processes, {1: MASK}, **EXTRA)
    all_say(masked, "extra_mask must be the same .* got True on rank 1 and False on rank 0")
    wanted = {1: dict(extra_value=EXTRA["extra_value"].clone().requires_grad_())}
    all_say(errors(processes, wanted, **EXTRA), "requires_grad of extra_value must be the same .* got True on rank 1")
    calls = errors(processes, {0: tensors(wanted=["query"]), 1: tensors(wanted=["key"])})
    all_say(calls, "requires_grad of query must be the same .* got False on rank 1 and True on rank 0")


def test_ranks_that_mean_other_shares(processes):
    # Each list fits what its process has; only together they do not.
    shares = {0: dict(frames_per_rank=[2, 2]), 1: dict(frames_per_rank=[0, 4]) | double_tokens()}
    all_say(errors(processes, shares, check=True), r"frames_per_rank\[0\] must be the same .* got 0 on rank 1 and 2 on")
    # The same list everywhere, and frames of another size on one.
    longer = {name: torch.cat([x, x[:, :, :2]], 2) for name, x in tensors().items()}
    calls = errors(processes, {1: longer}, check=True, frames_per_rank=[2, 2])
    all_say(calls, "frames must divide the tokens of all ranks, 14, got 4")
    calls = errors(processes, {1: double_tokens()}, check=True, frames_per_rank=[2, 1], frames=3)
    all_say(calls, r"frames_per_rank is \[2, 1\], but the ranks have \[1, 2\] frames")


def double_tokens():
    return {name: torch.cat([x, x], 2) for name, x in tensors().items()}


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(iterations=0), "RuntimeError: vmonarch_attention: iterations must be at least 1, got 0"),
        (dict(frames=0), f"RuntimeError: {OP}frames must be at least 1, got 0"),
        (
            dict(key=torch.zeros(2, 2, 5, 8).double()),
            "RuntimeError: vmonarch_attention: key must have the shape of query",
        ),
        (
            dict(query=torch.zeros(6, 8)),
            "RuntimeError: vmonarch_attention: query must be .B, H, tokens, D., got .6, 8.",
        ),
        (dict(value=torch.zeros(3)), "RuntimeError: vmonarch_attention: value must be"),
        (
            dict(value=tensors()["value"].to("meta")),
            f"RuntimeError: {OP}value must be on the device of query, cpu, got",
        ),
        (dict(key=None), "Error: "),
        (dict(mass_floor="much"), "Error: "),
        (dict(frames="four"), "TypeError: "),
        (
            dict(extra_key=EXTRA["extra_key"]),
            "RuntimeError: vmonarch_attention: extra_key and extra_value come together",
        ),
        (dict(frames_per_rank=[4]), rf"RuntimeError: {OP}frames_per_rank must be 3 numbers, one for each rank .*\[4\]"),
        (dict(frames_per_rank=[2, 2, 1]), "frames_per_rank must be 3 numbers, .* whose sum is frames = 6, got"),
        (dict(frames_per_rank=[-2, 4, 4]), r"whose sum is frames = 6, got \[-2, 4, 4\]"),
        (dict(frames_per_rank=[1, 4, 1]), "this process has 4 frames by frames_per_rank, which 6 tokens are not"),
        (dict(frames_per_rank=[4, 0, 2]), "this process has 0 frames by frames_per_rank, which 6 tokens are not"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_rank_that_cannot_take_part(processes, change, words, check):
    """It says why, and the others say that it does."""
    given = dict(frames_per_rank=[2, 2, 2], check=True) if check else {}
    if "frames_per_rank" in change:
        change = change | dict(check=True)
    first, own, last = errors(processes, {1: change}, ranks=3, **given)
    all_say([own], words)
    all_say([first, last], f"^RuntimeError: {OP}rank 1 of the group cannot take part, and says why in an error of its")


def test_what_a_process_sees_by_itself_needs_no_question(processes):
    everywhere = {rank: dict(frames_per_rank=[1, 1, 2]) for rank in range(2)}
    all_say(errors(processes, everywhere), "frames_per_rank must be 2 numbers")
    everywhere = {rank: dict(frames_per_rank=[2, 2], iterations=0) for rank in range(2)}
    all_say(errors(processes, everywhere), "iterations must be at least 1")


def test_frames_that_are_not_whole(processes):
    all_say(
        errors(processes, {}, frames=5), f"^RuntimeError: {OP}frames must divide the tokens of all ranks, 12, got 5"
    )
    words = "every rank must have whole frames; 12 tokens in 3 frames are 4 in each, and rank 0 has 6"
    all_say(errors(processes, {}, frames=3), words)
    nothing = {name: x[:, :, :0] for name, x in tensors().items()}
    processes.run(finds_nothing, nothing)


def finds_nothing(group, nothing):
    """Any number of frames divides no tokens."""
    out, lse = parallel.vmonarch_attention(**nothing, frames=10**6, group=group, return_lse=True)
    assert out.shape == (2, 2, 0, 6) and lse.shape == (2, 2, 0)


def is_not_in_the_group(group):
    nobody = dist.GroupMember.NON_GROUP_MEMBER
    with pytest.raises(RuntimeError, match="this process is not in the group"):
        parallel.vmonarch_attention(**tensors(), frames=2, group=nobody)
    with pytest.raises(RuntimeError, match="this process is not in the group"):
        parallel.ulysses(**tensors(), attention=dense, group=nobody)


def test_groups(processes):
    processes.run(is_not_in_the_group)
    for call in (
        functools.partial(parallel.vmonarch_attention, frames=2),
        functools.partial(parallel.ulysses, attention=dense),
    ):
        with pytest.raises(
            RuntimeError, match="torch.distributed is not initialised; call torch.distributed.init_process"
        ):
            call(**tensors())


# ---- Ulysses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (
            tensors(dtype=torch.float32),
            "dtype must be the same .* got torch.float32 on rank 1 and torch.float64 on rank 0",
        ),
        (tensors(dtype=torch.int32), "dtype must be the same .* got torch.int32 on rank 1 and torch.float64 on rank 0"),
        (tensors(batch=1), "B must be the same .* got 1 on rank 1"),
        (tensors(heads=3), "H must be the same .* got 3 on rank 1"),
        (tensors(dim=4), "D must be the same .* got 4 on rank 1"),
        (dict(key=torch.zeros(2, 2, 6, 3).double()), "Dk must be the same .* got 3 on rank 1"),
        (tensors(value_dim=5), "Dv must be the same .* got 5 on rank 1"),
        (dict(replicated=[torch.zeros(2, 2, 4)]), "replicated must be the same .* got 16 on rank 1 and 0 on rank 0"),
        (tensors(wanted=["key"]), "requires_grad must be the same .* got True on rank 1 and False on rank 0"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_ulysses_of_ranks_that_mean_other_calls(processes, change, words, given):
    given = dict(tokens_per_rank=[6, 6], check=True) if given else {}
    calls = errors(processes, {1: change}, call=parallel.ulysses, **given)
    all_say(calls, f"^RuntimeError: {ULYSSES}{words}")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(query=torch.zeros(6, 8)), r"query must be \[B, H, own tokens, D\], got \[6, 8\]"),
        (
            dict(key=torch.zeros(2, 2, 5, 8).double()),
            r"key must be \[B, H, own tokens, D\] as query.* got \[2, 2, 5, 8\]",
        ),
        (dict(value=torch.zeros(2, 2, 6, 8)), "value must be .* torch.float64 on cpu, got .* of torch.float32 on cpu"),
        (
            dict(replicated=[torch.zeros(2, 3, 4)]),
            r"replicated must be \[B, H, L, ...\] with B, H of query.*\[2, 3, 4\]",
        ),
        (dict(tokens_per_rank=[12], check=True), r"tokens_per_rank must be 2 numbers, one for each rank .* got \[12\]"),
        (dict(tokens_per_rank=[5, 7], check=True), r"and 6 for rank 1, got \[5, 7\]"),
    ],
)
def test_ulysses_of_a_rank_that_cannot_take_part(processes, change, words):
    other, own = errors(processes, {1: change}, call=parallel.ulysses)
    all_say([own], f"^RuntimeError: {ULYSSES}.*{words}")
    all_say([other], f"^RuntimeError: {ULYSSES}rank 1 of the group cannot take part")
    everywhere = {0: change, 1: change} | ({0: dict(tokens_per_rank=[7, 5])} if "tokens_per_rank" in change else {})
    given = dict(tokens_per_rank=[6, 6]) | dict(check=False)
    all_say(errors(processes, {rank: given | x | dict(check=False) for rank, x in everywhere.items()},
                   call=parallel.ulysses)[1:], words)  # fmt: skip


def test_ulysses_of_wrong_tokens(processes):
    tokens = {0: dict(tokens_per_rank=[6, 5]), 1: dict(tokens_per_rank=[5, 6])}
    calls = errors(processes, tokens, call=parallel.ulysses, check=True)
    all_say(calls, r"tokens_per_rank is \[\d, \d\], but the ranks have \[6, 6\] tokens")


def fewer_rows(query, key, value):
    return dense(query, key, value)[:, :, 1:]


def other_rows(query, key, value):
    return dense(query, key, value), query[:, :1, :, :].repeat(1, 2, 1, 1)


def other_dtype(query, key, value):
    return dense(query, key, value), query.float()


@pytest.mark.parametrize(
    "attention, words",
    [
        (
            fewer_rows,
            r"attention must return \[B, H, N, Dv\] with B, H, N of the query it gets, .* got \[2, 1, 11, 6\]",
        ),
        (
            other_rows,
            r"attention must return \[B, H, L, ...\] for replicated rows, .* got \[2, 2, 12, 8\] of torch.float64",
        ),
        (other_dtype, "and the dtype torch.float64 of the other rows, got .* of torch.float32"),
    ],
)
def test_ulysses_of_an_attention_that_returns_something_else(processes, attention, words):
    all_say(errors(processes, {}, call=parallel.ulysses, attention=attention), f"^RuntimeError: {ULYSSES}.*{words}")


# ---- Processes that end ----------------------------------------------------------------------------------------------


def ends(group, when, given):
    """The last process ends."""
    rank, last = dist.get_rank(group), dist.get_world_size(group) - 1

    def leave(now):
        if rank == last and when == now:
            os._exit(1)

    parts = parts_of(inputs_of(6), [2, 2, 2], rank)
    leave("forward")
    out = parallel.vmonarch_attention(*parts, 6, group=group, frames_per_rank=[2, 2, 2] if given else None)
    leave("backward")
    out.sum().backward()


@pytest.mark.parametrize("when, given", [("forward", True), ("forward", False), ("backward", True)])
def test_a_process_that_ends_is_an_error_for_the_others(when, given):
    started = Processes(3, timeout=20)
    try:
        with pytest.raises(AssertionError) as caught:
            started.run(ends, when, given, ranks=3)
    finally:
        started.stop()
    message = str(caught.value)
    assert re.search("rank 0: Traceback(.|\n)*RuntimeError(.|\n)*rank 1: Traceback(.|\n)*RuntimeError", message), (
        message
    )
    assert "rank 2: the process ended" in message, message
