"""Adapters with the faults that adapters have: the comparison of test_models.py must see each."""

import pytest
import torch
from adapters.test_models import TOLERANCE, relative_error
from adapters.tiny_models import (
    ALLEGRO_CASE,
    COGVIDEOX15_CASE,
    COGVIDEOX_CASE,
    COSMOS_CASE,
    EASYANIMATE_CASE,
    HUNYUAN15_CASE,
    HUNYUAN_CASE,
    KANDINSKY_CASE,
    LTX2_CASE,
    LTX2_KEYFRAME_CASE,
    LTX_CONDITION_CASE,
    MINIMAX_H3_CASE,
    MOCHI_CASE,
    WAN_CASE,
    output,
    reference_attention,
)

from frameattn.adapters import apply, attention, joint, processor
from frameattn.adapters.diffusers import cosmos, kandinsky, minimax_h3
from frameattn.adapters.diffusers.allegro import AllegroProcessor
from frameattn.adapters.diffusers.cogvideox import CogVideoXProcessor
from frameattn.adapters.diffusers.hunyuan_video import HunyuanVideoProcessor
from frameattn.adapters.diffusers.ltx import LTXVideoProcessor
from frameattn.adapters.diffusers.ltx2 import LTX2Processor
from frameattn.adapters.diffusers.mochi import MochiProcessor
from frameattn.adapters.diffusers.wan import WanProcessor
from frameattn.adapters.projections import rotate_pairs


@torch.no_grad()
def error(case):
    model = case.build()
    with reference_attention(case):
        expected = output(model, case.call())
    apply(model)
    return relative_error(output(model, case.call()), expected)


def grid_reversed(monkeypatch):
    right = WanProcessor.grid
    monkeypatch.setattr(WanProcessor, "grid", staticmethod(lambda *arguments: right(*arguments)[::-1]))


def rotary_embedding_lost(monkeypatch):
    monkeypatch.setattr(WanProcessor, "rotate", staticmethod(lambda query, key, rotary_emb: (query, key)))


