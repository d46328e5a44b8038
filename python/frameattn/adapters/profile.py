"""How much of a model's time its video attention takes, dense and swapped."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from frameattn.adapters.call import Call, in_backward, running


@dataclass
class Share:
    """Calls of one kind: how many, and seconds of the model and of its video self-attention modules."""

    calls: int = 0
    model: float = 0.0
    attention: float = 0.0

    def __str__(self) -> str:
        if not self.attention:
            return f"not seen in {self.calls} calls, as compiled code shows no modules"
        return f"{self.attention / self.model:.0%} of {1e3 * self.model:.4g} ms in {self.calls} calls"


@dataclass
class Profile:
    """What ``with handle.profile() as profile`` finds in the calls within it; complete behind the block.

    Attributes:
        dense, swapped: forward passes in which no module ran VMonarch, and those in which one did.

    Attention is what the modules do whose processors apply() replaced, their projections included.
    """

    dense: Share = field(default_factory=Share)
    swapped: Share = field(default_factory=Share)

    def __str__(self) -> str:
        kinds = (("dense", self.dense), ("swapped", self.swapped))
        return "\n".join(f"attention, {name}: {share}" for name, share in kinds if share.calls) or "no calls"


class Profiler:
    """Hooks on models and their attention modules while it is entered. Where CUDA is in use they record events, too,
    which are read at the end, so that nothing waits for the device before."""

    def __init__(self, models: Iterable[tuple[nn.Module, list[nn.Module]]]):
        self.models = list(models)
        self.profile = Profile()

    def __enter__(self) -> Profile:
        for model, _ in self.models:
            if any(module._compiled_call_impl is not None for module in model.modules()):
                raise RuntimeError("profile: compiled code shows no modules; profile before compiling")
        self.handles: list[Any] = []
        self.started: dict[tuple[Call, nn.Module], Any] = {}
        self.spans: dict[Call, list[tuple[bool, Any, Any]]] = {}  # of calls that are not over: of the model?, from, to
        self.ended: list[tuple[Call, list[tuple[bool, Any, Any]]]] = []
        for model, attention in self.models:
            for module in (model, *attention):
                # Ahead of the model is the swap's own hook, which begins a call. The one behind it ends the call.
                self.handles.append(module.register_forward_pre_hook(self._begin))
                self.handles.append(module.register_forward_hook(self._end, prepend=True))
        return self.profile

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()
        for call, spans in self.ended:
            share = self.profile.swapped if call.swapped else self.profile.dense
            share.calls += 1
            for of_model, start, stop in spans:
                if of_model:
                    share.model += _seconds(start, stop)
                else:
                    share.attention += _seconds(start, stop)

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: Any) -> None:
        call = running.call
        if call is None or in_backward():  # which may run blocks and models again
            return
        if call in self.spans or any(module is model for model, _ in self.models):
            self.spans.setdefault(call, [])
            self.started[call, module] = _now(module)

    @torch.compiler.disable
    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = running.call
        start = self.started.pop((call, module), None) if call is not None else None
        if call is None or start is None:
            return
        of_model = any(module is model for model, _ in self.models)
        self.spans[call].append((of_model, start, _now(module)))
        if of_model:
            self.ended.append((call, self.spans.pop(call)))


@dataclass
class _Time:
    """Here and, where CUDA is in use, there."""

    cpu: float
    event: Any = None
    device: torch.device | None = None


def _parameter(module: nn.Module) -> nn.Parameter | None:
    return next(module.parameters(), None)


def _now(module: nn.Module) -> _Time:
    """On the device of the module's parameters or, if they are on the CPU, from which offload may take them within the
    call, on the current one."""
    now = _Time(time.perf_counter())
    if torch.cuda.is_initialized():
        parameter = _parameter(module)
        if parameter is not None and parameter.device.type == "cuda":
            now.device = parameter.device
        else:
            now.device = torch.device("cuda", torch.cuda.current_device())
        now.event = torch.cuda.Event(enable_timing=True)
        now.event.record(torch.cuda.current_stream(now.device))
    return now


def _seconds(start: _Time, stop: _Time) -> float:
    if start.event is None or start.device != stop.device:
        return stop.cpu - start.cpu
    stop.event.synchronize()
    return start.event.elapsed_time(stop.event) / 1e3
