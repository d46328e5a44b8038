"""Processes that run test functions together, as a group of gloo: started once, for all tests of a session."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

COUNT = 4
TIMEOUT = 60  # seconds: what a collective waits for a process that does not come


class Processes:
    """``run(function, *args, ranks=n)`` calls ``function(group, *args)`` in n processes whose group it is."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "frameattn.parallel"])  # imported once, then forked
        self.folder = tempfile.TemporaryDirectory()
        store = Path(self.folder.name) / "store"
        self.connections, self.processes = [], []
        for rank in range(COUNT):
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=_serve, args=(rank, str(store), theirs), daemon=True))
            self.processes[-1].start()
            self.connections.append(ours)

    def run(self, function: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
        """What the processes return, by rank.

        Raises:
            AssertionError: a process raised, with its traceback.
        """
        for connection in self.connections[:ranks]:
            connection.send((function, args, ranks))
        answers = [c.recv() if c.poll(2 * TIMEOUT) else (None, "no answer") for c in self.connections[:ranks]]
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(answers) if problem]
        if problems:
            raise AssertionError("\n".join(problems))
        return [result for result, _ in answers]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def _serve(rank: int, store: str, connection: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=COUNT, timeout=timedelta(seconds=TIMEOUT)
    )
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in range(1, COUNT + 1)}
    while True:
        function, args, ranks = connection.recv()
        try:
            connection.send((function(groups[ranks], *args), None))
        except Exception:
            connection.send((None, traceback.format_exc()))