def rotary_embedding_not_in_the_signature(monkeypatch):
    right = HunyuanVideoProcessor.__call__

    def call(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return right(self, attn, hidden_states, encoder_hidden_states, attention_mask)

    monkeypatch.setattr(HunyuanVideoProcessor, "__call__", call)


def rotary_embedding_of_keys_alone(monkeypatch):
    right = WanProcessor.rotate
    wrong = staticmethod(lambda query, key, rotary_emb: (query, right(query, key, rotary_emb)[1]))
    monkeypatch.setattr(WanProcessor, "rotate", wrong)


def text_taken_from_the_other_end(monkeypatch):
    right = joint.JointProcessor.attend_jointly

    def attend_jointly(self, video, text, text_mask):
        tokens, length = video[0].size(1), text[0].size(1)
        if isinstance(self, CogVideoXProcessor):  # text is ahead
            both = [torch.cat(parts, dim=1) for parts in zip(text, video, strict=True)]
            outputs = right(self, [x[:, :tokens] for x in both], [x[:, tokens:] for x in both], text_mask)
            return torch.cat(outputs, dim=1).split([length, tokens], dim=1)[::-1]
        both = [torch.cat(parts, dim=1) for parts in zip(video, text, strict=True)]
        outputs = right(self, [x[:, length:] for x in both], [x[:, :length] for x in both], text_mask)
        return torch.cat(outputs[::-1], dim=1).split([tokens, length], dim=1)

    monkeypatch.setattr(joint.JointProcessor, "attend_jointly", attend_jointly)


def text_not_projected(monkeypatch):
    monkeypatch.setattr(CogVideoXProcessor, "project_out", joint.JointProcessor.project_out)


def text_rotated_too(monkeypatch):
    right = CogVideoXProcessor.attend_jointly

    def attend_jointly(self, video, text, text_mask):
        angles = torch.ones(2, text[0].size(1), 16)  # 1 radian, more or less
        query, key = joint.rotate(*text[:2], angles)
        return right(self, video, (query, key, text[2]), text_mask)

    monkeypatch.setattr(CogVideoXProcessor, "attend_jointly", attend_jointly)


def frames_of_a_patch_ignored(monkeypatch):
    right = CogVideoXProcessor.grid

    def grid(model, arguments):
        t, h, w = right(model, arguments)
        return 2 * t, h, w

    monkeypatch.setattr(CogVideoXProcessor, "grid", staticmethod(grid))


def channels_taken_for_frames(monkeypatch):
    def grid(model, arguments):
        _, _, t, h, w = arguments["hidden_states"].shape
        return t, h // 2, w // 2

    monkeypatch.setattr(CogVideoXProcessor, "grid", staticmethod(grid))


def text_projected_as_the_video(monkeypatch):
    monkeypatch.setattr(joint, "project_heads_added", joint.project_heads)


def mask_ignored(monkeypatch):
    right = processor.joint_attention
    monkeypatch.setattr(
        processor, "joint_attention", lambda video, text, frames, mask, **options: right(video, text, frames, **options)
    )


def mask_of_text_queries_ignored(monkeypatch):
    dense = attention.F.scaled_dot_product_attention
    namespace = type("F", (), dict(pad=attention.F.pad, scaled_dot_product_attention=None))
    namespace.scaled_dot_product_attention = lambda *streams, attn_mask, scale: dense(*streams, scale=scale)
    monkeypatch.setattr(attention, "F", namespace)


def norm_lost(monkeypatch):
    right = WanProcessor.__call__

    def call(self, attn, *arguments):
        attn.norm_q, norm = torch.nn.Identity(), attn.norm_q
        try:
            return right(self, attn, *arguments)
        finally:
            attn.norm_q = norm

    monkeypatch.setattr(WanProcessor, "__call__", call)


def frequencies_of_one_head(monkeypatch):
    right = MochiProcessor.rotate
    wrong = staticmethod(lambda query, key, rotary_emb: right(query, key, [x[:, :1] for x in rotary_emb]))
    monkeypatch.setattr(MochiProcessor, "rotate", wrong)


def angles_of_neighbours_not_halves(monkeypatch):
    monkeypatch.setattr(cosmos, "rotate", lambda query, key, angles, **options: joint.rotate(query, key, angles))


def angles_of_halves_not_neighbours(monkeypatch):
    halves = lambda query, key, angles: joint.rotate(query, key, angles, use_real_unbind_dim=-2)  # noqa: E731
    monkeypatch.setattr(joint.JointProcessor, "rotate", staticmethod(halves))


def rotary_embedding_not_rounded(monkeypatch):
    rotated = lambda x, matrices: (matrices * x.unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2).type_as(x)  # noqa: E731
    monkeypatch.setattr(kandinsky, "_rotated", rotated)


def temb_forgotten(monkeypatch):
    """Arguments by place, in the order that other models have."""
    right = AllegroProcessor.__call__

    def call(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        return right(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    monkeypatch.setattr(AllegroProcessor, "__call__", call)


def gate_lost(monkeypatch):
    right = LTX2Processor.__call__

    def call(self, attn, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(attn, "to_gate_logits", None)
            return right(self, attn, *arguments, **options)

    monkeypatch.setattr(LTX2Processor, "__call__", call)


def rotary_embedding_of_the_other_kind(monkeypatch):
    right = LTX2Processor.__call__
    transformer = pytest.importorskip("diffusers.models.transformers.transformer_ltx2")

    def interleaved(x, angles):
        cos, sin = (part.transpose(1, 2).flatten(2).repeat_interleave(2, dim=2) for part in angles)
        return transformer.apply_interleaved_rotary_emb(x, (cos, sin))

    def call(self, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(transformer, "apply_split_rotary_emb", interleaved)
            return right(self, *arguments, **options)

    monkeypatch.setattr(LTX2Processor, "__call__", call)


def others_ahead_taken_for_others_behind(monkeypatch):
    monkeypatch.setattr(LTXVideoProcessor, "video_first", not LTXVideoProcessor.video_first)
    monkeypatch.setattr(LTX2Processor, "video_first", not LTX2Processor.video_first)


def others_not_attended_to(monkeypatch):
    right = processor.joint_attention

    def apart(video, others, frames, **options):
        return processor.video_attention(video, frames, **options), right(video, others, frames, **options)[1]

    monkeypatch.setattr(processor, "joint_attention", apart)


def first_channels_turned_in_neighbouring_pairs(monkeypatch):
    def rotated(x, cos, sin):
        size = cos.size(1)
        turned = rotate_pairs(x[..., :size], cos[:, None, : size // 2], sin[:, None, : size // 2])
        return torch.cat([turned, x[..., size:]], dim=-1)

    monkeypatch.setattr(minimax_h3, "_rotated", rotated)


@pytest.mark.filterwarnings("ignore:frameattn.adapters")
@pytest.mark.parametrize(
    "case, mutation",
    [
        (WAN_CASE, grid_reversed),
        (WAN_CASE, rotary_embedding_lost),
        (WAN_CASE, rotary_embedding_of_keys_alone),
        (WAN_CASE, norm_lost),
        (HUNYUAN_CASE, rotary_embedding_not_in_the_signature),
        (HUNYUAN_CASE, text_taken_from_the_other_end),
        (HUNYUAN_CASE, mask_ignored),
        (HUNYUAN_CASE, mask_of_text_queries_ignored),
        (HUNYUAN15_CASE, mask_ignored),
        (COGVIDEOX_CASE, text_taken_from_the_other_end),
        (COGVIDEOX_CASE, text_not_projected),
        (COGVIDEOX_CASE, text_rotated_too),
        (COGVIDEOX_CASE, channels_taken_for_frames),
        (COGVIDEOX_CASE, angles_of_halves_not_neighbours),
        (COGVIDEOX15_CASE, frames_of_a_patch_ignored),
        (EASYANIMATE_CASE, text_projected_as_the_video),
        (MOCHI_CASE, mask_ignored),
        (MOCHI_CASE, frequencies_of_one_head),
        (COSMOS_CASE, angles_of_neighbours_not_halves),
        (KANDINSKY_CASE, rotary_embedding_not_rounded),
        (ALLEGRO_CASE, temb_forgotten),
        (LTX_CONDITION_CASE, others_ahead_taken_for_others_behind),
        (LTX_CONDITION_CASE, others_not_attended_to),
        (LTX2_KEYFRAME_CASE, others_ahead_taken_for_others_behind),
        (MINIMAX_H3_CASE, others_not_attended_to),
        (MINIMAX_H3_CASE, first_channels_turned_in_neighbouring_pairs),
        (LTX2_CASE, gate_lost),
        (LTX2_CASE, rotary_embedding_of_the_other_kind),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_fault_is_seen(case, mutation, monkeypatch):
    assert error(case) < TOLERANCE
    mutation(monkeypatch)
    assert error(case) > 100 * TOLERANCE
