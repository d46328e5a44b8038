"""Which models can be swapped, and by what: adapters register here, declined.py lists who stays dense, and why."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from frameattn.adapters.declined import DECLINED
from frameattn.adapters.processor import VMonarchProcessor

_ADAPTERS: list[type[VMonarchProcessor]] = []


@dataclass(frozen=True)
class Support:
    """A model class ("package.ClassName"), whether apply() swaps its attention, and a note or the reason why not."""

    model: str
    verdict: Literal["swap", "decline"]
    notes: str


def supported() -> list[Support]:
    """Every model class that is known, those that can be swapped first."""
    swapped = [Support(_name(entry), "swap", adapter.notes) for adapter in _ADAPTERS for entry in adapter.models]
    names = {support.model for support in swapped}
    declined = [Support(name, "decline", why) for name, why in DECLINED.items() if name not in names]
    return sorted(swapped, key=lambda support: support.model) + sorted(declined, key=lambda support: support.model)


def register(adapter: type[VMonarchProcessor]) -> type[VMonarchProcessor]:
    """Makes apply() use this subclass of VMonarchProcessor for the models that it names. A class decorator.

    What is registered last is asked first, so that a model that is known already can have another adapter.

    Raises:
        TypeError: it is no such class, or does not say its models, modules and processors.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, VMonarchProcessor)):
        raise TypeError(f"register: needs a subclass of VMonarchProcessor, got {adapter!r}")
    for name in ("models", "modules", "processors"):
        if not getattr(adapter, name) or (name != "modules" and isinstance(getattr(adapter, name), str)):
            kind = "a regular expression" if name == "modules" else "a tuple of names"
            raise TypeError(f"register: {adapter.__name__}.{name} must be {kind}, got {getattr(adapter, name)!r}")
    if adapter not in _ADAPTERS:
        _ADAPTERS.insert(0, adapter)
    return adapter


def adapter_of(model: nn.Module) -> type[VMonarchProcessor] | str:
    """The adapter of a model, or why it has none."""
    for cls in type(model).__mro__:  # the nearest class decides
        for adapter in _ADAPTERS:
            if any(entry is cls or entry == _name(cls) for entry in adapter.models):
                return adapter.refusal(model) or adapter
        if _name(cls) in DECLINED:
            return f"{cls.__name__}: {DECLINED[_name(cls)]}"
    return (
        f"no adapter is registered for {type(model).__name__}: frameattn.adapters.supported() lists the models that "
        "have one, register() adds one"
    )


def _name(model: str | type) -> str:
    return model if isinstance(model, str) else f"{model.__module__.partition('.')[0]}.{model.__name__}"
