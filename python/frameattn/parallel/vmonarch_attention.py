"""vmonarch_attention of a video whose frames are shared out among processes: arguments, agreement, and which way."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from frameattn._operators import operators
from frameattn.parallel.agreement import agree
from frameattn.parallel.dtensor import layout_of
from frameattn.parallel.exchange import default_group, replicated, under_autocast
from frameattn.parallel.frames import Shards, frame_attention

OP = "frameattn.parallel.vmonarch_attention"

_operator = operators.vmonarch_attention


@overload
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    group: ProcessGroup | None = ...,
    frames_per_rank: Sequence[int] | None = ...,
    check: bool = ...,
    iterations: int = ...,
    dense_first_frame: bool = ...,
    mass_floor: float = ...,
    scale: float | None = ...,
    entropy_gradient: bool = ...,
    extra_key: Tensor | None = ...,
    extra_value: Tensor | None = ...,
    extra_mask: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    workspace_bytes: int | None = ...,
) -> Tensor: ...
@overload
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    group: ProcessGroup | None = ...,
    frames_per_rank: Sequence[int] | None = ...,
    check: bool = ...,
    iterations: int = ...,
    dense_first_frame: bool = ...,
    mass_floor: float = ...,
    scale: float | None = ...,
    entropy_gradient: bool = ...,
    extra_key: Tensor | None = ...,
    extra_value: Tensor | None = ...,
    extra_mask: Tensor | None = ...,
    return_lse: Literal[True],
    workspace_bytes: int | None = ...,
) -> tuple[Tensor, Tensor]: ...
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    group: ProcessGroup | None = None,
    frames_per_rank: Sequence[int] | None = None,
    check: bool = False,
    iterations: int = 2,
    dense_first_frame: bool = True,
    mass_floor: float = 0.1,
    scale: float | None = None,
    entropy_gradient: bool = True,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_mask: Tensor | None = None,
    return_lse: bool = False,
    workspace_bytes: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""``frameattn.vmonarch_attention`` of a video of which every process has some frames.

    All processes of the group call it together, and backward too: both communicate. Forward sends what others need of
    ``2 * iterations + 2`` tensors like the process's own query, and of the rows of frame 0, by ``2 * iterations``
    collectives (in one iteration with a dense first frame by four). Backward sends as much.

    Args:
        query, key: [B, H, own frames * S, D]: the frames of this process, in the order of the ranks of the group.
        value: [B, H, own frames * S, Dv]. All three may be DTensors [B, H, N, D] and [B, H, N, Dv] that are sharded
            along N, and along B and H as well.
        frames: of the whole video.
        group: the default group if None. In a group of one this is the plain operator.
        frames_per_rank: how many frames each rank of the group has; they may differ, and be none. If None, the
            processes ask one another how many tokens they have, and whether they mean the same call, which costs a
            collective and a wait for the device, and in compiled code a graph break.
        check: ask also where frames_per_rank is given.
        extra_key, extra_value, extra_mask: the same on all processes. The gradient of each is the whole one, which is
            the sum over all processes, on every process.
        workspace_bytes: for a process that has all frames.
        iterations, dense_first_frame, mass_floor, scale, entropy_gradient, return_lse: of the operator.

    Returns: out [B, H, own frames * S, Dv]; with return_lse also lse [B, H, own frames * S]. DTensors for DTensors.

    Equal to the operator on one device up to the rounding of sums, gradients too, and as deterministic. Differentiable
    once. Backward keeps about twice of what the operator keeps for these rows.

    Raises:
        RuntimeError: arguments do not fit. With the question above on every process, and it names the rank; without it
            others wait until the group's timeout for the one that stopped.

    Examples:
        Under ``torchrun``; of 21 frames four processes have 6, 5, 5 and 5:

        >>> import torch
        >>> import frameattn
        >>> counts = frameattn.parallel.share(21, torch.distributed.get_world_size())
        >>> own = counts[torch.distributed.get_rank()]
        >>> q, k, v = (torch.randn(1, 4, own * 60, 64) for _ in range(3))
        >>> frameattn.parallel.vmonarch_attention(q, k, v, 21, frames_per_rank=counts).shape == q.shape
        True
    """
    options = Options(iterations, dense_first_frame, mass_floor, scale, entropy_gradient, return_lse, workspace_bytes)
    layout = layout_of(OP, query, key, value, extra_key=extra_key, extra_value=extra_value, extra_mask=extra_mask)
    if layout is None:
        tensors = Tensors(query, key, value, extra_key, extra_value, extra_mask)
        out, lse = _attention(tensors, frames, default_group(group), frames_per_rank, check, options)
    elif group is not None or frames_per_rank is not None:
        raise RuntimeError(f"{OP}: DTensors say by their layout what group and frames_per_rank are; give neither")
    else:
        tensors = Tensors(query, key, value, extra_key, extra_value, extra_mask).map(layout.local)
        counts = _whole_frames(layout.tokens, frames)
        out, lse = _attention(tensors, frames, layout.group, counts, check, options)
        out, lse = layout.whole(out), layout.whole(lse) if return_lse else lse
    return (out, lse) if return_lse else out


class Options(NamedTuple):
    iterations: int
    dense_first_frame: bool
    mass_floor: float
    scale: float | None
    entropy_gradient: bool
    return_lse: bool
    workspace_bytes: int | None


