"""VMonarch attention of a video whose frames are shared out among processes.

Spatial steps are within frames, so that each process computes those of its own. A temporal step is within a position:
ahead of it every process gets all frames of some positions, and behind it its own frames of all positions again. Rows of
frame 0 are dense attention over all frames: they go to everybody, and what each finds in its frames is put together by
log-sum-exp where they came from.

Whatever communicates is one of three autograd functions in a chain, Begin, Move and Finish, and each needs the results
of the one before it. So backward makes its collectives in one order, too, the same on all processes, although their
graphs differ. Between them are operators that know nothing of processes.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from frameattn.parallel.exchange import Collected, Copies, Parcel, Reshard, all_sums, send, share

_ops = torch.ops.frameattn


class Shards:
    """Who has which frames of a video, and who gets which positions of a frame.

    Processes without frames take part in every collective, with nothing, and need not know how large a frame is.
    """

    def __init__(self, frames: Sequence[int], tokens: int, group: ProcessGroup):
        rank = dist.get_rank(group)
        self.group, self.frames = group, list(frames)
        self.all, self.own = sum(frames), frames[rank]
        self.holds = [1 if count > 0 else 0 for count in frames]
        self.first = self.holds.index(1)  # who has frame 0
        self.has_first = self.first == rank
        self.frame = tokens // self.own if self.own else 0  # tokens in a frame
        parts = iter(share(self.frame, sum(self.holds)))
        self.positions = [next(parts) if holds else 0 for holds in self.holds]

    def to_positions(self, x: Tensor, *others: Parcel) -> list[Tensor]:
        """Own frames of all positions, [B, H, own * S, C] -> all frames of own positions, and what becomes of others."""
        return self._move(Reshard(_by_frame(x, self.own), 2, self.frames, 3, self.positions), *others)

    def to_frames(self, x: Tensor, *others: Parcel) -> list[Tensor]:
        """All frames of own positions, [B, H, T * own, C] -> own frames of all positions, and what becomes of others."""
        return self._move(Reshard(_by_frame(x, self.all), 3, self.positions, 2, self.frames), *others)

    def to_all(self, x: Tensor) -> Parcel:
        """The x of who has frame 0, for every process with frames."""
        return Copies(x, self.first, self.holds)

    def to_first(self, x: Tensor) -> Parcel:
        """The x of every process with frames, for who has frame 0."""
        return Collected(x, self.first, self.holds)

    def _move(self, *parcels: Parcel) -> list[Tensor]:
        moved, *others = send(self.group, *parcels)
        return [moved.flatten(2, 3), *others]


def frame_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extra: tuple[Tensor, Tensor, Tensor | None] | None,
    shards: Shards,
    *,
    iterations: int,
    dense_first_frame: bool,
    mass_floor: float,
    scale: float,
    entropy_gradient: bool,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """The attention of the rows that this process has, and their log-sum-exp, which is empty unless it is asked for.

    Names as in csrc/monarch_attention/README.md. What is called ``here`` is at positions, the own ones of all frames.
    """
    extra_key, extra_value, extra_mask = extra or (None, None, None)
    own_frames = max(shards.own, 1)  # of no tokens, if none
    first_parts: list[Tensor] = []
    u = query
    for step in range(iterations):
        last = step == iterations - 1
        weighted_key, *values, lse = _ops.spatial_step(u, key, value if last else None, own_frames, scale, True)
        values = values if last else []
        if step == 0:
            lse_here, query_here, key_here, *values_here, first_query, extra_key, extra_value = Begin.apply(
                shards, dense_first_frame, extra_key, extra_value, lse, query, weighted_key, *values
            )
            u_here = query_here
            if dense_first_frame:
                first_parts += _dense(first_query, key, value, None, scale)
        else:
            lse_here, key_here, *values_here = ToPositions.apply(shards, lse, weighted_key, *values)
        entropy = _dot(u_here, key_here) - lse_here
        if not entropy_gradient:
            entropy = entropy.detach()
        if not last:
            u_here, _ = _ops.temporal_update(query_here, key_here, entropy, shards.all, mass_floor)
            u = ToFrames.apply(shards, u_here)

    parts = list(_ops.temporal_output(query_here, key_here, entropy, *values_here, shards.all))
    if extra_key is not None:
        parts += _dense(query_here, extra_key, extra_value, extra_mask, scale)
        if first_parts and shards.has_first:
            first_parts += _dense(first_query, extra_key, extra_value, extra_mask, scale)
    out, lse = _merge(parts[0::2], parts[1::2])
    return Finish.apply(shards, return_lse, out, lse, *first_parts, *[None] * (4 - len(first_parts)))


class Begin(torch.autograd.Function):
    """To positions; with rows of frame 0 to everybody, and extra keys as they are: their gradient is everybody's."""

    @staticmethod
    def forward(ctx, shards, dense_first_frame, extra_key, extra_value, lse, query, *rows):
        ctx.shards, ctx.dense_first_frame, ctx.has_extra = shards, dense_first_frame, extra_key is not None
        ctx.widths = [x.size(3) for x in (query, *rows)]
        parcels = [shards.to_all(query[:, :, : shards.frame])] if dense_first_frame else []
        moved, *first = shards.to_positions(_pack([lse], query, *rows), *parcels)
        extra = [None if x is None else x.view_as(x) for x in (extra_key, extra_value)]
        return *_unpack(moved, ctx.widths), *(first or [None]), *extra

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        shards, size = ctx.shards, ctx.shards.frame
        *grads, grad_first, grad_extra_key, grad_extra_value = grads
        parcels = [shards.to_first(grad_first)] if ctx.dense_first_frame else []
        moved, *first = shards.to_frames(_pack(grads[:1], *grads[1:]), *parcels)
        if ctx.has_extra:
            grad_extra_key, grad_extra_value = all_sums([grad_extra_key, grad_extra_value], shards.group, after=moved)
        grad_lse, grad_query, *grad_rows = _unpack(moved, ctx.widths)
        if first and shards.has_first:
            grad_first = _sum([grad_query[:, :, :size], *first[0]])
            grad_query = torch.cat([grad_first, grad_query[:, :, size:]], dim=2)
        return None, None, grad_extra_key, grad_extra_value, grad_lse, grad_query, *grad_rows


