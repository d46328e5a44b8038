"""The arguments of a model's forward, by name, also where subclasses pass them on without naming them."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

MISSING = inspect.Parameter.empty


class Level(NamedTuple):
    """The forward of one class: its parameters and their defaults, and whether it has others as ``*args, **kwargs``."""

    defaults: dict[str, Any]
    positional: tuple[str, ...]
    passes_on: bool


class Forward:
    """Binds the arguments of a call as Python does.

    By the classes, for an offloaded or cached model has a ``forward(*args, **kwargs)`` of a hook on it. A class that
    passes on what it does not name is asked together with the next one that has a forward. Plain data and plain loops:
    a compiler traces this.
    """

    def __init__(self, model: nn.Module):
        self.levels: list[Level] = []
        for cls in type(model).__mro__:
            forward = vars(cls).get("forward")
            if forward is None or cls is nn.Module:
                continue
            parameters = list(inspect.signature(forward).parameters.values())[1:]
            variable = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            named = [p for p in parameters if p not in variable]
            positional = tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
            self.levels.append(Level({p.name: p.default for p in named}, positional, bool(variable)))
            if not variable:
                break

    def __contains__(self, name: str) -> bool:
        return any(name in level.defaults for level in self.levels)

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument that some class names; MISSING where a call does not give one that has no default."""
        found: dict[str, Any] = {}
        above: tuple[str, ...] = ()
        for level in self.levels:
            # What a subclass has as *args are positions of the next class, if what it names itself are the first ones.
            same = level.positional[: len(above)] == above
            given = dict(zip(level.positional, args, strict=False)) if same else {}
            given.update({name: value for name, value in kwargs.items() if name in level.defaults})
            for name, default in level.defaults.items():
                if found.get(name, MISSING) is MISSING:
                    found[name] = given.get(name, default)
            above = level.positional
        return found
