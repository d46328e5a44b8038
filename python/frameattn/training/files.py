"""The files that a run resumes from: written whole or not at all, and read again."""

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from frameattn._errors import UsageError, as_usage_error
from frameattn.data.latents import same_fact


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of path at the end: a kill leaves the old or the new one, whole."""
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    yield temporary
    os.replace(temporary, path)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of folder, which is made, and removed again if nothing was written into it.

    Raises:
        UsageError: a run has it; the message says which.
    """
    import fcntl

    path = folder / ".lock"
    with as_usage_error(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            # Of a process, not of an open file, which processes that prepare data would hold on to after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warnings.warn(f"{folder} cannot be locked against a second run: {error.strerror}", stacklevel=3)
            else:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UsageError(f"{holder} is training in {folder}: choose another --out, or wait") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if os.listdir(folder) == [path.name]:
                path.unlink()
                folder.rmdir()


def load_state(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise UsageError(f"{path} is not a state that frameattn wrote: move it away to start anew") from error


def check_same_run(values: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    """Steps, rates and intervals may change when a run is resumed; what the weights mean may not."""
    for key in ("model", "data", "diffusion", "seed", "lora", "lora_alpha", "lora_targets"):
        if values[key] != saved.get(key):
            difference = _difference(saved.get(key), values[key])
            raise UsageError(f"{folder} holds a run with another {key}: {difference}; choose another --out")


def check_same_latents(now: dict[str, Any], before: dict[str, Any], who: str) -> None:
    """Weights belong to the latents that they were trained on: those of one VAE, at one scale."""
    for key in ("scaling_factor", "vae", "text_encoder"):
        before_and_now = before.get(key), now.get(key)
        if None not in before_and_now and not same_fact(*before_and_now):
            raise UsageError(f"{who} on latents of {key} {before.get(key)}, these are of {now.get(key)}")


def _difference(old: Any, new: Any) -> str:
    if not isinstance(old, dict):
        return f"{old} there, {new} now"
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)} there, {new.get(key)} now" for key in keys)
