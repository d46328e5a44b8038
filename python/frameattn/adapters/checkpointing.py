"""Activation checkpointing: blocks that backward runs again run within the call that they first ran in."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from frameattn.adapters.call import Call, running

# Where a module keeps its checkpoint function: models of diffusers, torch's checkpoint_wrapper (FSDP, accelerate).
ATTRIBUTES = ("_gradient_checkpointing_func", "checkpoint_fn")


class WithinCall:
    """A function that runs within a certain call, in whatever thread and whenever it runs."""

    def __init__(self, function: Callable[..., Any], call: Call):
        self.function, self.call = function, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outer = running.call, running.kept
        running.call, running.kept = self.call, True
        try:
            return self.function(*args, **kwargs)
        finally:
            running.call, running.kept = outer


class CarriesCall:
    """A checkpoint function whose functions run within the call that they are checkpointed in, reentrant or not.

    In compiled code it does nothing: there forward and backward are one graph, which has the sizes as its inputs.
    """

    def __init__(self, checkpoint: Callable[..., Any], hold: Callable[[WithinCall], None]):
        self.checkpoint, self.hold = checkpoint, hold

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and running.call is not None:
            function = WithinCall(function, running.call)
            self.hold(function)
        return self.checkpoint(function, *args, **kwargs)


def carry_calls(model: nn.Module, hold: Callable[[WithinCall], None]) -> None:
    """Puts CarriesCall around the checkpoint functions of a model, once. ``hold`` gets what they may run again, which
    lives as long as that is so."""
    for module, name, function in _functions(model):
        if not isinstance(function, CarriesCall):
            setattr(module, name, CarriesCall(function, hold))


def release_calls(model: nn.Module) -> None:
    """Gives the model's modules their own checkpoint functions back."""
    for module, name, function in _functions(model):
        if isinstance(function, CarriesCall):
            setattr(module, name, function.checkpoint)


def _functions(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in list(model.modules()):
        for name in ATTRIBUTES:
            function = vars(module).get(name)
            if callable(function):
                yield module, name, function
