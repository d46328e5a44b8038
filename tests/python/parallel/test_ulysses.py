"""Attention over heads that are shared out among processes: against one process."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frameattn import parallel
from oracle import randn


def own(x, sizes, rank):
    return x.split(list(sizes), dim=2)[rank].detach().requires_grad_()


def dense(query, key, value):
    return F.scaled_dot_product_attention(query, key, value)


def is_as_in_one_process(group, tokens, heads, given):
    rank = dist.get_rank(group)
    whole = [randn(2, heads, sum(tokens), d, seed=i, requires_grad=True) for i, d in enumerate((8, 8, 6))]
    expected = dense(*whole)
    grad = randn(*expected.shape, seed=9)
    expected_grads = torch.autograd.grad(expected, whole, grad)

    parts = [own(x, tokens, rank) for x in whole]
    out = parallel.ulysses(*parts, dense, group=group, tokens_per_rank=tokens if given else None)
    grads = torch.autograd.grad(out, parts, own(grad, tokens, rank))
    torch.testing.assert_close(out, own(expected, tokens, rank))
    for actual, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, own(wanted, tokens, rank), check_stride=False)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("heads", [4, 3, 1])
@pytest.mark.parametrize("tokens", [(5, 5), (7, 4), (0, 3), (3, 1, 0, 6)])
def test_is_as_in_one_process(processes, tokens, heads, given):
    processes.run(is_as_in_one_process, tokens, heads, given, ranks=len(tokens))


def is_checkpointed(group):
    """A process without heads saves nothing for backward in attention, and still has to run all of it again."""
    rank = dist.get_rank(group)
    parts = [own(randn(1, 1, 6, 4, seed=i), (3, 3), rank) for i in range(3)]

    def attend(*parts):
        return parallel.ulysses(*parts, dense, group=group, tokens_per_rank=(3, 3)) * 2.0

    expected = torch.autograd.grad(attend(*parts).sum(), parts)
    actual = torch.autograd.grad(checkpoint(attend, *parts, use_reentrant=False).sum(), parts)
    torch.testing.assert_close(actual, expected)


def test_checkpoint_with_fewer_heads_than_processes(processes):
    processes.run(is_checkpointed)
