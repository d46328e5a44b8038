"""Adapters with the faults that adapters have: the comparison of test_models.py must see each."""

import pytest
import torch
from adapters.test_models import TOLERANCE, relative_error
from adapters.tiny_models import HUNYUAN_CASE, WAN_CASE, output, reference_attention

from frameattn.adapters import apply, attention, processor
from frameattn.adapters.diffusers_hunyuan_video import HunyuanVideoProcessor
from frameattn.adapters.diffusers_wan import WanProcessor


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
    right = HunyuanVideoProcessor.attend_jointly

    def attend_jointly(self, video, text, text_mask):
        both = [torch.cat(parts, dim=1) for parts in zip(video, text, strict=True)]
        length = text[0].size(1)
        text_out, video_out = right(self, [x[:, length:] for x in both], [x[:, :length] for x in both], text_mask)
        return torch.cat([video_out, text_out], dim=1).split([video[0].size(1), length], dim=1)

    monkeypatch.setattr(HunyuanVideoProcessor, "attend_jointly", attend_jointly)


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
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_fault_is_seen(case, mutation, monkeypatch):
    assert error(case) < TOLERANCE
    mutation(monkeypatch)
    assert error(case) > 100 * TOLERANCE
