"""What the calls of a swapped model ran."""

import threading
from dataclasses import dataclass, field

from frameattn.adapters.call import Call

NONE_RAN = "no swapped attention ran, as under a cache"

_lock = threading.Lock()  # of all counts: these are copied and pickled, which a lock cannot be


@dataclass
class Counts:
    """Calls of a model, since apply() or the last reset.

    Attributes:
        vmonarch: calls that ran VMonarch, in all swapped attention modules or in some.
        dense: {reason: calls} in which none did.
        partly: {reason: calls} of those in ``vmonarch`` in which some modules ran dense attention.
        unseen: calls of compiled code that runs VMonarch in some cases and not in others, and cannot say which it was.
    """

    vmonarch: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    partly: dict[str, int] = field(default_factory=dict)
    unseen: int = 0

    @property
    def calls(self) -> int:
        return self.vmonarch + sum(self.dense.values()) + self.unseen

    def __bool__(self) -> bool:
        return self.calls > 0

    def __add__(self, other: "Counts") -> "Counts":
        def joined(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return {reason: a.get(reason, 0) + b.get(reason, 0) for reason in {**a, **b}}

        return Counts(
            self.vmonarch + other.vmonarch,
            joined(self.dense, other.dense),
            joined(self.partly, other.partly),
            self.unseen + other.unseen,
        )

    def add(self, call: Call, compiled: set[str | None]) -> None:
        """compiled: the reasons of what was compiled so far to be dense, None among them for what runs VMonarch."""
        reason, swapped, unseen = call.dense, call.swapped, False
        if reason is None and not swapped:  # no processor could write, or none ran
            compiled = set() if call.marked else compiled
            reason = next(iter(compiled)) if len(compiled) == 1 else None if compiled else NONE_RAN
            swapped = compiled == {None}
            unseen = len(compiled) > 1
        with _lock:
            self.unseen += unseen
            self.vmonarch += swapped
            if reason is not None:
                reasons = self.partly if swapped else self.dense
                reasons[reason] = reasons.get(reason, 0) + 1

    def __str__(self) -> str:
        parts = [f"{self.vmonarch} with VMonarch"] if self.vmonarch else []
        parts += [f"{calls} of these dense in part ({reason})" for reason, calls in self.partly.items()]
        parts += [f"{calls} dense ({reason})" for reason, calls in self.dense.items()]
        if self.unseen:
            parts.append(f"{self.unseen} compiled, dense or not")
        return ", ".join(parts)
