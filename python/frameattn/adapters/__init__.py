"""Swaps VMonarch attention into video transformers that people run.

    import frameattn

    handle = frameattn.adapters.apply(pipe.transformer)  # or a whole pipeline
    print(handle.report())                               # what was swapped, what ran, and why anything did not
    handle.remove()                                      # as before, bit for bit

``supported()`` lists the models. diffusers is needed where its models are (extra ``video``), and never imported here.

**A model of your own** whose attention modules have a processor, as those of diffusers do, needs a class that says
where they are, how they form query, key and value, and what the grid of their tokens is:

    from frameattn.adapters import VMonarchProcessor, latent_grid, project_heads, project_out, register, rotate

    @register
    class MyProcessor(VMonarchProcessor):
        models = (MyTransformer,)                # or "my_package.MyTransformer", which imports nothing
        modules = r"blocks\\.\\d+\\.attention"      # of the video's self-attention; the whole name must match
        processors = ("MyAttnProcessor",)        # whose attention this class computes

        @staticmethod
        def grid(model, arguments):              # the arguments of MyTransformer.forward, by name
            return latent_grid(arguments["latent"].shape[2:], model.config.patch_size)

        def __call__(self, attn, hidden_states, attention_mask=None, rotary_emb=None):
            if not self.swaps(hidden_states.size(1), attention_mask=attention_mask):
                return self.original(attn, hidden_states, attention_mask, rotary_emb)
            query, key, value = project_heads(attn, hidden_states)  # [B, N, H, D] each
            query, key = rotate(query, key, rotary_emb)  # if as most models of diffusers do
            return project_out(attn, self.attend(query, key, value))

Where the sequence has other tokens ahead of the video's or behind them, ``layout`` takes the place of ``grid`` and says
how many; ``attend`` does the rest. With text in the same attention, ``self.attend_jointly(video, text, text_mask)``
takes the place of ``attend``. Where video and text come to the processor apart, ``JointProcessor`` is the class to
start from: it has the ``__call__``. ``frameattn/adapters/diffusers/*.py`` are such classes. **Code that calls
F.scaled_dot_product_attention itself** takes ``attention_fn(grid)`` in its place.
"""

from importlib import import_module

from frameattn.adapters.attention import joint_attention, video_attention
from frameattn.adapters.call import Layout
from frameattn.adapters.counts import Counts
from frameattn.adapters.grid_attention import GridAttention, attention_fn
from frameattn.adapters.joint import JointProcessor
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import (
    key_mask,
    latent_grid,
    project,
    project_heads,
    project_heads_added,
    project_out,
    project_out_added,
    rotate,
    rotate_pairs,
    split_heads,
)
from frameattn.adapters.registry import Support, register, supported
from frameattn.adapters.swap import Handle, apply

# Each registers its adapters; none imports the library that it is for.
FAMILIES = (
    "diffusers.allegro",
    "diffusers.cogvideox",
    "diffusers.cosmos",
    "diffusers.easyanimate",
    "diffusers.hunyuan_video",
    "diffusers.kandinsky",
    "diffusers.ltx",
    "diffusers.ltx2",
    "diffusers.minimax_h3",
    "diffusers.mochi",
    "diffusers.motif",
    "diffusers.wan",
    "video_dit",
)
for _family in FAMILIES:
    import_module(f"frameattn.adapters.{_family}")

__all__ = [
    "Counts",
    "GridAttention",
    "Handle",
    "JointProcessor",
    "Layout",
    "Support",
    "VMonarchProcessor",
    "apply",
    "attention_fn",
    "joint_attention",
    "key_mask",
    "latent_grid",
    "project",
    "project_heads",
    "project_heads_added",
    "project_out",
    "project_out_added",
    "register",
    "rotate",
    "rotate_pairs",
    "split_heads",
    "supported",
    "video_attention",
]
