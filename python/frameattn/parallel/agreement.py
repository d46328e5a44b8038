"""What processes ask one another ahead of a call: their sizes, and whether they mean the same call."""

import math
from collections.abc import Mapping

import torch
from torch.distributed import ProcessGroup

from frameattn.parallel.exchange import gather

Fact = int | float | torch.dtype | None

_DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)


@torch.compiler.disable
def agree(
    op: str,
    size: int,
    facts: Mapping[str, Fact],
    problem: Exception | None,
    device: torch.device,
    group: ProcessGroup,
) -> list[int]:
    """The sizes of all processes, in one collective, which waits for the device. Compiled code is left for it.

    Args:
        size: of this process; others may have others.
        facts: what has to be alike on all processes, by name: the same names in the same order everywhere.
        problem: why this process cannot take part. It says so in the collective, so that the others do not wait, and
            raises it.
        device: of the tensors that the group communicates.

    Raises:
        RuntimeError: on every process, where one has a problem or other facts than the first one.
    """
    numbers = [0.0] * len(facts) if problem else [_number(fact) for fact in facts.values()]
    mine = torch.tensor([problem is not None, size, *numbers], dtype=torch.float64, device=device)
    answers = gather(mine.unsqueeze(0), 0, [1] * group.size(), group).tolist()
    if problem is not None:
        raise problem
    for rank, (failed, *_) in enumerate(answers):
        if failed:
            raise RuntimeError(f"{op}: rank {rank} of the group cannot take part, and says why in an error of its own")
    for column, (name, fact) in enumerate(facts.items(), start=2):
        for rank, answer in enumerate(answers):
            if answer[column] != answers[0][column]:
                raise RuntimeError(
                    f"{op}: {name} must be the same on all ranks of the group, got {_meaning(fact, answer[column])} on "
                    f"rank {rank} and {_meaning(fact, answers[0][column])} on rank 0"
                )
    return [int(answer[1]) for answer in answers]


def _number(fact: Fact) -> float:
    if isinstance(fact, torch.dtype):
        return _DTYPES.index(fact)
    return -math.inf if fact is None else float(fact)


def _meaning(fact: Fact, number: float) -> str:
    """What the number of another process says, for a fact of the kind of this one."""
    if isinstance(fact, torch.dtype):
        return str(_DTYPES[int(number)])
    if isinstance(fact, bool):
        return str(bool(number))
    if number == -math.inf:
        return "None"
    return str(int(number)) if number.is_integer() else str(number)
