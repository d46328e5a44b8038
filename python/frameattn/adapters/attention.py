"""The attention that a swap puts in: over a video alone, and over a video with text beside it. Tensors only.

Shapes as in F.scaled_dot_product_attention: [B, H, N, D], N = T * S video tokens in the order frame, height, width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from frameattn.functional import vmonarch_attention

Streams = tuple[Tensor, Tensor, Tensor]  # query, key, value of the same tokens


def video_attention(
    video: Streams, frames: int, *, iterations: int, mass_floor: float, scale: float | None = None
) -> Tensor:
    """VMonarch attention of a video with itself. [B, H, N, D] each -> [B, H, N, D]."""
    return vmonarch_attention(*video, frames, iterations=iterations, mass_floor=mass_floor, scale=scale)


def joint_attention(
    video: Streams,
    text: Streams,
    frames: int,
    text_mask: Tensor | None = None,
    *,
    iterations: int,
    mass_floor: float,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Attention of a video and a text with both.

    Text rows and the rows of frame 0 attend densely to all tokens. Every other video row joins what VMonarch finds in
    the video (o_M, log-sum-exp l_M) with dense attention to the text (o_T, l_T), by the weights that one softmax over
    both would give them:

    $$ o = w\, o_M + (1 - w)\, o_T, \qquad w = \mathrm{sigmoid}(l_M - l_T) $$

    l_M is a lower bound of the dense log-sum-exp, so text gains some weight: 1.1 to 1.5 times its dense mass on smooth
    data.

    Args:
        video: three of [B, H, N, D].
        text: three of [B, H, L, D]; the order of the two in the model's sequence does not matter here.
        text_mask: [B, L] bool, True where a text token is a key. Without any the video attends to itself alone.

    Returns: video [B, H, N, D], text [B, H, L, D]. Rows of text tokens that are not keys are attention like any other.
    """
    text_query, text_key, text_value = text
    for_video = vmonarch_attention(
        *video,
        frames,
        iterations=iterations,
        mass_floor=mass_floor,
        scale=scale,
        extra_key=text_key,
        extra_value=text_value,
        extra_mask=text_mask,
    )
    return for_video, _to_all(text_query, video, text, text_mask, scale)


def dense_attention(video: Streams, text: Streams, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As joint_attention, of video rows dense, too."""
    queries = torch.cat([video[0], text[0]], dim=2)
    out = _to_all(queries, video, text, text_mask, None)
    return out[:, :, : video[0].size(2)], out[:, :, video[0].size(2) :]


def _to_all(query: Tensor, video: Streams, text: Streams, text_mask: Tensor | None, scale: float | None) -> Tensor:
    """Dense attention to the tokens of both."""
    key, value = (torch.cat([video[i], text[i]], dim=2) for i in (1, 2))
    mask = None if text_mask is None else F.pad(text_mask, (video[1].size(2), 0), value=True)[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
