"""DTensors [B, H, N, D] as what the operators here take: the part of this process, and how others share the rest."""

import math
from typing import NamedTuple

from torch import Size, Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement

BATCH, HEADS, TOKENS = range(3)


class Layout(NamedTuple):
    """How query, key and value are laid out, and results will be."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    sizes: Size  # of the whole query
    along_tokens: int  # the dimension of the mesh

    @property
    def group(self) -> ProcessGroup:
        return self.mesh.get_group(self.along_tokens)

    @property
    def tokens(self) -> list[int]:
        """Of each process of the group: the first ones have as many as one may, the last ones what is left."""
        ranks, total = self.mesh.size(self.along_tokens), self.sizes[TOKENS]
        most = -(-total // ranks)
        return [min(most, max(total - rank * most, 0)) for rank in range(ranks)]

    @staticmethod
    def local(x: Tensor) -> Tensor:
        """The part of this process; all of a plain tensor."""
        return x.to_local() if isinstance(x, DTensor) else x

    def whole(self, local: Tensor) -> DTensor:
        """[B, H, N] or [B, H, N, Dv] of which this process has a part like that of the query."""
        shape = self.sizes[:3] + local.shape[3:]
        stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
        return DTensor.from_local(local, self.mesh, self.placements, run_check=False, shape=shape, stride=stride)


def layout_of(op: str, query: Tensor, key: Tensor, value: Tensor, **extra: Tensor | None) -> Layout | None:
    """How DTensors are laid out; None if there are none.

    Raises:
        RuntimeError: not all are DTensors of one layout, or of one that no operator here can take.
    """
    tensors = {"query": query, "key": key, "value": value}
    if not any(isinstance(x, DTensor) for x in [*tensors.values(), *extra.values()]):
        return None
    if not isinstance(query, DTensor):
        raise RuntimeError(f"{op}: query must be a DTensor where others are")
    mesh, placements = query.device_mesh, query.placements
    for name, x in tensors.items():
        if not isinstance(x, DTensor) or x.device_mesh != mesh or x.placements != placements:
            theirs = x.placements if isinstance(x, DTensor) else "a plain tensor"
            raise RuntimeError(f"{op}: {name} must be a DTensor laid out as query, {placements}, got {theirs}")
    along_tokens = [dim for dim, placement in enumerate(placements) if placement == Shard(TOKENS)]
    others = [p for p in placements if p not in (Shard(BATCH), Shard(HEADS), Shard(TOKENS)) and not p.is_replicate()]
    if len(along_tokens) != 1 or others:
        raise RuntimeError(
            f"{op}: query must be sharded along its tokens, dimension {TOKENS}, by one dimension of the mesh, and "
            f"along others by batch or heads at most, got {placements}"
        )
    for name, other in extra.items():
        if isinstance(other, DTensor) and not (
            other.device_mesh == mesh and other.placements[along_tokens[0]].is_replicate()
        ):
            raise RuntimeError(
                f"{op}: {name} must be replicated along the dimension of the mesh that shares out tokens, got "
                f"{other.placements}"
            )
    return Layout(mesh, placements, query.shape, along_tokens[0])
