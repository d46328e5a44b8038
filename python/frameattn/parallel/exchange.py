"""The collective that everything here is made of: all-to-all of whatever each process has for each other one.

Functional collectives, so that a compiler keeps them. A compiler may also turn the order of two of them around, and not
in the same way on processes whose graphs differ; so all that processes have to say to one another at a time is one
collective, and the next one needs what came by it. None of this is differentiable: who calls it has a backward that
sends the other way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives


def default_group(group: ProcessGroup | None) -> ProcessGroup:
    """The group, or that of all processes.

    Raises:
        RuntimeError: torch.distributed is not initialised, or this process is not in the group.
    """
    if group is not None:
        if dist.get_rank(group) < 0:  # what torch.distributed.new_group returns to the others is no group
            raise RuntimeError("frameattn.parallel: this process is not in the group; those that are in it call alone")
        return group
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "frameattn.parallel: torch.distributed is not initialised; call torch.distributed.init_process_group() in "
            "every process first, as torchrun starts them"
        )
    return dist.distributed_c10d._get_default_group()


def share(total: int, parts: int) -> list[int]:
    """So many things for so many processes: the first ones have one more where they do not divide, as in
    torch.tensor_split.

    Examples:
        >>> share(21, 4)
        [6, 5, 5, 5]
    """
    return [(total + parts - 1 - rank) // parts for rank in range(parts)]  # without a branch, for compilers


def under_autocast(tensors: Sequence[Tensor | None]) -> list[Any]:
    """In the dtype that autocast would have them in, ahead of what is communicated; as they are without autocast."""
    device = next(x.device.type for x in tensors if x is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    casts = [x is not None and x.is_floating_point() and x.dtype != torch.float64 for x in tensors]
    return [x.to(dtype) if cast and x is not None else x for cast, x in zip(casts, tensors, strict=True)]


class Reshard(NamedTuple):
    """From a part along dimension ``gather`` to a part along dimension ``split``.

    Rows are gathered[rank] long along ``gather`` and sum(splits) along ``split``; their other sizes are those of all
    processes. They become one tensor, side by side along the last one of these, that is sum(gathered) and splits[rank]
    long, with ``gather`` as the outermost dimension in memory and ``split`` as the next: so need no pieces be put
    together.
    """

    rows: Sequence[Tensor]
    gather: int
    gathered: Sequence[int]
    split: int
    splits: Sequence[int]

    def pieces(self) -> list[tuple[Tensor, ...]]:
        """What goes to each process, side by side."""
        return list(zip(*(x.permute(self._order).split(list(self.splits), dim=1) for x in self.rows), strict=True))

    def sizes(self, rank: int) -> list[int]:
        """How many numbers come to this one from each."""
        return [size * self.splits[rank] * self._rest.numel() for size in self.gathered]

    def assemble(self, rank: int, x: Tensor) -> Tensor:
        """What came, one after the other."""
        order = self._order
        x = x.view(sum(self.gathered), self.splits[rank], *self._rest)
        return x.permute([order.index(dim) for dim in range(len(order))])

    @property
    def _order(self) -> list[int]:
        others = [dim for dim in range(self.rows[0].dim()) if dim not in (self.gather, self.split)]
        return [self.gather, self.split, *others]

    @property
    def _rest(self) -> torch.Size:
        sizes = [self.rows[0].size(dim) for dim in self._order[2:]]
        for x in self.rows[1:]:
            sizes[-1] += x.size(self._order[-1])
        return torch.Size(sizes)


def send(group: ProcessGroup, *parcels: Reshard) -> list[Tensor]:
    """All parcels, which have one dtype, by one collective, and what becomes of them."""
    rank = dist.get_rank(group)
    pieces = [parcel.pieces() for parcel in parcels]  # by parcel and process
    sizes = [parcel.sizes(rank) for parcel in parcels]
    sent = [sum(x.numel() for piece in to_one for x in piece) for to_one in zip(*pieces, strict=True)]
    received = [sum(from_one) for from_one in zip(*sizes, strict=True)]
    outgoing = [piece for to_one in zip(*pieces, strict=True) for piece in to_one]
    if torch.compiler.is_compiling():  # which copies once, whatever it is told
        buffer = torch.cat([torch.cat(piece, dim=-1).reshape(-1) for piece in outgoing])
    else:
        buffer = parcels[0].rows[0].new_empty(sum(sent))
        lengths = [sum(x.numel() for x in piece) for piece in outgoing]
        for piece, target in zip(outgoing, buffer.split(lengths), strict=True):
            torch.cat(piece, dim=-1, out=target.view(*piece[0].shape[:-1], sum(x.size(-1) for x in piece)))
    arrived = collectives.wait_tensor(collectives.all_to_all_single(buffer, received, sent, group))
    if len(parcels) == 1:
        return [parcels[0].assemble(rank, arrived)]
    incoming = arrived.split([size for from_one in zip(*sizes, strict=True) for size in from_one])
    by_parcel = [torch.cat(incoming[i :: len(parcels)]) for i in range(len(parcels))]
    return [parcel.assemble(rank, x) for parcel, x in zip(parcels, by_parcel, strict=True)]


def gather(x: Tensor, dim: int, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """The x of all processes, sizes[rank] long along a dimension, one behind the other, on every process."""
    copies = x.expand(len(sizes), *x.shape)  # one for each
    (whole,) = send(group, Reshard([copies], dim + 1, sizes, 0, [1] * len(sizes)))
    return whole.squeeze(0)


def all_sums(tensors: Sequence[Tensor], group: ProcessGroup, after: Tensor | None = None) -> list[Tensor]:
    """The sum of each over all processes: one collective, for the tensors have one dtype. It needs what came by the
    collective that it comes ``after``."""
    flat = [x.reshape(-1) for x in tensors]
    if after is not None:
        one = after[tuple(slice(1) for _ in after.shape)]  # one number of it, or none: summed up for nothing
        flat.append(one.sum().view(1))
    sums = collectives.wait_tensor(collectives.all_reduce(torch.cat(flat), "sum", group))
    parts = sums.split([x.numel() for x in flat])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=False)]


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *all_sums(grads, ctx.group)


def replicated(group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one dtype that every process has alike: the gradient of each is the sum over all processes."""
    return _Replicated.apply(group, *tensors)
