"""The base of processors for one attention over video and text."""

from typing import Any

from torch import Tensor

from frameattn.adapters.attention import Streams
from frameattn.adapters.call import ForeignModule
from frameattn.adapters.processor import VMonarchProcessor
from frameattn.adapters.projections import (
    project_heads,
    project_heads_added,
    project_out,
    project_out_added,
    rotate,
)


class JointProcessor(VMonarchProcessor):
    """Text is projected by ``add_*_proj`` where a module has them (two-stream blocks) and as the video else
    (single-stream blocks); only the video has a rotary embedding. A subclass says what is different in its family.

    That text comes ahead of the video or behind it does not matter here: modules get the two apart.
    """

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.size(1)
        text_mask, other_mask = self.text_mask(attention_mask, tokens)
        if not self.swaps(tokens, attention_mask=other_mask):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        (query, key, value), text = self.project(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query, key = self.rotate(query, key, image_rotary_emb)
        outputs = self.attend_jointly((query, key, value), text, text_mask)
        return self.project_out(attn, *outputs)

    @staticmethod
    def text_mask(attention_mask: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """[B, L] bool: the text tokens that are keys, or None for all; and a mask that only dense attention applies."""
        return None, attention_mask

    def project(self, attn: ForeignModule, video: Tensor, text: Tensor) -> tuple[Streams, Streams]:
        """Query, key and value of both, [B, N, H, D]."""
        two_streams = attn.add_q_proj is not None
        return project_heads(attn, video), (project_heads_added if two_streams else project_heads)(attn, text)

    @staticmethod
    def rotate(query: Tensor, key: Tensor, rotary_emb: Any) -> tuple[Tensor, Tensor]:
        return rotate(query, key, rotary_emb)

    def project_out(self, attn: ForeignModule, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return project_out(attn, video), project_out_added(attn, text)
