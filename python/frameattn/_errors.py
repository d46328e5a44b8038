"""Errors of the user: the command line prints them in one line and exits with code 2."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to change."""


def first_of(problems: Sequence[str]) -> str:
    """Problems in one line: five of them, and how many more there are."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Reports what the user's values make a constructor or a reader raise, without a traceback."""
    try:
        yield
    except (TypeError, ValueError, KeyError, OSError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UsageError(f"{what}: {' '.join(str(message).split())}") from error
