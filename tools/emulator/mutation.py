"""A fault to plant in a kernel (mutations.py)."""

from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    source: Path  # the kernels that are compiled with the fault
    task: str  # in the names of their cases
    thorough: str  # in those of some cases for all schedules
    file: str  # that has the fault, from the root of the repository
    old: str
    new: str
    sanitized: bool = False  # seen by AddressSanitizer only: an access outside a tensor that the emulator cannot know
    cases: str = ""  # whose names contain this may see it; all of the task's
