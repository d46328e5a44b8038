"""One call of a swapped model: what its attention modules have to know of it, and how that reaches them.

Grid, extra tokens, dense or not: these belong to a call, not to a model, which two threads may share and whose blocks
backward may run again. The hook ahead of a model puts a ``Call`` into ``running``, the hook behind it takes the call
out, and the processors in between look there. Why this, and neither an attribute of the model nor an argument:

- ``running`` is a ``threading.local``: every thread, and so every replica of DataParallel, sees its own call.
- A compiled block reads it, too. To dynamo it is an input like any other, looked up and guarded anew on every entry in
  the thread that enters. (A ContextVar is no input, and numbers on a module are constants, one compilation each.) The
  numbers are the sizes of an empty tensor, as those are what dynamo makes symbolic: one graph holds for all grids.
- Blocks that activation checkpointing runs again in backward do so outside of the call of the model. checkpointing.py
  has them run within the one that they first ran in.
- An argument would have to go through code of other people, who do not all have one that reaches the attention, and
  would meet processors that do not expect it.
"""

import threading
from typing import Any, NamedTuple, Optional

import torch
import torch._dynamo

Grid = tuple[int, int, int]  # tokens in time, height and width
GRID_UNKNOWN = "this call does not say its token grid; apply(grid=(T, H, W)) can"
ForeignModule = Any  # an nn.Module of another library, whose attributes are known by their names alone


class Layout(NamedTuple):
    """The sequence of a video's attention: ``ahead`` other tokens, T x H x W of the video (row-major), ``behind``
    others. Those attend densely, and every token attends to them densely."""

    grid: Grid
    ahead: int = 0
    behind: int = 0

    def __str__(self) -> str:
        others = [f"{n} tokens {where}" for n, where in ((self.ahead, "ahead"), (self.behind, "behind")) if n]
        return ", ".join([shape(self.grid), *others])


def shape(grid: Grid) -> str:
    return " x ".join(str(int(size)) for size in grid)


class Call:
    """One call of a swapped model.

    Attributes:
        layout: for messages. sizes: the same to compute with, as an empty tensor [T, H * W, ahead, behind, 0]; None in
            a call that is dense.
        marked: whether processors in compiled code may write here. Not where gradients are recorded: the code may be
            the inside of a checkpoint then, which no compiler lets have side effects.
        swapped: some attention module ran VMonarch.
        dense: why some did not, although the call has a layout.
        outer: the call of another model that this one is within.
        owner: whose call it is.
    """

    def __init__(self, layout: Layout | None, outer: Optional["Call"] = None, marked: bool = True, owner: Any = None):
        self.layout, self.sizes = layout, None
        if layout is not None:
            (t, h, w), ahead, behind = layout
            self.sizes = torch.empty((t, h * w, ahead, behind, 0), device="cpu")
            if not torch.compiler.is_compiling():  # symbolic from the first compilation on, where sizes are at all
                torch._dynamo.maybe_mark_dynamic(self.sizes, [0, 1, 2, 3])
        self.marked = marked
        self.swapped = False
        self.dense: str | None = None
        self.outer, self.owner = outer, owner


class Running(threading.local):
    """The call that the current thread is in; kept: within a function that was checkpointed in it."""

    call: Call | None = None
    kept = False


running = Running()


def in_backward() -> bool:
    """Whether autograd's backward runs, which may run what was checkpointed again."""
    return torch._C._current_graph_task_id() != -1
