"""The token grid of a call that gives each token its place and no sizes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from frameattn.adapters.call import Grid


class _Found(NamedTuple):
    version: int
    grid: Grid


_FOUND = WeakTensorKeyDictionary()  # by the tensor of places: a pipeline gives the same one in every step


def grid_at_end(places: Tensor) -> Grid | None:
    """The largest T x H x W of tokens, row-major, that a sequence ends with. None in compiled code, which cannot look.

    Args:
        places: [N, 3] or [3, N], time, height and width of every token. Waits for the device once for each tensor.
    """
    if torch.compiler.is_compiling():
        return None
    found = _FOUND.get(places)
    if found is None or found.version != places._version:
        on_cpu = places.detach().cpu()
        grid = _search(on_cpu if on_cpu.size(0) == 3 else on_cpu.t())
        found = _FOUND[places] = _Found(places._version, grid)
    return found.grid


def _search(places: Tensor) -> Grid:
    """places [3, N]. A grid of one token is always there."""
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