class ToPositions(torch.autograd.Function):
    """Rows and their statistic, of own frames -> of own positions."""

    @staticmethod
    def forward(ctx, shards, lse, *rows):
        ctx.shards, ctx.widths = shards, [x.size(3) for x in rows]
        return _unpack(*shards.to_positions(_pack([lse], *rows)), ctx.widths)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return None, *_unpack(*ctx.shards.to_frames(_pack(grads[:1], *grads[1:])), ctx.widths)


class ToFrames(torch.autograd.Function):
    """Rows of own positions -> of own frames."""

    @staticmethod
    def forward(ctx, shards, rows):
        ctx.shards = shards
        return shards.to_frames(rows)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return None, ctx.shards.to_positions(grad)[0]


class Finish(torch.autograd.Function):
    """To frames; and where frame 0 is, its rows out of the parts that everybody has found.

    part, part_lse: dense attention of rows of frame 0 to the own keys; extra_part, extra_lse: to the extra ones.
    """

    @staticmethod
    def forward(ctx, shards, return_lse, out, lse, part, part_lse, extra_part, extra_lse):
        ctx.shards, ctx.return_lse, ctx.widths = shards, return_lse, [out.size(3)]
        parcels = [] if part is None else [shards.to_first(_pack([part_lse], part))]
        moved, *parts = shards.to_frames(_pack([lse], out) if return_lse else out, *parcels)
        lse, out = _unpack(moved, ctx.widths) if return_lse else (lse.new_empty(0), moved)
        out, lse = out.contiguous(), lse.contiguous()
        first_out = first_lse = None
        if parts and shards.has_first:
            found = [(extra_lse, extra_part)] if extra_part is not None else []
            found += [_unpack(x, ctx.widths) for x in parts[0]]
            first_out, first_lse = _merge([x for _, x in found], [x for x, _ in found])
            out[:, :, : shards.frame] = first_out
            if return_lse:
                lse[:, :, : shards.frame] = first_lse
        ctx.save_for_backward(part, part_lse, extra_part, extra_lse, first_out, first_lse)
        return out.detach(), lse.detach()  # no views of what came, so that callers may change them in place

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        part, part_lse, extra_part, extra_lse, first_out, first_lse = ctx.saved_tensors
        shards, size = ctx.shards, ctx.shards.frame
        parcels = []
        if part is not None:
            grad_first = grad_out[:, :, :size]
            if shards.has_first:
                row = -_dot(grad_first, first_out)
                if ctx.return_lse:
                    row = row + grad_lse[:, :, :size]
                    grad_lse = torch.cat([torch.zeros_like(row), grad_lse[:, :, size:]], dim=2)
                grad_out = torch.cat([torch.zeros_like(grad_first), grad_out[:, :, size:]], dim=2)
            else:  # tensors of these shapes
                first_lse = row = part_lse
            parcels = [shards.to_all(_pack([first_lse, row], grad_first))]
        moved, *first = shards.to_positions(_pack([grad_lse], grad_out) if ctx.return_lse else grad_out, *parcels)
        grad_lse, grad_out = _unpack(moved, ctx.widths) if ctx.return_lse else (None, moved)
        grads = [grad_out, grad_lse]
        if first:
            first_lse, row, grad_first = _unpack(first[0], ctx.widths, statistics=2)
        for found, found_lse in ((part, part_lse), (extra_part, extra_lse)):
            if found is None:
                grads += [None, None]
                continue
            weight = (found_lse - first_lse).exp()
            grads.append((weight.unsqueeze(3) * grad_first.to(weight.dtype)).to(found.dtype))
            grads.append(weight * (_dot(grad_first, found) + row))
        return None, None, *grads


