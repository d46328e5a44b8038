"""VMonarch attention of a video whose frames are shared out among processes.

Spatial steps are within frames, so that each process computes those of its own. A temporal step is within a position:
ahead of it every process gets all frames of some positions, and behind it its own frames of all positions again.

Rows of frame 0 are dense attention over all frames. Behind the first way to positions every process has some of them.
They go to everybody with the way back, everybody attends with all of them to its own frames, and what that gives goes
with the next way to positions to where they came from, where it is put together by log-sum-exp. So no process has more
to do than others.

Whatever communicates is one autograd function, Move, and each call of it needs the results of the one before. So
backward makes its collectives in one order, too, the same on all processes. Between them are operators that know of no
others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from frameattn._operators import operators
from frameattn.parallel.exchange import Reshard, all_sums, send, share


class Route(NamedTuple):
    """From which dimension of a tensor that is shared out to which: see Reshard."""

    gather: int
    gathered: Sequence[int]
    split: int
    splits: Sequence[int]

    def back(self) -> "Route":
        return Route(self.split, self.splits, self.gather, self.gathered)


class Shards:
    """Who has which frames of a video, and who gets which positions of a frame.

    Processes without frames take part in every collective, with nothing, and need not know how large a frame is.
    """

    def __init__(self, frames: Sequence[int], tokens: int, group: ProcessGroup):
        rank = dist.get_rank(group)
        holds = [1 if count > 0 else 0 for count in frames]
        self.group, self.all, self.own = group, sum(frames), frames[rank]
        self.holders, self.holds = sum(holds), holds[rank]
        self.frame = tokens // self.own if self.own else 0  # tokens in a frame
        parts = iter(share(self.frame, self.holders))
        positions = [next(parts) if one else 0 for one in holds]
        # [B, H, frames, positions, C]: own frames of all positions -> all frames of own positions.
        self.to_positions = Route(2, list(frames), 3, positions)
        self.to_frames = self.to_positions.back()
        # A copy for each process with frames, [copies, B, H, own positions, C] -> [1, B, H, all positions, C].
        self.to_everybody = Route(3, positions, 0, holds)
        # [B, H, 1, all positions, C] -> that of each process with frames, [B, H, processes, own positions, C].
        self.to_owners = Route(2, holds, 3, positions)


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
    extra_mask = None if extra is None else extra[2]
    extra_streams = [] if extra is None else list(extra[:2])
    first_query = None  # rows of frame 0, once they are everywhere
    found: list[Tensor] = []  # what everybody finds for those of own positions: lse, out

    u = query
    for step in range(iterations):
        last = step == iterations - 1
        frames = max(shards.own, 1)  # of no tokens, if none
        weighted_key, *values, lse = operators.spatial_step(u, key, value if last else None, frames, scale, True)
        rows = [*([query] if step == 0 else []), weighted_key, *(values if last else [])]
        loads = dict(
            rows=Load(shards.to_positions, [_by_frame(x, shards.own) for x in rows], _by_frame(lse, shards.own))
        )
        if step == 0 and extra_streams:
            loads["extra"] = Load(None, extra_streams)
        if step == 1 and first_query is not None:
            loads["found"] = _found_by_own(first_query, key, value, scale, shards)
        moved = move(shards.group, loads)
        extra_streams, found = moved.get("extra", extra_streams), moved.get("found", found)

        lse_here, *rows_here = (x.flatten(2, 3) for x in moved["rows"])
        if step == 0:
            u_here = query_here = rows_here.pop(0)
        key_here, *value_here = rows_here
        entropy = _dot(u_here, key_here) - lse_here
        if not entropy_gradient:
            entropy = entropy.detach()
        if not last:
            u_here, _ = operators.temporal_update(query_here, key_here, entropy, shards.all, mass_floor)
            loads = dict(u=Load(shards.to_frames, [_by_frame(u_here, shards.all)]))
            if step == 0 and dense_first_frame:
                loads["first"] = _first_rows(query_here, shards)
            moved = move(shards.group, loads)
            u = moved["u"][0].flatten(2, 3)
            (first_query,) = moved.get("first", [first_query])

    parts = [operators.temporal_output(query_here, key_here, entropy, *value_here, shards.all)]
    if extra_streams:
        parts.append(_dense(query_here, extra_streams[0], extra_streams[1], extra_mask, scale))
    out, lse = (_by_frame(x, shards.all) for x in _merge(parts))
    if dense_first_frame:
        if not found:  # in one iteration there is no other way that these could go with
            (first_query,) = move(shards.group, dict(first=_first_rows(query_here, shards)))["first"]
            found = move(shards.group, dict(found=_found_by_own(first_query, key, value, scale, shards)))["found"]
        parts = [tuple(_by_frame(x, shards.all)[:, :, 0] for x in part) for part in parts[1:]]
        parts += zip(found[1].unbind(2), found[0].unbind(2), strict=True)
        out, lse = (
            torch.cat([x.unsqueeze(2), y[:, :, 1:]], dim=2) for x, y in zip(_merge(parts), (out, lse), strict=True)
        )
    *statistic, out = move(shards.group, dict(out=Load(shards.to_frames, [out], lse if return_lse else None)))["out"]
    lse = statistic[0].flatten(2, 3).contiguous() if statistic else lse.new_empty(0)
    return out.flatten(2, 3).contiguous(), lse


def _first_rows(query_here: Tensor, shards: Shards) -> "Load":
    """Those of frame 0, from own positions to everybody."""
    rows = _by_frame(query_here, shards.all)[:, :, 0]
    return Load(shards.to_everybody, [rows.expand(shards.holders, *rows.shape)])


def _found_by_own(first_query: Tensor, key: Tensor, value: Tensor, scale: float, shards: Shards) -> "Load":
    """Attention of rows of frame 0 to the frames of this process, to where the rows came from."""
    first_query = first_query.reshape(*key.shape[:2], shards.frame, key.size(3))
    out, lse = (x.unsqueeze(2)[:, :, : shards.holds] for x in _dense(first_query, key, value, None, scale))
    return Load(shards.to_owners, [out], lse)


# ---- Whatever communicates -------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """Tensors that move together. A statistic, float32 or float64, has the shape of the rows without their last
    dimension. Without a route: tensors that every process has alike, which stay, but their gradients are summed."""

    route: Route | None
    rows: list[Tensor]
    statistic: Tensor | None = None


class Plan(NamedTuple):
    """Of a load, without its tensors."""

    route: Route | None
    rows: int
    statistic: bool

    def back(self) -> "Plan":
        return self._replace(route=None if self.route is None else self.route.back())


def move(group: ProcessGroup, loads: Mapping[str, Load]) -> dict[str, list[Tensor]]:
    """All loads by one collective -> of each the statistic, if there is one, and the rows. The first has a route."""
    plans = [Plan(load.route, len(load.rows), load.statistic is not None) for load in loads.values()]
    tensors = [x for _, rows, statistic in loads.values() for x in (*([] if statistic is None else [statistic]), *rows)]
    moved = Move.apply(group, plans, *tensors)
    return dict(zip(loads, _by_load(plans, moved), strict=True))


class Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, plans: list[Plan], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.plans = group, plans
        ctx.save_for_backward(tensors[0].new_empty(0))  # so that a checkpoint that holds this runs it again everywhere
        return tuple(x.detach() for load in _move(group, plans, tensors) for x in load)  # no views of what came

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == 1
        loads = _move(ctx.group, [plan.back() for plan in ctx.plans], grads)
        for i, plan in enumerate(ctx.plans):
            if plan.route is None:
                loads[i] = all_sums(loads[i], ctx.group, after=loads[0][-1])
        return None, None, *(x for load in loads for x in load)


def _move(group: ProcessGroup, plans: Sequence[Plan], tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    loads = _by_load(plans, tensors)
    parcels = [
        Reshard(_pack(load, plan.statistic), *plan.route)
        for plan, load in zip(plans, loads, strict=True)
        if plan.route is not None
    ]
    moved = iter(send(group, *parcels))
    return [
        load if plan.route is None else _unpack(next(moved), load, plan.statistic)
        for plan, load in zip(plans, loads, strict=True)
    ]


def _by_load(plans: Sequence[Plan], tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    rest = iter(tensors)
    return [[next(rest) for _ in range(plan.rows + plan.statistic)] for plan in plans]


def _pack(load: Sequence[Tensor], statistic: bool) -> Sequence[Tensor]:
    """Rows that go side by side along their last dimension, and a statistic behind them, bit by bit.

    That takes 16 bytes, so that rows of 16 bytes stay aligned to as many."""
    if not statistic:
        return load
    values, *rows = load
    dtype = rows[0].dtype
    columns = values.unsqueeze(-1).contiguous().view(dtype)
    return [*rows, F.pad(columns, (0, 16 // dtype.itemsize - columns.size(-1)))]


def _unpack(packed: Tensor, load: Sequence[Tensor], statistic: bool) -> list[Tensor]:
    """What load was, of other sizes but in the last dimension of rows."""
    widths = [x.size(-1) for x in load[int(statistic) :]]
    if not statistic:
        return list(packed.split(widths, dim=-1))
    itemsize = packed.element_size()
    *rows, columns = packed.split([*widths, 16 // itemsize], dim=-1)
    dtype = load[0].dtype
    columns = columns[..., : dtype.itemsize // itemsize]
    values = columns.clone(memory_format=torch.contiguous_format).view(dtype)  # aligned, as no view need be
    return [values.squeeze(-1), *rows]


# ---- Arithmetic ------------------------------------------------------------------------------------------------------


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, H, N, ...] -> [B, H, frames, N / frames, ...]"""
    return x.reshape(*x.shape[:2], frames, x.size(2) // max(frames, 1), *x.shape[3:])


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of all rows to all keys, and its log-sum-exp."""
    _, out, lse = operators.spatial_step(query, key, value, 1, scale, False, mask)
    return out, lse


def _merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention to several sets of keys, out and lse of each -> attention to all of them, and its log-sum-exp."""
    if len(parts) == 1:
        return parts[0]
    outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
    lse = torch.logsumexp(lses, dim=0)
    out = ((lses - lse).exp().unsqueeze(-1) * outs).sum(0)  # in the dtype of lse
    return out.to(outs.dtype), lse


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Of rows, in float32 or better: [B, H, N, C] twice -> [B, H, N]"""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) * y).sum(-1)
