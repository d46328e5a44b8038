"""Ulysses (arXiv 2309.14509): attention that needs all tokens, but no head another one, where tokens are shared out.

Two collectives: from some tokens of all heads to all tokens of some heads, and back. Each is an autograd function of
which the second needs what follows from the first, so that backward communicates in one order on all processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from frameattn.parallel.agreement import agree
from frameattn.parallel.exchange import Reshard, default_group, send, share, under_autocast

OP = "frameattn.parallel.ulysses"
HEADS, TOKENS = 1, 2


def ulysses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention: Callable[..., Tensor | tuple[Tensor, Tensor]],
    *,
    replicated: Sequence[Tensor] = (),
    group: ProcessGroup | None = None,
    tokens_per_rank: Sequence[int] | None = None,
    check: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Any attention over heads that do not know of one another, of tokens that are shared out among processes.

    ``attention(query, key, value, *replicated)`` is called with all tokens, in the order of the ranks of the group, of
    the heads that fall to this process: [B, some of H, N, D]. The first processes have one head more where they do not
    divide, and some have none where there are not enough. All processes call this together, and backward too. Forward
    sends what others need of four tensors like the process's own query, by two collectives; backward as much.

    Args:
        query, key, value: [B, H, own tokens, D], the last [B, H, own tokens, Dv].
        attention: returns [B, some of H, N, Dv], and where rows of replicated tokens have a result, too, a pair of that
            and [B, some of H, L, ...].
        replicated: [B, H, L, ...] each, such as query, key and value of a text, which every process has in full.
            ``attention`` gets the heads that fall to this process.
        group: the default group if None. In a group of one, ``attention`` gets all of it as it is.
        tokens_per_rank: how many tokens each rank of the group has; they may differ, and be none. If None, the
            processes ask one another, and whether they mean the same call, which costs a collective and a wait for the
            device, and in compiled code a graph break.
        check: ask also where tokens_per_rank is given.

    Returns: [B, H, own tokens, Dv], and of replicated rows [B, H, L, ...], all heads on every process.

    Gradients are those of what a process has computed: of replicated tensors, as of weights, the sum over all processes
    is the gradient.

    Raises:
        RuntimeError: arguments do not fit, or, where processes ask one another, not together; that names the rank.

    Examples:
        Under ``torchrun``, in each of up to 8 processes, of a video of 8 frames:

        >>> import torch
        >>> import frameattn
        >>> own = frameattn.parallel.share(8, torch.distributed.get_world_size())[torch.distributed.get_rank()]
        >>> query, key, value = (torch.randn(1, 4, own * 60, 64) for _ in range(3))
        >>> attention = lambda *heads: frameattn.vmonarch_attention(*heads, frames=8)
        >>> frameattn.parallel.ulysses(query, key, value, attention).shape == query.shape
        True
    """
    group = default_group(group)
    if dist.get_world_size(group) == 1:
        return attention(query, key, value, *replicated)
    query, key, value, *replicated = under_autocast([query, key, value, *replicated])
    tokens = _agreed_tokens([query, key, value, *replicated], group, tokens_per_rank, check)
    heads = share(query.size(HEADS), dist.get_world_size(group))
    query, key, value, *replicated = ToHeads.apply(group, tokens, heads, query, key, value, *replicated)
    result = attention(query, key, value, *replicated)
    if isinstance(result, Tensor):
        _check_result(query, result)
        return ToTokens.apply(group, tokens, heads, result, None)[0]
    _check_result(query, *result)
    return ToTokens.apply(group, tokens, heads, *result)


