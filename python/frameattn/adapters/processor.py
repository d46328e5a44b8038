"""The base of all processors that a swap puts into a model: when VMonarch runs, and what runs else."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from frameattn.adapters.attention import Streams, joint_attention, video_attention
from frameattn.adapters.state import ForeignModule, Grid, State


class VMonarchProcessor:
    """Takes the place of the processor of one attention module; a subclass knows one family of models.

    A subclass says, of the models it is for:

        models       their names, "package.ClassName", or the classes themselves
        modules      a regular expression that matches the names of their video self-attention modules, whole
        processors   class names of the processors whose attention it computes; a module that has another one is left
        notes        one line for supported()
        grid         where a call has its token grid
        refusal      why a certain model cannot be swapped, if so, and module_refusal why one of its modules cannot
        __call__     how query, key and value are formed, and the output

    ``__call__`` must have parameters of the names that the original has, for attention modules drop what they do not
    find in its signature. It asks ``swaps`` first and leaves the call to ``self.original`` where that says no. It calls
    ``attn.to_q`` and the like as modules, every time: adapters, quantisation and offload replace them after the swap.
    """

    models: ClassVar[tuple[str | type, ...]] = ()
    modules: ClassVar[str] = ""
    processors: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""

    def __init__(self, original: Any, state: State):
        self.original = original
        self.state = state
        self._own_parallel_config = None

    @staticmethod
    def grid(model: ForeignModule, arguments: Mapping[str, Any]) -> Grid | None:
        """The token grid (T, H, W) of a call of the model, whose arguments come by name; None if it does not say."""
        raise NotImplementedError

    @staticmethod
    def refusal(model: ForeignModule) -> str | None:
        """Why this model must stay dense, although its class can be swapped; None if it need not."""
        return None

    @staticmethod
    def module_refusal(model: ForeignModule, name: str) -> str | None:
        """Why the module ``name`` must stay dense, although others of this model need not; None if it need not."""
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
            tokens: N, how many video tokens the call has.
            absent: arguments that must be None, such as a mask over video tokens, by their names.
        """
        state = self.state
        if not state.active or state.dense_now:
            return False
        given = [name for name, argument in absent.items() if argument is not None]
        if self._parallel_config is not None:
            reason = "context parallelism gives each process a part of the tokens"
        elif given:
            reason = f"{' and '.join(given)} given"
        elif state.grid is None:
            reason = "this call does not say its token grid; apply(grid=(T, H, W)) can"
        elif state.grid[0] * state.grid[1] * state.grid[2] != tokens:
            reason = "the grid does not hold the tokens"
        else:
            return True
        grid = "unknown" if state.grid is None else " x ".join(str(int(size)) for size in state.grid)
        state.warnings.warn(f"dense attention: {reason} (grid {grid}, {int(tokens)} video tokens)")
        return False

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, N, H, D] each -> [B, N, H * D]."""
        state = self.state
        assert state.grid is not None  # swaps() has seen it
        video = _heads_first((query, key, value))
        return _merge_heads(
            video_attention(video, state.grid[0], iterations=state.iterations, mass_floor=state.mass_floor)
        )

    def attend_jointly(self, video: Streams, text: Streams, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Query, key, value of the video, [B, N, H, D] each, and of the text, [B, L, H, D] -> [B, N, H * D] and
        [B, L, H * D]. text_mask [B, L] bool: the text tokens that are keys."""
        state = self.state
        assert state.grid is not None
        video, text = _heads_first(video), _heads_first(text)
        outputs = joint_attention(
            video, text, state.grid[0], text_mask, iterations=state.iterations, mass_floor=state.mass_floor
        )
        return _merge_heads(outputs[0]), _merge_heads(outputs[1])

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


def _heads_first(streams: Streams) -> Streams:
    """[B, N, H, D] each -> [B, H, N, D]"""
    query, key, value = (x.transpose(1, 2) for x in streams)
    return query, key, value


def _merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, H * D]"""
    return x.transpose(1, 2).flatten(2)
