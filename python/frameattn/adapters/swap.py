"""apply() puts VMonarch into a model or a pipeline, and the Handle that it returns says what it did and undoes it."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from frameattn.adapters.call import Grid, shape
from frameattn.adapters.clock import Clock
from frameattn.adapters.counts import Counts
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.profile import Profiler
from frameattn.adapters.registry import adapter_of
from frameattn.adapters.state import State
from frameattn.adapters.wrappers import plain_name, unwrapped

PIPELINE_PARTS = ("transformer", "transformer_2", "transformer_ref")


class Handle:
    """What apply() did to one model, or to the transformers of a pipeline. A context manager that removes the swap.

    Attributes:
        swapped: names of the modules that can run VMonarch, without those whose processor something replaced.
        declined: {name: reason} of the other video self-attention modules, and of parts of a pipeline as a whole.
    """

    def __init__(self, states: dict[str, State], declined: dict[str, str]):
        self._states = states  # by the part of the pipeline, "" for a model
        self._declined = declined

    @classmethod
    def of(cls, model: nn.Module) -> "Handle":
        """The handle of a model, or what wraps it, that is swapped already: of a copy, or loaded from a pickle.

        Raises:
            ValueError: it is not swapped.
        """
        state = _state_of(unwrapped(model))
        if state is None:
            raise ValueError(f"{type(model).__name__} is not swapped")
        return cls({"": state}, {})

    @property
    def swapped(self) -> list[str]:
        return [_join(part, name) for part, state in self._states.items() for name, _, _ in state.present()]

    @property
    def declined(self) -> dict[str, str]:
        of_modules = {
            _join(part, name): reason for part, state in self._states.items() for name, reason in state.declined.items()
        }
        return {**self._declined, **of_modules}

    @property
    def counts(self) -> Counts:
        """Calls of the models since apply() or reset(), together."""
        total = Counts()
        for state in self._states.values():
            total += state.counts
        return total

    def reset(self) -> None:
        """Counts from here."""
        for state in self._states.values():
            state.counts = Counts()

    def new_video(self) -> None:
        """Says that the next call in this thread is the first one of a video. ``dense_steps`` finds that out where
        timesteps turn back, the latent has another shape, or fresh noise comes at the timestep of the last call; not
        where a video begins below the timesteps of one before it that was given up.
        """
        for state in self._states.values():
            state.clock.new_video()

    def profile(self) -> Profiler:
        """Times the models and their video attention.

        ```python
        with handle.profile() as profile:
            pipe("A cat walks on the grass", num_inference_steps=3)
        print(profile)  # attention, swapped: 31% of 4021 ms in 6 calls
        ```
        """
        return Profiler((state.model, [module for _, module, _ in state.swapped]) for state in self._states.values())

    def report(self) -> str:
        """What was swapped, what was not and why, what the calls so far ran, and what was warned of."""
        lines = []
        for part, state in self._states.items():
            present = len(state.present())
            grid = state.layout or (shape(state.given_grid) if state.given_grid else "that of each call")
            lines += [
                f"{_join(part, state.model_name)}: {present} of {len(state.swapped) + len(state.declined)} video "
                f"self-attention modules swapped (iterations={state.iterations}, mass_floor={state.mass_floor})",
                f"  token grid: {grid}",
                f"  calls of the model: {_calls(state)}",
            ]
            if state.ulysses is not None:
                lines.append(f"  attends together with the other processes of {state.ulysses.group.size()} (Ulysses)")
            if not state.active:
                lines.append("  removed")
            if state.dense_steps:
                lines.append(f"  dense in the first {state.dense_steps} steps of a video")
            reasons: dict[str, list[str]] = {}
            for name, reason in state.declined.items():
                reasons.setdefault(reason, []).append(name)
            lines += [f"  dense, {reason}: {', '.join(names)}" for reason, names in reasons.items()]
            lines += [f"  warned: {message}" for message in state.warnings.messages]
        lines += [f"{name}: dense, {reason}" for name, reason in self._declined.items()]
        return "\n".join(lines)

    def remove(self) -> None:
        """Gives every module its processor back, the very object, unless something else put another one there.

        Blocks that ran swapped under gradient checkpointing and that backward has yet to run again keep what they need
        until it has; every new call is dense, bit for bit, from here on.
        """
        for state in self._states.values():
            state.remove()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Handle: {len(self.swapped)} swapped, {len(self.declined)} declined>"


def apply(
    model: Any,
    method: str = "vmonarch",
    *,
    iterations: int = 2,
    mass_floor: float = 0.1,
    dense_layers: int = 0,
    dense_steps: int = 0,
    grid: Grid | None = None,
) -> Handle:
    """Puts VMonarch attention in the place of a video model's self-attention over all tokens.

    Weights, their names and all other attention stay. A call that VMonarch cannot take (its grid does not match its
    tokens, a mask over video tokens, ring attention) runs what was there, with one warning for each reason.

    Args:
        model: a transformer of diffusers (see supported()) or of a class that was registered, as it is or as torch and
            peft wrap it, or a pipeline, whose ``transformer``, ``transformer_2`` and ``transformer_ref`` are swapped.
        method: "vmonarch".
        iterations, mass_floor: of ``frameattn.vmonarch_attention``.
        dense_layers: the first so many blocks stay dense.
        dense_steps: the first so many denoising steps of every video stay dense, whatever transformer runs them. Reads
            timestep, latent and text of every call, which costs a synchronisation with the device. See new_video().
        grid: tokens in time, height and width; by default they are read from every call of the model.

    Raises:
        ValueError: an argument does not fit, or nothing can be swapped; the message says why.
        RuntimeError: the model is swapped already, or backward still needs a swap that was removed.

    Examples:
        >>> import diffusers, frameattn, torch
        >>> sizes = dict(num_layers=3, num_attention_heads=2, attention_head_dim=12, text_dim=16, ffn_dim=32)
        >>> model = diffusers.WanTransformer3DModel(**sizes)  # or a pipeline
        >>> handle = frameattn.adapters.apply(model, dense_layers=1)
        >>> out = model(torch.randn(1, 16, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 16))
        >>> print(handle.report())
        WanTransformer3DModel: 2 of 3 video self-attention modules swapped (iterations=2, mass_floor=0.1)
          token grid: 4 x 4 x 4
          calls of the model: 1 with VMonarch
          dense, in the first 1 blocks: blocks.0.attn1
        >>> handle.remove()
    """
    if method != "vmonarch":
        raise ValueError(f'apply: method must be "vmonarch", got {method!r}')
    for name, value, least in (
        ("iterations", iterations, 1),
        ("mass_floor", mass_floor, 0),
        ("dense_layers", dense_layers, 0),
        ("dense_steps", dense_steps, 0),
    ):
        if not value >= least:
            raise ValueError(f"apply: {name} must be at least {least}, got {value}")
    if grid is not None:
        if not (len(grid) == 3 and all(isinstance(size, int) and size > 0 for size in grid)):
            raise ValueError(f"apply: grid must be three numbers (T, H, W) of tokens, got {grid}")
        t, h, w = grid
        grid = t, h, w  # a list of them would do

    plans: dict[str, Any] = {}
    declined, clock = {}, None
    for part, transformer in _transformers(model):
        if _state_of(transformer) is not None:
            raise RuntimeError(f"{_join(part, type(transformer).__name__)} is swapped already: remove() that first")
        adapter = adapter_of(transformer)
        if isinstance(adapter, str):
            declined[part] = adapter
            continue
        clock = clock or Clock(adapter.rises)  # a second transformer of a pipeline goes on where the first one stopped
        state = State(
            adapter,
            transformer,
            iterations=iterations,
            mass_floor=mass_floor,
            dense_steps=dense_steps,
            grid=grid,
            clock=clock,
        )
        if dense_steps and "timestep" not in state.forward:
            raise ValueError(f"apply: dense_steps needs a timestep, which {state.model_name}.forward does not have")
        processors = _plan(transformer, adapter, state, dense_layers)
        if processors:
            plans[part] = transformer, state, processors
        else:
            reasons = dict.fromkeys(state.declined.values()) or [f"no module is named as {adapter.modules!r} says"]
            declined[part] = f"{type(transformer).__name__}: {'; '.join(reasons)}"
    if not plans:
        raise ValueError(f"apply: nothing to swap. {'. '.join(declined.values())}")

    for transformer, state, processors in plans.values():
        state.install(transformer, processors)
    return Handle({part: state for part, (_, state, _) in plans.items()}, declined)


def _plan(
    model: nn.Module, adapter: type[VMonarchProcessor], state: State, dense_layers: int
) -> list[tuple[str, nn.Module, VMonarchProcessor]]:
    """The processors to put into a model; state.declined gets the reasons against the others."""
    processors = []
    matching = [
        (name, module) for name, module in model.named_modules() if re.fullmatch(adapter.modules, plain_name(name))
    ]
    for index, (name, attention) in enumerate(matching):
        original = getattr(attention, "processor", None)
        while isinstance(original, VMonarchProcessor):  # of a swap that was removed, which a model brought back
            if original.state.serving:
                raise RuntimeError(
                    f"{type(model).__name__}: backward has yet to run blocks again that the swap which was removed ran "
                    "under gradient checkpointing. Call backward() first, or drop the results of those calls"
                )
            original = original.original
        refusal = adapter.module_refusal(model, plain_name(name))
        stays_dense = adapter.block(model, plain_name(name), index) < dense_layers
        if type(original).__name__ not in adapter.processors:
            state.declined[name] = f"has a processor of another kind, {type(original).__name__}"
            state.foreign += 1
            continue
        if refusal is not None:
            state.declined[name] = refusal
            state.foreign += 1
            continue
        if stays_dense:
            state.declined[name] = f"in the first {dense_layers} blocks"
            if not adapter.joint:
                continue
        processors.append((name, attention, adapter(original, state, stays_dense)))
    return processors if any(not processor.stays_dense for _, _, processor in processors) else []


def _transformers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The models to swap, each with the name of the part of the pipeline that it is, or "" if there is none."""
    if isinstance(model, nn.Module):
        yield "", unwrapped(model)
        return
    modules = {part: getattr(model, part, None) for part in PIPELINE_PARTS}
    parts = [(part, unwrapped(module)) for part, module in modules.items() if isinstance(module, nn.Module)]
    if not parts:
        raise ValueError(f"apply: needs a model, or a pipeline with a transformer, got {type(model).__name__}")
    yield from parts


def _state_of(model: nn.Module) -> State | None:
    """The state of a swap in force, which the model's hook belongs to."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, State) and owner.active), None)


def _calls(state: State) -> str:
    if state.counts:
        return str(state.counts)
    if not state.compiled:
        return "none yet"
    reasons = [f"is dense ({reason})" for reason in sorted(filter(None, state.compiled))]
    runs = " or ".join((["runs VMonarch"] if None in state.compiled else []) + reasons)
    return f"not counted in the compiled function that they are a part of, which {runs}"


def _join(part: str, name: str) -> str:
    return f"{part}.{name}" if part else name
