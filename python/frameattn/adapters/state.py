"""What the swapped processors of one model share, and the hook that fills it ahead of every call of the model."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frameattn.adapters.warnings_once import Warnings

Grid = tuple[int, int, int]  # tokens in time, height, width
ForeignModule = Any  # an nn.Module of another library, whose attributes are known by their names alone


class GridReader(Protocol):
    """What a State needs of an adapter: where a call of the model has its token grid."""

    def grid(self, model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None: ...


class Clock:
    """Numbers the denoising steps of a video by the timesteps that the model is called with.

    Guidance calls a model twice with one timestep, which is one step. Timesteps go one way, down in most models and up
    in Mochi: the first change says which, and a change the other way is a new video.
    """

    def __init__(self) -> None:
        self.timestep: float | None = None
        self.direction = 0.0
        self.step = 0

    def at(self, timestep: float) -> int:
        """The number of the step, from 0, that a call with this timestep belongs to."""
        if self.timestep is not None and timestep != self.timestep:
            change = math.copysign(1.0, timestep - self.timestep)
            self.direction = self.direction or change
            self.step = self.step + 1 if change == self.direction else 0
        self.timestep = timestep
        return self.step


class State:
    """Plain numbers and references, so that copy.deepcopy and pickle take it along with its model.

    The hook is a bound method of this object for the same reason: a closure could be neither copied nor pickled. It
    reads arguments of the model, ahead of all that diffusers and accelerate put around ``forward``: there the latent is
    whole, and its shape says the grid.

    Activation checkpointing runs a block again in backward without the model's hook. It then finds the grid of the
    last call, so run backward before a call with another grid; torch notices most breaches by itself.
    """

    def __init__(
        self,
        adapter: GridReader,
        model: nn.Module,
        *,
        iterations: int,
        mass_floor: float,
        dense_steps: int = 0,
        grid: Grid | None = None,
        clock: Clock | None = None,
    ):
        self.adapter = adapter
        self.model_name = type(model).__name__
        self.iterations, self.mass_floor, self.dense_steps = iterations, mass_floor, dense_steps
        self.given_grid = grid
        self.clock = clock or Clock()
        # By the class: an offloaded or cached model has a forward(*args, **kwargs) of a hook in its place.
        parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
        self.defaults = {parameter.name: parameter.default for parameter in parameters}

        self.grid: Grid | None = grid
        self.dense_now = False  # one of the first dense_steps
        self.active = True
        self.installed: list[tuple[str, nn.Module, Any]] = []  # name, attention module, our processor in it
        self.declined: dict[str, str] = {}
        self.warnings = Warnings(type(model).__name__)

    def install(self, model: nn.Module, processors: list[tuple[str, nn.Module, Any]]) -> None:
        for _, attention, processor in processors:
            attention.processor = processor
        self.installed = processors
        # Compilers trace before_model; reading a timestep they cannot.
        hook = self.before_model_eagerly if self.dense_steps else self.before_model
        self.hook = model.register_forward_pre_hook(hook, with_kwargs=True)

    def remove(self) -> None:
        """Puts the originals back where our processors still are."""
        for _, attention, processor in self.present():
            attention.processor = processor.original
        self.active = False
        self.hook.remove()

    def present(self) -> list[tuple[str, nn.Module, Any]]:
        """Of those installed, the processors that nobody replaced."""
        return [one for one in self.installed if self.active and one[1].processor is one[2]]

    def before_model(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = {**self.defaults, **dict(zip(self.defaults, args, strict=False)), **kwargs}
        if any(argument is inspect.Parameter.empty for argument in arguments.values()):
            return  # the call is about to fail, and says so better than we could
        self.grid = self.given_grid or self.adapter.grid(model, arguments)
        if self.dense_steps:
            self.dense_now = self.clock.at(_largest(arguments["timestep"])) < self.dense_steps
        lost = len(self.installed) - len(self.present())
        if lost:
            self.warnings.warn(
                f"{lost} of {len(self.installed)} swapped attention processors were replaced since apply(), so their "
                "attention is dense again: remove() the swap and apply() it anew, after what replaced them"
            )

    @torch.compiler.disable
    def before_model_eagerly(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.before_model(model, args, kwargs)


def _largest(timestep: Tensor | float) -> float:
    """Of a timestep for each token, that of the tokens that are not given: the largest. A tensor costs a host sync."""
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