class Tensors(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    extra_key: Tensor | None
    extra_value: Tensor | None
    extra_mask: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tensors":
        rest = (None if x is None else function(x) for x in self[3:])
        return Tensors(function(self.query), function(self.key), function(self.value), *rest)


def _attention(
    tensors: Tensors,
    frames: int,
    group: ProcessGroup,
    frames_per_rank: Sequence[int] | None,
    check: bool,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """out, and lse or something empty in its place."""
    device = tensors.query.device.type
    tensors = Tensors(*under_autocast(tensors))
    if dist.get_world_size(group) == 1:
        return _plain(tensors, frames, options)

    counts = _agreed_frames(tensors, frames, group, frames_per_rank, check, options)
    extra = None
    if tensors.extra_key is not None and tensors.extra_value is not None:
        extra = tensors.extra_key, tensors.extra_value, tensors.extra_mask
    if sum(count > 0 for count in counts) <= 1:  # one has all of them, and the others an empty part
        if extra is not None:
            key, value = replicated(group, *extra[:2])
            tensors = tensors._replace(extra_key=key, extra_value=value)
        return _plain(tensors, frames, options)
    attention = frame_attention
    if torch.compiler.is_compiling() and min(counts) == 0:  # a compiler forgets what nothing depends on
        attention = torch.compiler.disable(frame_attention)
    with torch.autocast(device, enabled=False):
        return attention(
            *tensors[:3],
            extra,
            Shards(counts, tensors.query.size(2), group),
            iterations=options.iterations,
            dense_first_frame=options.dense_first_frame,
            mass_floor=options.mass_floor,
            scale=tensors.query.size(3) ** -0.5 if options.scale is None else options.scale,
            entropy_gradient=options.entropy_gradient,
            return_lse=options.return_lse,
        )


def _plain(tensors: Tensors, frames: int, options: Options) -> tuple[Tensor, Tensor]:
    return _operator(*tensors[:3], frames, *options[:5], *tensors[3:], *options[5:])


def _agreed_frames(
    tensors: Tensors,
    frames: int,
    group: ProcessGroup,
    frames_per_rank: Sequence[int] | None,
    check: bool,
    options: Options,
) -> list[int]:
    """How many frames each process has: what the caller says, or what the processes tell one another."""
    problem: Exception | None = None
    try:
        _check_own(tensors, frames, frames_per_rank, group, options)
    except Exception as error:  # of any kind, for the others wait
        if frames_per_rank is not None and not check:
            raise
        problem = error
    if frames_per_rank is not None and not check:
        return list(frames_per_rank)

    query, _, value, extra_key, _, extra_mask = tensors
    sizes = [*query.shape, *[0] * 4]
    given = [None] * dist.get_world_size(group) if frames_per_rank is None or problem else frames_per_rank
    facts = dict(
        frames=frames,
        **{f"frames_per_rank[{rank}]": count for rank, count in enumerate(given)},
        dtype=query.dtype,
        B=sizes[0],
        H=sizes[1],
        D=sizes[3],
        Dv=value.shape[-1] if value.dim() else 0,
        **options._asdict(),
        extra_keys=None if extra_key is None else extra_key.numel(),
        extra_mask=extra_mask is not None,
        **{  # by it the graph of a process does or does not communicate
            f"requires_grad of {name}": torch.is_grad_enabled() and x is not None and x.requires_grad
            for name, x in tensors._asdict().items()
        },
    )
    counts = _whole_frames(agree(OP, sizes[2], facts, problem, query.device, group), frames)
    if frames_per_rank is not None and list(frames_per_rank) != counts:
        raise RuntimeError(f"{OP}: frames_per_rank is {list(frames_per_rank)}, but the ranks have {counts} frames")
    return counts


def _check_own(
    tensors: Tensors, frames: int, frames_per_rank: Sequence[int] | None, group: ProcessGroup, options: Options
) -> None:
    """Raises what can be seen without the other processes."""
    if frames < 1:
        raise RuntimeError(f"{OP}: frames must be at least 1, got {frames}")
    own, tokens = 1, tensors.query.size(2) if tensors.query.dim() == 4 else 0
    if frames_per_rank is not None:
        ranks = dist.get_world_size(group)
        if len(frames_per_rank) != ranks or min(frames_per_rank) < 0 or sum(frames_per_rank) != frames:
            raise RuntimeError(
                f"{OP}: frames_per_rank must be {ranks} numbers, one for each rank of the group, whose sum is frames = "
                f"{frames}, got {list(frames_per_rank)}"
            )
        own = frames_per_rank[dist.get_rank(group)]
        if tokens % own if own else tokens:
            raise RuntimeError(f"{OP}: this process has {own} frames by frames_per_rank, which {tokens} tokens are not")
    for name, x in tensors._asdict().items():
        if x is not None and x.device != tensors.query.device:
            raise RuntimeError(f"{OP}: {name} must be on the device of query, {tensors.query.device}, got {x.device}")
    if torch.compiler.is_compiling():  # there the operators that are called look at shapes
        _, _, _, extra_key, extra_value, extra_mask = tensors
        if (extra_key is None) != (extra_value is None) or (extra_key is None and extra_mask is not None):
            raise RuntimeError(f"{OP}: extra_key and extra_value come together, and extra_mask with both")
        if options.iterations < 1:
            raise RuntimeError(f"{OP}: iterations must be at least 1, got {options.iterations}")
    else:
        _plain(tensors.map(lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta")), max(own, 1), options)


def _whole_frames(tokens: Sequence[int], frames: int) -> list[int]:
    """How many frames so many tokens of each rank are."""
    if frames < 1 or sum(tokens) % frames:
        raise RuntimeError(f"{OP}: frames must divide the tokens of all ranks, {sum(tokens)}, got {frames}")
    size = sum(tokens) // frames
    for rank, count in enumerate(tokens):
        if size and count % size:
            raise RuntimeError(
                f"{OP}: every rank must have whole frames; {sum(tokens)} tokens in {frames} frames are {size} in each, "
                f"and rank {rank} has {count}"
            )
    return [count // size if size else 0 for count in tokens]