# ---- What these have in common ---------------------------------------------------------------------------------------


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, H, N, C] -> [B, H, frames, N / frames, C]"""
    return x.reshape(*x.shape[:2], frames, x.size(2) // max(frames, 1), x.size(3))


def _pack(statistics: Sequence[Tensor], *rows: Tensor) -> Tensor:
    """Statistics [B, H, N], at most two, bit by bit as columns behind those of rows [B, H, N, C].

    They take 16 bytes, so that rows of 16 bytes stay aligned to as many."""
    dtype = rows[0].dtype
    columns = torch.stack(list(statistics), dim=3).view(dtype)
    return torch.cat([*rows, F.pad(columns, (0, 16 // dtype.itemsize - columns.size(3)))], dim=3)


def _unpack(packed: Tensor, widths: Sequence[int], statistics: int = 1) -> tuple[Tensor, ...]:
    """So many statistics, and rows of so many columns."""
    itemsize = packed.element_size()
    *rows, columns = packed.split([*widths, 16 // itemsize], dim=3)
    dtype = torch.promote_types(packed.dtype, torch.float32)
    columns = columns[..., : statistics * dtype.itemsize // itemsize].contiguous().view(dtype)
    return *columns.unbind(3), *rows


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
    """Attention of all rows to all keys, and its log-sum-exp."""
    return _ops.spatial_step(query, key, value, 1, scale, False, mask)[1:]


def _merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to several sets of keys -> attention to all of them, and its log-sum-exp."""
    if len(outs) == 1:
        return outs[0], lses[0]
    lse = torch.logsumexp(torch.stack(list(lses)), dim=0)
    weighted = [(part - lse).exp().unsqueeze(3) * out.to(lse.dtype) for out, part in zip(outs, lses, strict=True)]
    return _sum(weighted).to(outs[0].dtype), lse


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Added up in float32 or better, in order, and rounded once."""
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(dtype)
    for part in parts[1:]:
        total = total + part.to(dtype)
    return total.to(parts[0].dtype)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Of rows, in float32 or better: [B, H, N, C] twice -> [B, H, N]"""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * y.to(dtype)).sum(3)
