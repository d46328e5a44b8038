"""Swapped models under the context parallelism of diffusers, where every process has a part of the tokens.

``model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=n))`` puts hooks on modules, which cut sequences
into parts and put them together again by the model's plan (``_cp_plan``), and writes its configuration on every
processor. What is between the hooks is local to tokens but for attention. For that ``ulysses`` gives every process all
tokens of some heads, and to VMonarch heads are all alike: nothing is approximated.

Models for which diffusers has no plan get the one of their adapter while they are swapped. There video tokens are cut
and text is whole on every process, and since diffusers' own attention knows nothing of that, the adapter's processors
attend densely, too.

All of this is experimental in diffusers: names that it keeps to itself are used here and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from frameattn.adapters.attention import Streams
from frameattn.adapters.call import ForeignModule


class Ulysses(NamedTuple):
    """Who attends together. uneven: tokens need not divide (``ulysses_anything``)."""

    group: Any  # a torch.distributed.ProcessGroup
    uneven: bool

    def share(self, total: int) -> list[int]:
        """How diffusers cuts so many tokens."""
        from frameattn.parallel import share  # here and below: a torch without torch.distributed does without

        return share(total, self.group.size())

    def total(self, own: int, expected: int) -> int:
        """How many tokens all have, by what one has; the same answer on all. Where parts differ, what is expected."""
        return expected if self.uneven else own * self.group.size()

    def attend(
        self, attention: Callable[[Any, Any], Any], video: Streams, text: Sequence[Tensor], total: int | None
    ) -> Any:
        """attention(video, text) of all tokens, of which ``video`` [B, H, N, D] has the own ones; text is whole.
        total: the tokens of all processes, if that is known."""
        from frameattn.parallel import ulysses

        own = video[0].size(2)
        tokens = self.share(total) if total is not None else None if self.uneven else [own] * self.group.size()

        def of_heads(*streams: Tensor) -> Any:
            return attention(streams[:3], streams[3:])

        return ulysses(*video, of_heads, replicated=text, group=self.group, tokens_per_rank=tokens)


def look_at(model: ForeignModule, config: Any, joint: bool) -> Ulysses | str | None:
    """By the configuration that a model's processors have: who attends together, None if every process for itself, or
    why nobody can give each process all tokens. joint: text comes to the processors apart."""
    config = getattr(config, "context_parallel_config", None)
    splits = list(_hooks(model, "ContextParallelSplitHook"))
    if config is None or not splits:  # diffusers writes it ahead of finding out that it has no plan
        return None
    if config.ring_degree > 1:
        return "ring attention gives no process all tokens; ulysses_degree alone does"
    if joint and any("encoder_hidden_states" in hook.metadata for hook in splits):
        return "the plan gives each process a part of the text"
    ulysses = Ulysses(config._ulysses_mesh.get_group(), bool(getattr(config, "ulysses_anything", False)))
    if ulysses.uneven:
        for hook in _hooks(model, "ContextParallelGatherHook"):
            hook.fn_ref.post_forward = GatherTokens(hook)
    return ulysses


# ---- What diffusers leaves to do -------------------------------------------------------------------------------------


class GatherTokens:
    """In the place of what diffusers does behind the last layer where tokens do not divide, which fails on gloo."""

    def __init__(self, hook: Any):
        self.dims = [None if one is None else one.gather_dim for one in hook.metadata]
        self.group = hook.parallel_config._flattened_mesh.get_group()

    def __call__(self, module: nn.Module, output: Any) -> Any:
        parts = [output] if isinstance(output, Tensor) else list(output)
        whole = [
            part if dim is None else _Gather.apply(part, dim, self.group)
            for part, dim in zip(parts, self.dims, strict=True)
        ]
        return whole[0] if isinstance(output, Tensor) else tuple(whole)


class _Gather(torch.autograd.Function):
    """The parts of all processes, one behind the other. As in diffusers every process has the same loss then, of which
    it computes the part of the gradient that goes through its own tokens."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: Any) -> Tensor:
        from frameattn.parallel.agreement import agree
        from frameattn.parallel.exchange import gather

        sizes = agree("frameattn.adapters", part.size(dim), {}, None, part.device, group)
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[: group.rank()]), part.size(dim)
        return gather(part, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.narrow(ctx.dim, ctx.start, ctx.size), None, None


def _hooks(model: ForeignModule, kind: str) -> Iterator[Any]:
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            yield from (hook for hook in registry.hooks.values() if type(hook).__name__ == kind)


# ---- Plans for models that have none in diffusers --------------------------------------------------------------------


def cut(dim: int, dims: int, of_output: bool = False) -> Any:
    """An entry of a plan: a tensor of so many dimensions that is cut along one of them."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=of_output)


def gathered(dim: int, dims: int) -> Any:
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return ContextParallelOutput(gather_dim=dim, expected_dims=dims)
