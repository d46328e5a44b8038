"""The base of processors for one attention over video and text."""

from typing import Any

from torch import Tensor

from frameattn.adapters.attention import Streams, dense_attention
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

    joint = True

    def __call__(
        self,
        attn: ForeignModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        text_mask, other_mask = self.text_mask(attention_mask, encoder_hidden_states.size(1))
        swaps = self.swaps(hidden_states.size(1), attention_mask=other_mask)
        if not swaps:
            self.state.check_together()
        if not (swaps or self.state.ulysses):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        (query, key, value), text = self.project(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query, key = self.rotate(query, key, image_rotary_emb)
        if swaps:
            outputs = self.attend_jointly((query, key, value), text, text_mask)
        else:  # the original would take the text of every process for another one
            outputs = self.attend_densely((query, key, value), text, text_mask, other_mask)
        return self.project_out(attn, *outputs)

    def attend_densely(
        self, video: Streams, text: Streams, text_mask: Tensor | None, other_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As ``attend_jointly``, under context parallelism.

        Raises:
            RuntimeError: other_mask is not None.
        """
        if other_mask is not None:
            raise RuntimeError(
                f"frameattn.adapters: a mask {list(other_mask.shape)} over more than text cannot be applied where "
                "every process has a part of the video (context parallelism)"
            )

        def attention(video: Streams, text: Streams) -> tuple[Tensor, Tensor]:
            return dense_attention(video, text, text_mask)

        return self._over_heads(attention, video, text, total=None)  # the grid may be one of other tokens

    @staticmethod
    def text_mask(attention_mask: Tensor | None, text_tokens: int) -> tuple[Tensor | None, Tensor | None]:
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
