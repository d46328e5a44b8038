"""VMonarch attention of a video whose frames are shared out among processes.

Spatial steps are within frames, so that each process computes those of its own. A temporal step is within a position:
ahead of it every process gets all frames of some positions, and behind it its own frames of all positions again. Rows of
frame 0 are dense attention over all frames: they go to everybody, and what each finds in its frames is put together by
log-sum-exp where they came from.

Whatever communicates is one of three autograd functions in a chain, Begin, Move and Finish, and each needs the results
of the one before it. So backward makes its collectives in one order, too, the same on all processes, although their
graphs differ. Between them are operators that know nothing of processes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from frameattn.parallel.exchange import all_sums, arrived, collect, copies, exchange, share

_ops = torch.ops.frameattn


class Shards:
    """Who has which frames of a video, and who gets which positions of a frame.

    Processes without frames take part in every collective, with nothing, and need not know how large a frame is.
    """

    def __init__(self, frames: Sequence[int], tokens: int, group: ProcessGroup):
        rank = dist.get_rank(group)
        self.group, self.frames = group, list(frames)
        self.all, self.own = sum(frames), frames[rank]
        self.holds = [count > 0 for count in frames]
        self.first = self.holds.index(True)  # who has frame 0
        self.has_first = self.first == rank
        self.frame = tokens // self.own if self.own else 0  # tokens in a frame
        parts = iter(share(self.frame, sum(self.holds)))
        self.positions = [next(parts) if holds else 0 for holds in self.holds]

    def to_positions(self, x: Tensor) -> Tensor:
        """Own frames of all positions, [B, H, own * S, ...] -> all frames of own positions, for ``rows``."""
        return exchange(_by_frame(x, self.own), 2, self.frames, 3, self.positions, self.group)

    def to_frames(self, x: Tensor) -> Tensor:
        """All frames of own positions, [B, H, T * own, ...] -> own frames of all positions, for ``rows``."""
        return exchange(_by_frame(x, self.all), 3, self.positions, 2, self.frames, self.group)

    def to_all(self, x: Tensor) -> Tensor:
        """The x of who has frame 0, on every process with frames."""
        return copies(x, self.first, self.holds, self.group)

    def to_first(self, x: Tensor) -> Tensor:
        """The x of every process with frames, [count, *x.shape] where frame 0 is."""
        return collect(x, self.first, self.holds, self.group)


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
        first = shards.to_all(query[:, :, : shards.frame]) if dense_first_frame else None
        here = _together(shards.to_positions, lse, query, *rows)
        extra = [None if x is None else x.view_as(x) for x in (extra_key, extra_value)]
        return *here, None if first is None else arrived(first), *extra

    @staticmethod
    def backward(ctx, *grads):
        shards = ctx.shards
        *grads, grad_first, grad_extra_key, grad_extra_value = grads
        first = shards.to_first(grad_first) if ctx.dense_first_frame else None
        if ctx.has_extra:
            grad_extra_key, grad_extra_value = all_sums([grad_extra_key, grad_extra_value], shards.group)
        grad_lse, grad_query, *grad_rows = _together(shards.to_frames, *grads)
        if first is not None and shards.has_first:
            rows = [grad_query[:, :, : shards.frame], *arrived(first)]
            grad_query = torch.cat([_sum(rows), grad_query[:, :, shards.frame :]], dim=2)
        return None, None, grad_extra_key, grad_extra_value, grad_lse, grad_query, *grad_rows


class ToPositions(torch.autograd.Function):
    """Rows and their statistic, of own frames -> of own positions."""

    @staticmethod
    def forward(ctx, shards, lse, *rows):
        ctx.shards = shards
        return _together(shards.to_positions, lse, *rows)

    @staticmethod
    def backward(ctx, *grads):
        return None, *_together(ctx.shards.to_frames, *grads)


class ToFrames(torch.autograd.Function):
    """Rows of own positions -> of own frames."""

    @staticmethod
    def forward(ctx, shards, rows):
        ctx.shards = shards
        return _rows(shards.to_frames(rows))

    @staticmethod
    def backward(ctx, grad):
        return None, _rows(ctx.shards.to_positions(grad))


class Finish(torch.autograd.Function):
    """To frames; and where frame 0 is, its rows out of the parts that everybody has found.

    part, part_lse: dense attention of rows of frame 0 to the own keys; extra_part, extra_lse: to the extra ones.
    """

    @staticmethod
    def forward(ctx, shards, return_lse, out, lse, part, part_lse, extra_part, extra_lse):
        ctx.shards, ctx.return_lse = shards, return_lse
        parts = [] if part is None else [shards.to_first(part), shards.to_first(part_lse)]
        moving = shards.to_frames(out)
        moving_lse = shards.to_frames(lse.unsqueeze(3)) if return_lse else None
        out = _rows(moving).contiguous()
        lse = lse.new_empty(0) if moving_lse is None else _rows(moving_lse).squeeze(3).contiguous()
        parts = [list(arrived(x)) for x in parts]
        first_out = first_lse = None
        if parts and shards.has_first:
            if extra_part is not None:
                parts = [[*parts[0], extra_part], [*parts[1], extra_lse]]
            first_out, first_lse = _merge(*parts)
            out[:, :, : shards.frame] = first_out
            if return_lse:
                lse[:, :, : shards.frame] = first_lse
        ctx.save_for_backward(part, part_lse, extra_part, extra_lse, first_out, first_lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        part, part_lse, extra_part, extra_lse, first_out, first_lse = ctx.saved_tensors
        shards, size = ctx.shards, ctx.shards.frame
        if part is not None:
            grad_first = grad_out[:, :, :size]
            statistics = part_lse.new_empty(2, *part_lse.shape)
            if shards.has_first:
                row = -_dot(grad_first, first_out)
                if ctx.return_lse:
                    row = row + grad_lse[:, :, :size]
                    grad_lse = torch.cat([torch.zeros_like(row), grad_lse[:, :, size:]], dim=2)
                statistics = torch.stack([first_lse, row])
                grad_out = torch.cat([torch.zeros_like(grad_first), grad_out[:, :, size:]], dim=2)
            grad_first, statistics = shards.to_all(grad_first), shards.to_all(statistics)
        grad_out = shards.to_positions(grad_out)
        grad_lse = shards.to_positions(grad_lse.unsqueeze(3)) if ctx.return_lse else None
        grads = [_rows(grad_out), None if grad_lse is None else _rows(grad_lse).squeeze(3)]
        if part is not None:
            grad_first, statistics = arrived(grad_first), arrived(statistics)
        for found, found_lse in ((part, part_lse), (extra_part, extra_lse)):
            if found is None:
                grads += [None, None]
                continue
            weight = (found_lse - statistics[0]).exp()
            grads.append((weight.unsqueeze(3) * grad_first.to(weight.dtype)).to(found.dtype))
            grads.append(weight * (_dot(grad_first, found) + statistics[1]))
        return None, None, *grads


# ---- What these have in common ---------------------------------------------------------------------------------------


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, H, N, C] -> [B, H, frames, N / frames, C]"""
    return x.reshape(*x.shape[:2], frames, x.size(2) // max(frames, 1), x.size(3))


def _rows(moved: Tensor) -> Tensor:
    """What Shards moves, once it is there: [B, H, frames, positions, C] -> [B, H, N, C]"""
    return arrived(moved).flatten(2, 3)


def _together(move: Callable[[Tensor], Tensor], statistic: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """The statistic [B, H, N] and the rows [B, H, N, C], moved: all rows by one collective."""
    moving = move(torch.cat(rows, dim=3)), move(statistic.unsqueeze(3))
    return _rows(moving[1]).squeeze(3), *_rows(moving[0]).split([x.size(3) for x in rows], dim=3)


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
