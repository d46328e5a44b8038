"""A command with a time limit, in a process group of its own, of which nothing is left when it is over."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 3.0  # seconds between asking a group to end and killing it


@dataclass(frozen=True)
class Outcome:
    returncode: int | None  # None: it ran past its limit
    seconds: float


def run_limited(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str], folder: Path
) -> Outcome:
    """Runs the command with its output in `log`; after `limit` seconds its whole group is ended."""
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,  # a group of its own: compilers and tests that it started end with it
        )
        try:
            returncode = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            returncode = None
        finally:  # also when this process is interrupted, and for what a command that ended has left behind
            end_group(process)
    return Outcome(returncode, time.monotonic() - start)


def end_group(process: subprocess.Popen) -> None:
    if process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()


def signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in it
        os.killpg(group, number)