class ToHeads(torch.autograd.Function):
    """Some tokens of all heads [B, H, own, C] -> all tokens of own heads; own heads of what is replicated."""

    @staticmethod
    def forward(
        ctx: Any,
        group: ProcessGroup,
        tokens: list[int],
        heads: list[int],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *replicated: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = query, key, value
        ctx.shared = group, tokens, heads
        ctx.widths = [x.size(3) for x in rows]
        (moved,) = send(group, Reshard(rows, TOKENS, tokens, HEADS, heads))
        own = [x.split(heads, dim=HEADS)[dist.get_rank(group)].clone() for x in replicated]
        return *[x.detach() for x in moved.split(ctx.widths, dim=3)], *own  # no views, as in ToTokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        group, tokens, heads = ctx.shared
        (moved,) = send(group, Reshard(grads[:3], HEADS, heads, TOKENS, tokens))
        before = sum(heads[: dist.get_rank(group)])
        replicated = []
        for grad in grads[3:]:
            whole = grad.new_zeros(grad.size(0), sum(heads), *grad.shape[2:])
            whole.narrow(HEADS, before, grad.size(HEADS)).copy_(grad)
            replicated.append(whole)
        return None, None, None, *moved.split(ctx.widths, dim=3), *replicated


class ToTokens(torch.autograd.Function):
    """All tokens of own heads [B, own, N, C] -> own tokens of all heads; all heads of what is replicated, too."""

    @staticmethod
    def forward(
        ctx: Any, group: ProcessGroup, tokens: list[int], heads: list[int], out: Tensor, replicated: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.shared = group, tokens, heads
        parcels = [Reshard([out], HEADS, heads, TOKENS, tokens)]
        if replicated is not None:
            everybody = [replicated.size(TOKENS)] * len(heads)
            parcels.append(Reshard([torch.cat([replicated] * len(heads), dim=TOKENS)], HEADS, heads, TOKENS, everybody))
        ctx.save_for_backward(out.new_empty(0))  # as Move does
        moved = [x.detach() for x in send(group, *parcels)]  # no views, so that callers may change them in place
        return moved[0], moved[1] if replicated is not None else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_replicated: Tensor | None) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == 1
        group, tokens, heads = ctx.shared
        parcels = [Reshard([grad_out], TOKENS, tokens, HEADS, heads)]
        if grad_replicated is not None:
            everybody = [grad_replicated.size(TOKENS)] * len(heads)
            parcels.append(Reshard([grad_replicated], TOKENS, everybody, HEADS, heads))
        grad_out, *parts = send(group, *parcels)
        grad_replicated = parts[0].unflatten(TOKENS, (len(heads), -1)).sum(TOKENS) if parts else None
        return None, None, None, grad_out, grad_replicated


def _agreed_tokens(
    tensors: Sequence[Tensor], group: ProcessGroup, tokens_per_rank: Sequence[int] | None, check: bool
) -> list[int]:
    """How many tokens each process has: what the caller says, or what the processes tell one another."""
    query, key, value, *replicated = tensors
    words = _problem(tensors, group, tokens_per_rank)
    problem = None if words is None else RuntimeError(words)
    if tokens_per_rank is not None and not check:
        if problem is not None:
            raise problem
        return list(tokens_per_rank)
    sizes = [*query.shape, *[0] * 4]
    facts = dict(
        dtype=query.dtype,
        B=sizes[0],
        H=sizes[1],
        D=sizes[3],
        Dk=key.shape[-1] if key.dim() else 0,
        Dv=value.shape[-1] if value.dim() else 0,
        replicated=sum(x.numel() for x in replicated),
        requires_grad=torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
    )
    tokens = agree(OP, sizes[2], facts, problem, query.device, group)
    if tokens_per_rank is not None and list(tokens_per_rank) != tokens:
        raise RuntimeError(f"{OP}: tokens_per_rank is {list(tokens_per_rank)}, but the ranks have {tokens} tokens")
    return tokens


def _problem(tensors: Sequence[Tensor], group: ProcessGroup, tokens_per_rank: Sequence[int] | None) -> str | None:
    """What is wrong with the arguments, as far as this process can see."""
    query, key, value, *replicated = tensors
    if query.dim() != 4:
        return f"{OP}: query must be [B, H, own tokens, D], got {list(query.shape)}"
    for name, x in (("key", key), ("value", value)):
        if x.dim() != 4 or x.shape[:3] != query.shape[:3] or x.dtype != query.dtype or x.device != query.device:
            return (
                f"{OP}: {name} must be [B, H, own tokens, D] as query, {list(query.shape)} of {query.dtype} on "
                f"{query.device}, got {list(x.shape)} of {x.dtype} on {x.device}"
            )
    for x in replicated:
        if x.dim() < 3 or x.shape[:2] != query.shape[:2]:
            return (
                f"{OP}: replicated must be [B, H, L, ...] with B, H of query, {list(query.shape)}, got {list(x.shape)}"
            )
    if tokens_per_rank is not None:
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        if len(tokens_per_rank) != ranks or tokens_per_rank[rank] != query.size(TOKENS):
            return (
                f"{OP}: tokens_per_rank must be {ranks} numbers, one for each rank of the group, and "
                f"{query.size(TOKENS)} for rank {rank}, got {list(tokens_per_rank)}"
            )
    return None


def _check_result(query: Tensor, out: Tensor, replicated: Tensor | None = None) -> None:
    """Raises, where the result of ``attention`` for this query is none that can be sent."""
    if out.dim() != 4 or out.shape[:3] != query.shape[:3]:
        raise RuntimeError(
            f"{OP}: attention must return [B, H, N, Dv] with B, H, N of the query it gets, {list(query.shape)}, got "
            f"{list(out.shape)}"
        )
    if replicated is None:
        return
    if replicated.dim() < 3 or replicated.shape[:2] != query.shape[:2] or replicated.dtype != out.dtype:
        raise RuntimeError(
            f"{OP}: attention must return [B, H, L, ...] for replicated rows, with B, H of the query it gets, "
            f"{list(query.shape)}, and the dtype {out.dtype} of the other rows, got {list(replicated.shape)} of "
            f"{replicated.dtype}"
        )
