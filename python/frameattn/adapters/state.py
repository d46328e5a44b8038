"""What the swapped processors of one model share, and the hooks ahead of every call of the model and behind it."""

import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch._dynamo.eval_frame import skip_code

from frameattn.adapters.call import Call, ForeignModule, Grid, Layout, in_backward, running
from frameattn.adapters.checkpointing import WithinCall, carry_calls, release_calls
from frameattn.adapters.clock import Clock, read
from frameattn.adapters.context_parallel import Ulysses, look_at
from frameattn.adapters.counts import Counts
from frameattn.adapters.forward import MISSING, Forward
from frameattn.adapters.warnings_once import Warnings


class Adapter(Protocol):
    """What a State needs of an adapter: where the video is among the tokens of a call of the model, or why nowhere; and
    how diffusers' context parallelism is to cut a model for which diffusers does not say it."""

    joint: bool

    def layout(self, model: ForeignModule, arguments: Mapping[str, Any], given: Grid | None) -> Layout | str: ...

    def parallel_plan(self, model: ForeignModule) -> dict[str, Any] | None: ...


class State:
    """Settings, references and counters, so that copy.deepcopy and pickle take it along with its model. What belongs to
    one call is in a Call (call.py).

    The hooks are bound methods of this object for the same reason: a closure could be neither copied nor pickled. They
    read arguments of the model, ahead of all that diffusers and accelerate put around ``forward``: there the latent is
    whole, and its shape says the grid.

    Attributes:
        active: from apply() to remove().
        serving: whether the processors run VMonarch in calls that ask for it. After remove() they still do, in what was
            checkpointed and nowhere else, until backward has run all blocks again that ran swapped.
        foreign: how many video attention modules keep a processor of others.
        plan: the adapter's, if that is what cuts the model under diffusers' context parallelism.
    """

    def __init__(
        self,
        adapter: Adapter,
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
        self.forward = Forward(model)
        self.iterations, self.mass_floor, self.dense_steps = iterations, mass_floor, dense_steps
        self.given_grid = grid
        self.clock = clock or Clock()

        self.active = self.serving = True
        self.installed: list[tuple[str, nn.Module, Any]] = []  # name, attention module, our processor in it
        self.declined: dict[str, str] = {}
        self.foreign = 0
        self.warnings = Warnings(type(model).__name__)
        self.layout: Layout | None = None  # of the last call, for the report
        self.counts = Counts()
        self.compiled: set[str | None] = set()  # why compiled code is dense, or None if it is not
        self.plan: dict[str, Any] | None = None
        self._looked_at: tuple[Any, Ulysses | str | None] = None, None  # a configuration, and what it says
        self._pending: weakref.WeakSet[WithinCall] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pending": None, "_looked_at": (None, None)}  # a group cannot be copied

    def __setstate__(self, values: dict[str, Any]) -> None:
        vars(self).update(values, _pending=weakref.WeakSet())

    # ---- Into the model and out of it --------------------------------------------------------------------------------

    def install(self, model: nn.Module, processors: list[tuple[str, nn.Module, Any]]) -> None:
        for _, attention, processor in processors:
            attention.processor = processor
        self.model, self.installed = model, processors
        plan = None
        if hasattr(model, "enable_parallelism") and not self.foreign:
            plan = self.adapter.parallel_plan(model)
        if plan is not None and getattr(model, "_cp_plan", None) in (
            None,
            plan,
        ):  # the last: of a swap that was removed
            self.plan = plan
            setattr(model, "_cp_plan", plan)  # noqa: B010 to mypy an attribute of a module is a tensor or a module
        self.hooks = (
            model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            model.register_forward_hook(self.after_model, always_call=True),
        )

    def remove(self) -> None:
        """Puts the originals back where our processors still are, at once or when no backward needs them any more.

        Where text is whole under context parallelism they stay, dense: the originals would attend within a part."""
        self.active = False
        for hook in self.hooks:
            hook.remove()
        release_calls(self.model)
        running.call = self._without_own(running.call)
        self._settle()

    @property
    def swapped(self) -> list[tuple[str, nn.Module, Any]]:
        """Of those installed, the processors that are there to run VMonarch."""
        return [one for one in self.installed if not one[2].stays_dense]

    def present(self) -> list[tuple[str, nn.Module, Any]]:
        """Of those swapped, the processors that nobody replaced."""
        return [one for one in self._in_place() if not one[2].stays_dense] if self.active else []

    def _in_place(self) -> list[tuple[str, nn.Module, Any]]:
        return [one for one in self.installed if one[1].processor is one[2]]

    def _hold(self, function: WithinCall) -> None:
        """Something that backward may run again."""
        self._pending.add(function)
        weakref.finalize(function, self._settle).atexit = False

    def _settle(self) -> None:
        if self.active or not self.serving or any(True for _ in self._pending):
            return
        self.serving = False
        if self.adapter.joint and isinstance(self.together, Ulysses):
            return
        for _, attention, processor in self._in_place():
            attention.processor = processor.original
        if self.plan is not None and vars(self.model).get("_cp_plan") is self.plan:
            del self.model._cp_plan

    # ---- Around every call -------------------------------------------------------------------------------------------

    def before_model(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Traced where the model is called by a function that is compiled. Where it is itself compiled, dynamo calls
        its hooks and compiles what it finds behind them: see skip_code at the end of this file."""
        if torch.compiler.is_compiling() and not self.dense_steps:
            layout = self._layout(model, self.forward.bind(args, kwargs))
            if isinstance(layout, str):
                self.warnings.warn(f"dense attention: {layout}")
                self.note_compiled(layout)
            running.call = Call(layout if isinstance(layout, Layout) else None, running.call, marked=False)
        else:
            self._enter(model, args, kwargs)

    def after_model(self, model: nn.Module, args: tuple, output: Any) -> None:
        call = running.call
        if call is None:  # arguments did not let it begin
            return
        if torch.compiler.is_compiling():
            running.call = call.outer
        elif call.owner is self:
            running.call = call.outer
            self._count(call, output)

    @torch.compiler.disable
    def _enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = self.forward.bind(args, kwargs)
        layout = self._layout(model, arguments)
        if isinstance(layout, str):
            self.warnings.warn(f"dense attention: {layout}")
        self.layout = layout if isinstance(layout, Layout) else None
        if torch.is_grad_enabled():
            carry_calls(model, self._hold)
        outer = self._without_own(running.call)
        call = Call(self.layout, outer, marked=not torch.is_grad_enabled(), owner=self)
        if isinstance(layout, str):
            call.dense = layout
        if self.dense_steps:
            if in_backward():
                raise RuntimeError(
                    f"frameattn.adapters: backward runs {self.model_name} again, and the step of that call is not "
                    "known any more. With dense_steps, checkpoint the blocks and not the model as a whole"
                )
            is_known = arguments["timestep"] is not MISSING
            if is_known and self.clock.at(read(arguments, self.clock.rises)) < self.dense_steps:
                call.sizes, call.dense = None, f"in the first {self.dense_steps} steps of a video"
        lost = len(self.swapped) - len(self.present())
        if lost:
            self.warnings.warn(
                f"{lost} of {len(self.swapped)} swapped attention processors were replaced since apply(), so their "
                "attention is dense again: remove() the swap and apply() it anew, after what replaced them"
            )
        running.call = call

    def _without_own(self, call: Call | None) -> Call | None:
        """The call around those of this model, which were interrupted: KeyboardInterrupt passes all hooks by."""
        while call is not None and call.owner is self:
            call = call.outer
        return call

    @torch.compiler.disable
    def _count(self, call: Call, output: Any) -> None:
        if output is not None and not in_backward():  # the call did not die, and is no repetition
            self.counts.add(call, self.compiled)

    def _layout(self, model: nn.Module, arguments: Mapping[str, Any]) -> Layout | str | None:
        """Where the video is among the tokens; why nowhere; or None if the call is about to fail, which says more."""
        for argument in arguments.values():
            if argument is MISSING:
                passes_on = self.forward.levels[0].passes_on
                return "the model's class passes on arguments that it does not name" if passes_on else None
        together = self.together
        self.check_together()
        if isinstance(together, str):
            return f"context parallelism: {together}"
        try:
            return self.adapter.layout(model, arguments, self.given_grid)
        except KeyError as unnamed:
            if self.given_grid is not None:  # its processors see whether it holds the tokens
                if isinstance(together, Ulysses) and together.uneven:
                    return "the model's call does not say how many tokens are cut into parts that may differ"
                return Layout(self.given_grid)
            return f"the model's class has no argument named {unnamed.args[0]}; apply(grid=(T, H, W)) says the grid"

    @property
    def together(self) -> Ulysses | str | None:
        """Who attends together under diffusers' context parallelism; why none can; None if every process for itself."""
        # diffusers writes it on the model and on all processors that it finds, which may be others by then.
        config = getattr(self.model, "_parallel_config", None) or self.installed[0][2]._parallel_config
        if config is not self._looked_at[0]:
            self._looked_at = config, look_at(self.model, config, self.adapter.joint)
        return self._looked_at[1]

    @property
    def ulysses(self) -> Ulysses | None:
        together = self.together
        return together if isinstance(together, Ulysses) else None

    def check_together(self) -> None:
        """
        Raises:
            RuntimeError: dense attention would be within what each process has, too, and nobody would see it.
        """
        together, problem = self.together, None
        if isinstance(together, str) and self.plan is not None:
            problem = f"{together}. diffusers has no plan for this model, and a processor"
        elif isinstance(together, Ulysses) and self.adapter.joint:
            others = self.foreign + len(self.installed) - len(self._in_place())
            if others:
                problem = (
                    f"{others} video attention modules are not swapped, or not any more; each of these has a processor"
                )
        if problem is not None:
            raise RuntimeError(
                f"frameattn.adapters: context parallelism of {self.model_name}: {problem} that attends within what "
                "each process has"
            )

    @torch.compiler.assume_constant_result
    def note_compiled(self, reason: str | None) -> None:
        """While a call or a processor is traced: whether it will run VMonarch (None), or why not."""
        self.compiled.add(reason)


# dynamo would compile hooks, each as a function of its own, in which nothing can be counted. Where they are a part of
# something larger that it compiles, it goes on tracing them.
for _hook in (State.before_model, State.after_model):
    skip_code(_hook.__code__)
