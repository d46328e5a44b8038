"""Compiled code computes and communicates as eager code does."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend

import frameattn
from frameattn import parallel
from video import inputs_of, parts_of, run


def compiled_is_eager(group, function, counts, sizes, most_graphs, backend, extra=0, fullgraph=True):
    """function(group, counts, *parts) compiled, of frames of several sizes."""
    torch._dynamo.reset()
    torch._inductor.config.compile_threads = 1  # no processes of a process
    counter = CompileCounterWithBackend(backend)
    eager = functools.partial(function, group, counts)
    compiled = torch.compile(eager, fullgraph=fullgraph, backend=counter)

    def call(*tensors):
        if fullgraph:
            for x in tensors[:3]:
                torch._dynamo.mark_dynamic(x, 2)  # tokens, from the first size on
        return compiled(*tensors)

    for positions in sizes:
        whole = inputs_of(sum(counts), positions, heads=3, extra=extra, dtype=torch.float32)
        parts = parts_of(whole, counts, dist.get_rank(group))
        for actual, expected in zip(run(call, parts), run(eager, parts), strict=True):
            torch.testing.assert_close(actual, expected)
    assert 0 < counter.frame_count <= most_graphs, f"{counter.frame_count} graphs"


def vmonarch(group, counts, query, key, value, extra_key=None, extra_value=None):
    out, lse = parallel.vmonarch_attention(
        query * 1.0,
        key,
        value,
        sum(counts),
        group=group,
        frames_per_rank=counts,
        extra_key=extra_key,
        extra_value=extra_value,
        return_lse=True,
    )
    return out * 2.0, lse


def test_vmonarch_on_a_rank_without_frames(processes):
    """There the compiler leaves the communication to eager code: more graphs."""
    processes.run(compiled_is_eager, vmonarch, (0, 2, 3), (4, 5), 16, "aot_eager", extra=3, fullgraph=False, ranks=3)


def ulysses(group, counts, query, key, value):
    def attention(query, key, value):
        return frameattn.vmonarch_attention(query, key, value, sum(counts))

    tokens = [count * (query.size(2) // counts[dist.get_rank(group)]) for count in counts]
    return parallel.ulysses(query * 1.0, key, value, attention, group=group, tokens_per_rank=tokens) * 2.0


@pytest.mark.parametrize("function", [vmonarch, ulysses])
def test_one_graph_for_all_sizes_of_frames(processes, function):
    """inductor's code for these sizes takes a CPU a minute."""
    processes.run(compiled_is_eager, function, (3, 2), (4, 5, 8), 1, "aot_eager")
