"""joint_attention: what the adapters of joint models share."""

import pytest
import torch
from adapters.tiny_models import joined
from torch.nn import functional as F

from frameattn.adapters import joint_attention, video_attention
from oracle import randn

FRAMES, VIDEO, TEXT = 4, 60, 7
OPTIONS = dict(iterations=2, mass_floor=0.1)


def streams(tokens, seed, requires_grad=False):
    return tuple(randn(2, 3, tokens, 8, seed=seed + i, requires_grad=requires_grad) for i in range(3))


def mask_of(*lengths):
    return torch.arange(TEXT) < torch.tensor(lengths)[:, None]


def dense(video, text, mask):
    query, key, value = (torch.cat(pair, dim=2) for pair in zip(video, text, strict=True))
    keys = None if mask is None else F.pad(mask, (VIDEO, 0), value=True)[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=keys).split([VIDEO, TEXT], dim=2)


@pytest.mark.parametrize("mask", [None, mask_of(7, 7), mask_of(4, 7), mask_of(0, 3)], ids=str)
def test_joins_what_the_definition_joins(mask):
    video, text = streams(VIDEO, 0, requires_grad=True), streams(TEXT, 5, requires_grad=True)
    dense_video, dense_text = dense(video, text, mask)
    rows = joined(video, text, None if mask is None else mask[:, None, None], FRAMES, OPTIONS)
    first = VIDEO // FRAMES
    expected = torch.cat([dense_video[:, :, :first], rows[:, :, first:], dense_text], dim=2)
    actual = torch.cat(joint_attention(video, text, FRAMES, mask, **OPTIONS), dim=2)
    torch.testing.assert_close(actual, expected)

    weights = randn(*actual.shape, seed=9)
    theirs = torch.autograd.grad((expected * weights).sum(), [*video, *text])
    ours = torch.autograd.grad((actual * weights).sum(), [*video, *text])
    torch.testing.assert_close(ours, theirs)


def test_without_text_keys_the_video_is_alone():
    video, text = streams(VIDEO, 0), streams(TEXT, 5)
    actual, _ = joint_attention(video, text, FRAMES, mask_of(0, 0), **OPTIONS)
    torch.testing.assert_close(actual, video_attention(video, FRAMES, **OPTIONS))


def test_one_frame_is_dense():
    video, text = streams(VIDEO, 0), streams(TEXT, 5)
    actual = joint_attention(video, text, 1, mask_of(3, 7), **OPTIONS)
    torch.testing.assert_close(actual, dense(video, text, mask_of(3, 7)))


def test_scale():
    video, text = streams(VIDEO, 0), streams(TEXT, 5)
    scaled = [(2.0 * query, key, value) for query, key, value in (video, text)]
    actual = joint_attention(video, text, FRAMES, **OPTIONS, scale=2 * 8**-0.5)
    torch.testing.assert_close(actual, joint_attention(*scaled, FRAMES, **OPTIONS))
