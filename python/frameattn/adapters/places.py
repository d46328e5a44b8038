"""The token grid of a call that gives each token its place and no sizes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from frameattn.adapters.call import Grid

PLACES_UNSEEN = "compiled code cannot look at the places of tokens; apply(grid=(T, H, W)) says their grid"

_SEEN = WeakTensorKeyDictionary()  # version, what was found; a pipeline gives the same tensors in every step


def unseen(places: Tensor | None) -> bool:
    """There are places, which compiled code cannot look at."""
    return places is not None and torch.compiler.is_compiling()


def grid_at_end(places: Tensor) -> Grid | None:
    """The largest T x H x W of tokens, row-major, that a sequence ends with. None in compiled code, which cannot look.

    Args:
        places: [N, 3] or [3, N], time, height and width of every token, or [B, 3, N], of which sample 0 is looked at.
            Waits for the device once for each tensor; for those of ``torch.inference_mode()`` in every call, as they do
            not say whether they were written to since.
    """
    return None if unseen(places) else _look(places, _search)


def tokens_at_end(indices: Tensor, tokens: int) -> int:
    """How many of the last of so many tokens are, each of them, among the indices [n]. Waits as ``grid_at_end``."""
    last, count = _look(indices, _last_run)
    return count if last == tokens - 1 else 0


def _look(x: Tensor, find: Callable[[Tensor], Any]) -> Any:
    """find(x on the CPU), once for each content of a tensor."""
    if x.is_inference():
        return find(x.cpu())
    seen = _SEEN.get(x)
    if seen is None or seen[0] != x._version:
        seen = _SEEN[x] = x._version, find(x.detach().cpu())
    return seen[1]


def _last_run(indices: Tensor) -> tuple[int, int]:
    """The greatest index, and how many follow one another up to it."""
    ordered = indices.unique()
    return int(ordered[-1]), _run(ordered - torch.arange(len(ordered)))


def _search(places: Tensor) -> Grid:
    """A grid of one token is always there."""
    places = places[0] if places.dim() == 3 else places if places.size(0) == 3 else places.t()  # [3, N]
    tokens = places.size(1)
    per_frame = _run(places[0])
    width = _run(places[1, -per_frame:])
    if per_frame % width or not _is_rectangle(places[1:, -per_frame:].unflatten(1, (-1, width))):
        return 1, 1, 1
    frames = tokens // per_frame
    video = places[:, tokens - frames * per_frame :].unflatten(1, (frames, per_frame))
    alike = (video[1:] == video[1:, -1:]).all(dim=2).all(dim=0) & (video[0] == video[0, :, :1]).all(dim=1)
    alike[:-1] &= video[0, :-1, 0] < video[0, 1:, 0]  # later frames are later
    return _run(alike), per_frame // width, width


def _run(x: Tensor) -> int:
    """How many entries at the end are as the last."""
    others = (x != x[-1]).nonzero()
    return len(x) - (int(others[-1]) + 1 if len(others) else 0)


def _is_rectangle(frame: Tensor) -> bool:
    """frame [2, H, W]: heights that grow from row to row, widths that grow from column to column."""
    heights, widths = frame
    same = (heights == heights[:, :1]).all() and (widths == widths[:1]).all()
    return bool(same and (heights[:, 0].diff() > 0).all() and (widths[0].diff() > 0).all())
