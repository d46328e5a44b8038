"""VMonarch attention by several processes, on torch.distributed.

    torch.distributed.init_process_group()
    counts = frameattn.parallel.share(frames, torch.distributed.get_world_size())
    out = frameattn.parallel.vmonarch_attention(query, key, value, frames, frames_per_rank=counts)  # own frames

or, of any attention that knows no heads but one,

    out = frameattn.parallel.ulysses(query, key, value, lambda *heads: frameattn.vmonarch_attention(*heads, frames))

docs/several_gpus.md says which to take. Models of diffusers that are swapped (``frameattn.adapters``) do the second by
themselves.
"""

from frameattn.parallel.exchange import share
from frameattn.parallel.ulysses import ulysses
from frameattn.parallel.vmonarch_attention import vmonarch_attention

__all__ = ["share", "ulysses", "vmonarch_attention"]
