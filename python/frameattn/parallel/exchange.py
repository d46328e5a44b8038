"""The collective that everything here is made of: which dimension of a tensor is shared out among processes changes.

Functional collectives, so that a compiler keeps them, and all-to-all alone, which takes parts of any sizes, empty ones
too. None of this is differentiable: who calls it has a backward of its own, in which the order of the collectives does
not depend on what autograd finds in the graph of one process or another.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives


def default_group(group: ProcessGroup | None) -> ProcessGroup:
    """The group, or that of all processes.

    Raises:
        RuntimeError: torch.distributed is not initialised.
    """
    if group is not None:
        return group
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "frameattn.parallel: torch.distributed is not initialised; call torch.distributed.init_process_group() in "
            "every process first, as torchrun starts them"
        )
    return dist.group.WORLD


def share(total: int, parts: int) -> list[int]:
    """So many things for so many processes: the first ones have one more where they do not divide, as in
    torch.tensor_split.

    >>> share(21, 4)
    [6, 5, 5, 5]
    """
    return [total // parts + int(rank < total % parts) for rank in range(parts)]


def exchange(
    x: Tensor, gather: int, gathered: Sequence[int], split: int, splits: Sequence[int], group: ProcessGroup
) -> Tensor:
    """From a part along dimension ``gather`` to a part along dimension ``split``.

    Args:
        x: gathered[rank] long along ``gather``, sum(splits) along ``split``; other sizes are those of all processes.

    Returns: sum(gathered) along ``gather``, splits[rank] along ``split``. In memory ``gather`` is the outermost
    dimension and ``split`` the next, so that pieces need not be put together where they arrive. Perhaps still on its
    way: see ``arrived``.
    """
    rank = dist.get_rank(group)
    order = [gather, split, *(dim for dim in range(x.dim()) if dim not in (gather, split))]
    x = x.permute(order)
    rest = x.shape[2:]
    columns = rest.numel()
    sent = [gathered[rank] * size * columns for size in splits]
    received = [size * splits[rank] * columns for size in gathered]
    buffer = x.new_empty(sum(sent))
    for piece, target in zip(x.split(list(splits), dim=1), buffer.split(sent), strict=True):
        target.view(piece.shape).copy_(piece)
    result = collectives.all_to_all_single(buffer, received, sent, group).view(sum(gathered), splits[rank], *rest)
    return result.permute([order.index(dim) for dim in range(x.dim())])


def copies(x: Tensor, owner: int, receives: Sequence[bool], group: ProcessGroup) -> Tensor:
    """x of the owner, on all that receive it. Elsewhere its content does not matter, and its shape is the owner's or, on
    those that do not receive, has no elements. Perhaps still on its way."""
    rank = dist.get_rank(group)
    sent = [x.numel() * one if rank == owner else 0 for one in receives]
    received = [x.numel() if source == owner else 0 for source in range(len(receives))]
    buffer = x.expand(sum(receives), *x.shape).reshape(-1) if rank == owner else x.new_empty(0)
    return collectives.all_to_all_single(buffer, received, sent, group).view(x.shape)


def collect(x: Tensor, owner: int, sends: Sequence[bool], group: ProcessGroup) -> Tensor:
    """The x of all that send one, [count, *x.shape] in the order of their ranks; on all but the owner none. Those that
    do not send have one without elements. Perhaps still on its way."""
    rank = dist.get_rank(group)
    sent = [x.numel() if target == owner else 0 for target in range(len(sends))]
    received = [x.numel() * one if rank == owner else 0 for one in sends]
    arriving = collectives.all_to_all_single(x.reshape(-1), received, sent, group)
    return arriving.view(sum(sends) if rank == owner else 0, *x.shape)


def arrived(x: Tensor) -> Tensor:
    """x as a plain tensor, once it is there. Until then what a process computes overlaps with what it receives."""
    return x.wait() if isinstance(x, collectives.AsyncCollectiveTensor) else x


def all_sums(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    """The sum of each over all processes. One collective: the tensors have one dtype."""
    flat = torch.cat([x.reshape(-1) for x in tensors])
    parts = arrived(collectives.all_reduce(flat, "sum", group)).split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, *tensors):
        ctx.group = group
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx, *grads):
        return None, *all_sums(grads, ctx.group)


def replicated(group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one dtype that every process has alike: the gradient of each is the sum over all processes."""
    return _Replicated.apply(group, *tensors)
