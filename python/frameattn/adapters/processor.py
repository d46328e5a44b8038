"""The base of all processors that a swap puts into a model: when VMonarch runs, and what runs else."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from frameattn.adapters.attention import Streams, joint_attention, video_attention
from frameattn.adapters.call import GRID_UNKNOWN, ForeignModule, Grid, Layout, in_backward, running, shape
from frameattn.adapters.state import State


class VMonarchProcessor:
    """Takes the place of the processor of one attention module; a subclass knows one family of models.

    A subclass says, of the models it is for:

        models       their names, "package.ClassName", or the classes themselves
        modules      a regular expression that matches the names of their video self-attention modules, whole
        processors   class names of the processors whose attention it computes; a module that has another one is left
        notes        one line for supported()
        grid         where a call has its token grid; layout, where other tokens are in the same sequence
        rises        True where timesteps rise from step to step
        refusal      why a certain model cannot be swapped, if so, and module_refusal why one of its modules cannot
        parallel_plan   how diffusers' context parallelism cuts a model for which diffusers itself does not say it
        __call__     how query, key and value are formed, and the output

    ``__call__`` must have parameters of the names that the original has, for attention modules drop what they do not
    find in its signature. It asks ``swaps`` first and leaves the call to ``self.original`` where that says no. It calls
    ``attn.to_q`` and the like as modules, every time: adapters, quantisation and offload replace them after the swap.
    """

    models: ClassVar[tuple[str | type, ...]] = ()
    modules: ClassVar[str] = ""
    processors: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""
    rises: ClassVar[bool] = False
    joint: ClassVar[bool] = False  # attends to a text that comes to it apart

    def __init__(self, original: Any, state: State, stays_dense: bool = False):
        self.original = original
        self.state = state
        self.stays_dense = stays_dense  # one of the first layers, of which a plan of our own needs a processor, too
        self._own_parallel_config = None

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None:
        """The token grid (T, H, W) of a call of the model, whose arguments come by name; None if it does not say."""
        raise NotImplementedError

    @classmethod
    def layout(cls, model: ForeignModule, arguments: Mapping[str, Any], given: Grid | None) -> Layout | str:
        """Where the video is among the tokens of a call, or why its attention must be dense. given: the user's grid."""
        grid = cls.agreed_grid(model, arguments, given)
        return grid if isinstance(grid, str) else Layout(grid)

    @classmethod
    def agreed_grid(cls, model: ForeignModule, arguments: Mapping[str, Any], given: Grid | None) -> Grid | str:
        """The user's grid or that of the call, or why neither: none is known, or they differ in their tokens."""
        said = cls.grid(model, arguments)
        grid = given or said
        if grid is None:
            return GRID_UNKNOWN
        if said is not None and math.prod(said) != math.prod(grid):
            return f"the grid does not hold the tokens (grid {shape(grid)}, {math.prod(said)} video tokens)"
        return grid

    @staticmethod
    def refusal(model: ForeignModule) -> str | None:
        """Why this model must stay dense, although its class can be swapped; None if it need not."""
        return None

    @staticmethod
    def module_refusal(model: ForeignModule, name: str) -> str | None:
        """Why the module ``name`` must stay dense, although others of this model need not; None if it need not."""
        return None

    @staticmethod
    def parallel_plan(model: ForeignModule) -> dict[str, Any] | None:
        """A ``_cp_plan`` of diffusers that leaves text whole, for a model that has none; None: there is none either."""
        return None

    @staticmethod
    def block(model: ForeignModule, name: str, index: int) -> int:
        """The block, in the order in which they run, of the module ``name``, the ``index``-th that matches."""
        return index

    def __call__(self, attn: ForeignModule, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    # ---- What subclasses call ----------------------------------------------------------------------------------------

    def swaps(self, tokens: int, **absent: Any) -> bool:
        """Whether this call runs VMonarch. If it should but cannot, warns, once for each reason.

        Args:
            tokens: N, how many tokens come to the processor, without those of a text that comes apart.
            absent: arguments that must be None, such as a mask over video tokens, by their names.
        """
        call = running.call
        if self.stays_dense:
            return False
        if call is None:
            if self.state.active:
                self._outside(tokens)
            return False
        if call.sizes is None or not (self.state.active or (self.state.serving and running.kept)):
            return False
        reason, ulysses = None, self.state.ulysses
        total = self._tokens()
        given = [name for name, argument in absent.items() if argument is not None]
        if given:
            reason = f"{' and '.join(given)} given"
        elif total != (tokens if ulysses is None else ulysses.total(tokens, total)):
            reason = "the grid does not hold the tokens"
        compiling = torch.compiler.is_compiling()
        if reason is not None:  # without numbers in compiled code: they would hold for one grid
            where = "" if compiling else f" (grid {call.layout}, {tokens} video tokens)"
            self.state.warnings.warn(f"dense attention: {reason}{where}")
        if compiling:
            self.state.note_compiled(reason)
        if call.marked or not compiling:
            if reason is None:
                call.swapped = True
            else:
                call.dense = reason
        return reason is None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, N, H, D] each -> [B, N, H * D]. Tokens ahead of the video and behind it are as text in
        ``attend_jointly``."""
        frames, per_frame, ahead, behind = self._sizes()

        def attention(tokens: Streams, _: Any) -> Tensor:
            if not (ahead or behind):
                return video_attention(tokens, frames, **self._options)
            stop = ahead + frames * per_frame
            video = _map(tokens, lambda x: x[:, :, ahead:stop])
            others = _map(tokens, lambda x: torch.cat([x[:, :, :ahead], x[:, :, stop:]], dim=2))
            for_video, for_others = joint_attention(video, others, frames, **self._options)
            return torch.cat([for_others[:, :, :ahead], for_video, for_others[:, :, ahead:]], dim=2)

        return self._over_heads(attention, (query, key, value), (), self._tokens())

    def attend_jointly(self, video: Streams, text: Streams, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Query, key, value of the video, [B, N, H, D] each, and of the text, [B, L, H, D] -> [B, N, H * D] and
        [B, L, H * D]. text_mask [B, L] bool: the text tokens that are keys."""
        frames = self._sizes()[0]

        def attention(video: Streams, text: Streams) -> tuple[Tensor, Tensor]:
            return joint_attention(video, text, frames, text_mask, **self._options)

        return self._over_heads(attention, video, text, self._tokens())

    # ---- What these need ---------------------------------------------------------------------------------------------

    @property
    def _options(self) -> dict[str, Any]:
        return dict(iterations=self.state.iterations, mass_floor=self.state.mass_floor)

    def _sizes(self) -> tuple[int, ...]:
        """T, H * W, tokens ahead, tokens behind."""
        assert running.call is not None and running.call.sizes is not None  # swaps() has seen it
        return running.call.sizes.shape[:4]

    def _over_heads(
        self, attention: Callable[[Any, Any], Any], video: Streams, text: Streams | tuple[()], total: int | None
    ) -> Any:
        """attention(video, text) of streams [B, H, N, D] and [B, H, L, D], for [B, N, H, D] and [B, L, H, D]; what it
        returns, one or both, comes back as [B, N, H * D]. Under context parallelism every process has some tokens of
        the video, of a total that may not be known, and all of the text."""
        video, text = _map(video, _swap), _map(text, _swap)
        ulysses = self.state.ulysses
        result = attention(video, text) if ulysses is None else ulysses.attend(attention, video, text, total)
        return _merge_heads(result) if isinstance(result, Tensor) else _map(result, _merge_heads)

    def _tokens(self) -> int:
        """Of the whole sequence."""
        frames, per_frame, ahead, behind = self._sizes()
        return ahead + frames * per_frame + behind

    @torch.compiler.disable
    def _outside(self, tokens: int) -> None:
        """This attention runs, but not in a call of its model."""
        if in_backward():
            raise RuntimeError(
                "frameattn.adapters: backward runs a block again, and not by a checkpoint function that is known here, "
                "so that its token grid is lost. Use enable_gradient_checkpointing() or torch's checkpoint_wrapper, or "
                "keep the function as _gradient_checkpointing_func of the model"
            )
        self.state.warnings.warn(f"dense attention: called outside of a call of the model ({tokens} tokens)")

    # ---- What diffusers writes on the processor that it finds goes to the original -----------------------------------

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        if hasattr(self.original, "_attention_backend"):
            self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", self._own_parallel_config)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self._own_parallel_config = config
        if hasattr(self.original, "_parallel_config"):
            self.original._parallel_config = config


def _swap(x: Tensor) -> Tensor:
    """[B, N, H, D] -> [B, H, N, D]"""
    return x.transpose(1, 2)


def _map(tensors: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> Any:
    return tuple(function(x) for x in tensors)


def _merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, H * D]"""
    return x.transpose(1, 2).flatten(2)
