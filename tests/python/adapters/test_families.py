"""What is to be said of one family of models alone."""

import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
from adapters.test_models import TOLERANCE, relative_error
from adapters.tiny_models import (
    ALLEGRO_CASE,
    BATCH,
    COGVIDEOX_CASE,
    EASYANIMATE_CASE,
    FRAMES,
    HEIGHT,
    HUNYUAN_CASE,
    KANDINSKY_CASE,
    LTX2_CASE,
    LTX2_KEYFRAME_CASE,
    LTX_CASE,
    LTX_CONDITION_CASE,
    MINIMAX_H3_CASE,
    MOCHI_CASE,
    MOTIF_CASE,
    WIDTH,
    output,
    places,
    reference_attention,
)

from frameattn.adapters import apply
from frameattn.adapters.call import Call, Layout, running

GRID_NAMES = ("num_frames", "height", "width")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def messages_of(model, call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output(model, call)
    return [str(warning.message) for warning in caught if "frameattn.adapters" in str(warning.message)]


def check_stays_dense(case, words, options=None, **changes):
    """A call with these changes runs what was there, and one warning says why."""
    model, call = case.build(torch.float32), {**case.call(dtype=torch.float32), **changes}
    dense = output(model, call)
    handle = apply(model, **options or {})
    (message,) = messages_of(model, call)
    assert words in message and not handle.counts.vmonarch
    assert torch.equal(output(model, call), dense)


# ---- Text in the same attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [HUNYUAN_CASE, COGVIDEOX_CASE, EASYANIMATE_CASE, MOCHI_CASE], ids=str)
def test_text_of_every_block_is_that_of_the_original(case):
    """Also of padding, which the output of a model does not show."""
    model, call, results = case.build(), case.call(1), []
    handle = apply(model)
    for name in handle.swapped:
        model.get_submodule(name).register_forward_hook(lambda module, arguments, result: results.append(result))
    output(model, call)
    handle.remove()
    output(model, call)
    half = len(results) // 2
    for ours, theirs in zip(results[:half], results[half:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * TOLERANCE)


def test_motif_keeps_the_decoder():
    case = replace(MOTIF_CASE, arguments={**MOTIF_CASE.arguments, "num_single_layers": 3, "num_decoder_layers": 2})
    model = case.build()
    with reference_attention(case) as calls:
        expected = output(model, case.call())
    assert len(calls) == 2
    handle = apply(model)
    assert handle.swapped == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    assert list(handle.declined) == ["single_transformer_blocks.1.attn", "single_transformer_blocks.2.attn"]
    assert "a decoder attends to the encoder's video tokens beside its own: single_" in handle.report()
    assert relative_error(output(model, case.call()), expected) < TOLERANCE


def test_cogvideox_fused_after_apply_is_dense_and_says_so():
    model, call = COGVIDEOX_CASE.build(), COGVIDEOX_CASE.call()
    dense = output(model, call)
    with reference_attention(COGVIDEOX_CASE):
        expected = output(model, call)
    attention = model.transformer_blocks[0].attn1

    handle = apply(model)
    model.fuse_qkv_projections()
    (message,) = messages_of(model, call)
    assert "2 of 2 swapped attention processors were replaced since apply()" in message and not handle.swapped
    assert relative_error(output(model, call), dense) < TOLERANCE
    handle.remove()
    assert "Fused" in type(attention.processor).__name__

    with apply(model), mock.patch.object(attention.to_q, "forward", side_effect=AssertionError("not fused")):
        assert relative_error(output(model, call), expected) < TOLERANCE
    model.unfuse_qkv_projections()  # brings back what the first apply() put in
    assert torch.equal(output(model, call), dense)
    with apply(model), mock.patch.object(attention.to_qkv, "forward", side_effect=AssertionError("fused")):
        assert relative_error(output(model, call), expected) < TOLERANCE
    assert torch.equal(output(model, call), dense)


def test_cogvideox_with_a_mask_stays_dense():
    mask = torch.zeros(BATCH, 1, 1 + FRAMES * HEIGHT * WIDTH + 6)[..., 1:]
    check_stays_dense(COGVIDEOX_CASE, "attention_mask given", attention_kwargs={"attention_mask": mask})


# ---- Video alone -----------------------------------------------------------------------------------------------------


def test_allegro_with_padding_stays_dense():
    mask = torch.ones(BATCH, FRAMES, 2 * HEIGHT, 2 * WIDTH)
    mask[:, :, :, -2:] = 0
    check_stays_dense(ALLEGRO_CASE, "attention_mask given (grid 4 x 3 x 5, 60 video tokens)", attention_mask=mask)


def test_kandinsky_with_sparse_attention_of_its_own_keeps_it():
    model = KANDINSKY_CASE.build(torch.float32)
    apply(model)
    attention, sparse = model.visual_transformer_blocks[0].self_attention, {"to_fractal": True}
    theirs = mock.patch.object(type(attention.processor.original), "__call__", autospec=True)
    in_call = mock.patch.object(running, "call", Call(Layout((FRAMES, HEIGHT, WIDTH))))
    with theirs as original, in_call, pytest.warns(UserWarning, match="sparse_params given"):
        result = attention(torch.zeros(BATCH, 60, 24), sparse_params=sparse, rotary_emb="angles")
    assert result is original.return_value
    assert original.call_args.args[-2:] == ("angles", sparse)


def test_ltx2_with_a_mask_over_video_stays_dense():
    mask = torch.ones(BATCH, 60, 60).tril()
    check_stays_dense(LTX2_CASE, "attention_mask given", video_self_attention_mask=mask)


@pytest.mark.parametrize(
    "case, layout",
    [
        (LTX_CONDITION_CASE, Layout((4, 3, 5), ahead=12)),
        (LTX2_KEYFRAME_CASE, Layout((4, 3, 5), behind=12)),
        (MINIMAX_H3_CASE, Layout((4, 3, 5), ahead=12)),
    ],
    ids=str,
)
def test_tokens_beside_the_video(case, layout):
    """The values are those of test_models.py."""
    model = case.build(torch.float32)
    handle = apply(model)
    assert not messages_of(model, case.call(dtype=torch.float32))
    assert handle.counts.vmonarch == 1 and f"token grid: {layout}" in handle.report()
    with apply(case.build(torch.float32), grid=(2, 6, 5)) as other:
        output(other._states[""].model, case.call(dtype=torch.float32))
        where = "behind" if layout.behind else "ahead"
        assert f"token grid: 2 x 6 x 5, 12 tokens {where}" in other.report()


@pytest.mark.parametrize("case", [LTX_CASE, LTX_CONDITION_CASE, LTX2_KEYFRAME_CASE, MINIMAX_H3_CASE], ids=str)
def test_a_given_grid_that_does_not_fit_stays_dense(case):
    """Also where there are tokens enough beside the video, and fewer tokens in the grid than there are."""
    check_stays_dense(case, "the grid does not hold the tokens (grid 2 x 3 x 5, 60 video", options={"grid": (2, 3, 5)})


@pytest.mark.parametrize("case", [LTX_CONDITION_CASE, LTX2_KEYFRAME_CASE, MINIMAX_H3_CASE], ids=str)
def test_inference_mode(case):
    """Also of what says the grid."""
    model = case.build(torch.float32)
    handle = apply(model)
    expected = output(model, case.call(dtype=torch.float32))
    with torch.inference_mode():
        assert torch.equal(output(model, case.call(dtype=torch.float32)), expected)
    assert handle.counts.vmonarch == 2 == handle.counts.calls


def test_ltx_grid_is_that_of_its_coordinates():
    model, other = (LTX_CASE.build(torch.float32) for _ in range(2))
    apply(model)
    apply(other)
    call = LTX_CASE.call(dtype=torch.float32)
    told = {**call, "video_coords": places(FRAMES).expand(BATCH, -1, -1)}
    expected = output(other, told)
    for sizes in ((None, None, None), (1, 1, 1)):
        assert torch.equal(output(model, {**told, **dict(zip(GRID_NAMES, sizes, strict=True))}), expected)


@pytest.mark.parametrize("order", [torch.randperm(60, generator=torch.Generator().manual_seed(0)), torch.arange(1)])
def test_ltx_without_a_grid_stays_dense(order):
    """Tokens in disorder, or a single one."""
    changes = {
        **dict.fromkeys(GRID_NAMES),
        "hidden_states": LTX_CASE.call(dtype=torch.float32)["hidden_states"][:, : len(order)],
        "video_coords": places(FRAMES)[:, order].expand(BATCH, -1, -1),
    }
    check_stays_dense(LTX_CASE, "this call does not say its token grid; apply(grid=(T, H, W)) can", **changes)


def test_minimax_h3_stays_dense_where_other_tokens_end_the_sequence():
    call = MINIMAX_H3_CASE.call(dtype=torch.float32)
    turned = {
        "position_ids": call["position_ids"].roll(-5, dims=0) * torch.tensor([1.0, 0.0, 0.0]),
        **{name: (call[name] - 5) % 72 for name in ("video_indices", "audio_indices", "text_indices")},
        **{name: call[name].roll(-5) for name in ("token_tags", "timestep_indices")},
    }
    turned["position_ids"][:, 0] = torch.arange(72)
    check_stays_dense(MINIMAX_H3_CASE, "this call does not say its token grid", **turned)


def h3_sound_last():
    """Changes to a call: the tokens of the sound, and those alone, are behind the video."""
    call = MINIMAX_H3_CASE.call(dtype=torch.float32)
    order = torch.cat([torch.arange(9), torch.arange(12, 72), torch.arange(9, 12)])
    at = order.argsort()
    return {
        **{name: call[name][order] for name in ("position_ids", "token_tags", "timestep_indices")},
        **{name: at[call[name]] for name in ("video_indices", "audio_indices", "text_indices")},
    }


@pytest.mark.parametrize("options", [{}, {"grid": (4, 3, 5)}], ids=["", "given"])
def test_minimax_h3_with_sound_behind_the_video_stays_dense(options):
    """Which has the places of a grid of its own."""
    changes = h3_sound_last()
    changes["position_ids"][-3:] = torch.tensor([[time, 0.0, 0.0] for time in range(3)])
    words = "the grid does not hold the tokens" if options else "the sequence does not end with the video"
    check_stays_dense(MINIMAX_H3_CASE, words, options, **changes)
    changes["position_ids"][-3:] = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    words = "the sequence does not end with the video" if options else "does not say its token grid"
    check_stays_dense(MINIMAX_H3_CASE, words, options, **changes)


def test_minimax_h3_without_a_grid_stays_dense():
    disorder = torch.randn(72, 3, generator=torch.Generator().manual_seed(0))
    check_stays_dense(MINIMAX_H3_CASE, "this call does not say its token grid", position_ids=disorder)


@pytest.mark.parametrize("case", [LTX_CONDITION_CASE, MINIMAX_H3_CASE], ids=str)
def test_compiled_code_that_cannot_look_at_places_says_so(case):
    model, call = case.build(torch.float32), case.call(dtype=torch.float32)
    expected = {}
    for grid in (None, (4, 3, 5)):
        with apply(model, grid=grid):
            expected[grid] = output(model, call)
    dense = output(model, call)
    for grid, result in (None, dense), ((4, 3, 5), expected[None]):
        torch.compiler.reset()
        compiled = torch.compile(lambda **call: model(**call), backend="eager")
        with apply(model, grid=grid):
            caught = messages_of(compiled, call)
            assert ["compiled code cannot look at the places of tokens" in message for message in caught] == [True] * (
                not grid
            )
            assert relative_error(output(compiled, call), result) < 1e-6
    torch.compiler.reset()


def test_ltx2_perturbs_as_before():
    """Guidance that leaves out the attention of some blocks: these run the original, the others VMonarch."""
    model, call = LTX2_CASE.build(), {**LTX2_CASE.call(), "spatio_temporal_guidance_blocks": [1]}
    with reference_attention(LTX2_CASE) as calls:
        expected = output(model, call)
    assert len(calls) == 1
    handle = apply(model)
    (message,) = messages_of(model, call)
    assert "perturbation_mask given" in message and len(handle.swapped) == 2
    assert relative_error(output(model, call), expected) < TOLERANCE
    assert not messages_of(model, LTX2_CASE.call())
