"""attention_fn: the signature of F.scaled_dot_product_attention."""

import copy
import doctest
import pickle
import warnings

import pytest
import torch
from adapters.tiny_models import joined
from torch.nn import functional as F

from frameattn import reference
from frameattn.adapters import attention_fn, grid_attention
from oracle import randn

GRID = (4, 3, 5)


def streams(tokens, sharp=2.0):
    query, key, value = (randn(2, 3, tokens, 8, seed=seed) for seed in range(3))
    return sharp * query, key, value


@pytest.mark.parametrize("scale", [None, 0.7])
def test_video(scale):
    actual = attention_fn(GRID, iterations=3, mass_floor=0.3)(*streams(60), scale=scale)
    expected = reference.vmonarch_attention(*streams(60), 4, iterations=3, mass_floor=0.3, scale=scale)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("text_first", [False, True])
def test_video_and_text(text_first):
    sizes = [7, 60] if text_first else [60, 7]
    parts = [x.split(sizes, dim=2)[:: -1 if text_first else 1] for x in streams(67)]
    video, text = zip(*parts, strict=True)
    rows = list(F.scaled_dot_product_attention(*streams(67)).split(sizes, dim=2))
    of_video = 1 if text_first else 0
    rows[of_video][:, :, 15:] = joined(video, text, None, 4, {})[:, :, 15:]
    actual = attention_fn(GRID, text_tokens=7, text_first=text_first)(*streams(67))
    torch.testing.assert_close(actual, torch.cat(rows, dim=2))


@pytest.mark.parametrize(
    "tokens, options, words",
    [
        (61, {}, "the grid does not hold the tokens (grid 4 x 3 x 5, 61 tokens)"),
        (60, dict(attn_mask=torch.ones(60, 60, dtype=torch.bool)), "a mask is given"),
        (60, dict(is_causal=True), "a mask is given"),
    ],
)
def test_falls_back_with_one_warning(tokens, options, words):
    attention = attention_fn(GRID)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            actual = attention(*streams(tokens), **options)
    assert torch.equal(actual, F.scaled_dot_product_attention(*streams(tokens), **options))
    (message,) = [str(warning.message) for warning in caught]
    assert words in message


def test_cross_attention_and_dropout_fall_back():
    query, key, value = streams(60)
    with pytest.warns(UserWarning, match="not \\[B, H, N, D\\] of the same"):
        attention_fn(GRID)(query, key[:, :, :7], value[:, :, :7])
    with pytest.warns(UserWarning, match="dropout_p is 0.5"):
        attention_fn(GRID)(query, key, value, dropout_p=0.5)


def test_copies_pickles_and_compiles():
    attention = attention_fn(GRID)
    expected = attention(*streams(60))
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(other(*streams(60)), expected)
    compiled = torch.compile(attention.__call__, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*streams(60)), expected)


def test_documented_example_runs():
    assert doctest.testmod(grid_attention).failed == 0
