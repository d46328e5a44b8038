"""Processes that run test functions together, as a group of gloo: started once, for all tests of a session."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

COUNT = 4
TIMEOUT = 240  # seconds: what a collective waits for a process that does not come, as it may compile yet
SUBGROUPS = [(1, 3)]  # beside the first one, two, ...


class Processes:
    """``run(function, *args, ranks=n)`` calls ``function(group, *args)`` in n processes whose group it is."""

    def __init__(self, count: int = COUNT, timeout: int = TIMEOUT) -> None:
        self.count, self.timeout = count, timeout
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["frameattn.adapters", "diffusers.models.modeling_utils"])  # once, then forked
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        self.connections, self.processes = [], []
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            arguments = (rank, self.count, self.timeout, store, theirs)
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()
            theirs.close()  # so that the end of the process is the end of the connection
            self.connections.append(ours)

    def run(self, function: Callable[..., Any], *args: Any, ranks: int | Sequence[int] = 2, **kwargs: Any) -> list[Any]:
        """What the processes return, in the order of their ranks: the first so many, or those named, which are
        one of SUBGROUPS.

        Raises:
            AssertionError: a process raised, with its traceback, or ended. The others may be left in the middle of a
                collective, so that all of them are started anew.
        """
        ranks = tuple(range(ranks)) if isinstance(ranks, int) else tuple(ranks)
        connections = [self.connections[rank] for rank in ranks]
        for connection in connections:
            connection.send((ranks, function, args, kwargs))
        deadline = time.monotonic() + 1.5 * self.timeout + 5
        answers = [self._answer(connection, deadline) for connection in connections]
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(answers) if problem]
        if problems:
            self.stop()
            self.start()
            raise AssertionError("\n".join(problems))
        return [result for result, _ in answers]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()

    def _answer(self, connection: Any, deadline: float) -> tuple[Any, str | None]:
        if not connection.poll(max(deadline - time.monotonic(), 0)):
            return None, "no answer"
        try:
            return connection.recv()
        except EOFError:
            return None, "the process ended"


def _serve(rank: int, count: int, timeout: int, store: str, connection: Any) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=patience)
    groups = {}
    for ranks in [*(tuple(range(size)) for size in range(1, count + 1)), *SUBGROUPS]:
        if max(ranks) < count:
            groups[ranks] = dist.new_group(list(ranks), timeout=patience)
    while True:
        ranks, function, args, kwargs = connection.recv()
        try:
            connection.send((function(groups[ranks], *args, **kwargs), None))
        except BaseException:  # pytest's too
            connection.send((None, traceback.format_exc()))
