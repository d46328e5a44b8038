"""Several processes that train one model: torchrun starts them, every one takes its share of each batch.

Each holds the whole model and gradients are averaged (DDP), or parameters, average and optimizer are sharded (FSDP2).
The processes agree by gloo, so that waiting for the first one to save does not keep a GPU's collective waiting; on
GPUs gradients and parameters go by a group of nccl.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frameattn._errors import UsageError

TIMEOUT = timedelta(minutes=30)  # a save of the first process, or a compilation, may take long


class RunEnds(Exception):
    """This process ends because of another one, and says the message. Where it is empty, another has said all."""


@dataclass
class Processes:
    """This process, ``rank`` of ``count``, and what it does together with the others. One alone is ``ALONE``."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def say(self, *lines: str) -> None:
        if self.first:
            print(*lines, sep="\n", flush=True)

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, where the configuration says ``device``."""
        if self.count == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise UsageError(f"device {device} is one GPU for {self.count} processes: use --device cuda")
        if self.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"device cuda: a process needs a GPU of its own, but this machine has {torch.cuda.device_count()}: "
                f"use torchrun --nproc_per_node {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes give; waits for all of them."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values over the processes, on the CPU."""
        values = values.to("cpu", copy=True)
        if self.count > 1:
            dist.all_reduce(values)
        return values / self.count

    def distribute(
        self, model: nn.Module, device: torch.device, shard: bool, compiled: bool, all_used: bool
    ) -> Callable[..., Any]:
        """Puts model on device and returns what computes it, with gradients that are means over the processes.

        Args:
            shard: each process keeps a part of every parameter, and of what is computed from them.
            all_used: every parameter takes part in every step.
        """
        if self.count == 1:
            return torch.compile(model.to(device)) if compiled else model.to(device)
        group = dist.new_group(backend="nccl", timeout=TIMEOUT) if device.type == "cuda" else dist.group.WORLD
        if shard:
            _shard(model, device, group, compiled)
            return model
        model.to(device)
        data_parallel = nn.parallel.DistributedDataParallel
        known = inspect.signature(data_parallel).parameters
        # Buffers are tables. The second name is deprecated from torch 2.13 on, the first one unknown before.
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False}
        return data_parallel(
            torch.compile(model) if compiled else model,
            process_group=group,
            find_unused_parameters=not all_used,
            gradient_as_bucket_view=True,
            **options,
        )


ALONE = Processes()


def _shard(model: nn.Module, device: torch.device, group: Any, compiled: bool) -> None:
    """FSDP2 in place: a block is gathered when it is computed."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # which nobody writes to
    mesh = DeviceMesh.from_group(group, device.type)
    for name in ("blocks", "transformer_blocks", "temporal_transformer_blocks"):
        for block in getattr(model, name, ()):
            if compiled:  # each: the gathering between them cannot be compiled
                block.compile()
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to(device)  # buffers


def without_averaging(forward: Callable[..., Any]) -> AbstractContextManager:
    """Where gradients of a micro-batch that is not the last are kept to add to. Shards average each: they are small."""
    return forward.no_sync() if isinstance(forward, nn.parallel.DistributedDataParallel) else nullcontext()


def local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor; another tensor as it is."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a sharded tensor, on its device; another tensor as it is."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def gathered(state: Any, keep: bool) -> Any:
    """state, of dicts and lists, with all of every sharded tensor on the CPU if keep, else nothing of it.

    One tensor after the other, so that a GPU holds no more than one of them.
    """
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, keep) for value in state]
    if not _is_sharded(state):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if keep else None


def scattered(tensor: Tensor, like: Any) -> Tensor:
    """tensor, which every process has, sharded as like is."""
    if not _is_sharded(like) or tensor.shape != like.shape:  # the step's number of an optimizer
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_sharded(value: Any) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, or ALONE. Of an error in several, or in all, the first to have it speaks.

    Raises:
        RunEnds: one of the others ended or does not answer, or has spoken.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield ALONE
        return
    try:
        store, rank, count = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    except (ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"WORLD_SIZE is {count}, but the processes do not find one another: {error}") from error
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=TIMEOUT)
        processes = Processes(rank, count, int(os.environ.get("LOCAL_RANK", 0)))
        yield processes
        processes.largest(0)  # torchrun stops the others when one ends by a signal: the first has said its last
        dist.destroy_process_group()
    except Exception as error:
        if not _speaks(store, rank):
            raise RunEnds("") from error
        if is_of_peer(error):
            raise RunEnds(f"one of the {count} processes ended or does not answer") from error
        raise


def is_of_peer(error: Exception) -> bool:
    """Whether error is a collective's whose other processes are gone."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))


def _speaks(store: Any, rank: int) -> bool:
    """Whether this process is the first to have an error."""
    try:
        return store.compare_set("frameattn/error", "", str(rank)) == str(rank).encode()
    except RuntimeError:  # the store went with the process that holds it
        return True
