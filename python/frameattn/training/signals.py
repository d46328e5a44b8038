"""How a signal ends a run: at the end of a step, with everything saved."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_signals(repeated: bool = False) -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number into; a second one acts as it did before.

    repeated: a second one changes nothing: of several processes each may get it from the user and from the launcher,
    which kills those that take too long.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not repeated:
            signal.signal(number, before[number])

    for stopping in (signal.SIGINT, signal.SIGTERM):
        before[stopping] = signal.signal(stopping, remember)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C in a terminal, and torchrun when it stops, signal the whole process group: a worker that ended by it would
    # be an error in the step that is to be saved. SIGTERM stays what the parent ends workers with.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
