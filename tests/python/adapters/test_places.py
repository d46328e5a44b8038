"""grid_at_end: the grid of tokens that have places."""

import pytest
import torch
from adapters.tiny_models import places

from frameattn.adapters.diffusers.ltx import LTXVideoProcessor
from frameattn.adapters.places import grid_at_end

NO_SIZES = dict.fromkeys(("num_frames", "height", "width"))


def of_lines(*lines):
    """[3, N] of (time, height, width) each."""
    return torch.tensor(lines, dtype=torch.float64).t()


@pytest.mark.parametrize(
    "ahead",
    [
        of_lines(),
        of_lines((9, 1, 1), (9, 1, 2)),
        places(2)[:, :15] + of_lines((9, 0, 0)),  # a frame that is later
        torch.cat([places(2) + of_lines((9, 0, 0)), places(2)[:, :4]], dim=1),
        places(2)[:, 3:15] - of_lines((1, 0, 0)),  # an earlier part of one
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.04, -0.5])
def test_finds_the_video(ahead, scale):
    """Whose places are pixels, seconds, or around the middle."""
    found = torch.cat([ahead.view(3, -1), places(4)], dim=1)
    shifted = found * torch.tensor([[abs(scale)], [abs(scale)], [abs(scale)]]) + min(scale, 0.0)
    assert grid_at_end(shifted) == (4, 3, 5) == grid_at_end(shifted.t())


@pytest.mark.parametrize(
    "sequence, grid",
    [
        (places(1), (1, 3, 5)),
        (places(4)[:, 1:], (3, 3, 5)),
        (places(4).flip(1), (1, 1, 1)),
        (places(4)[:, :-1], (1, 1, 1)),
        (places(4)[[0, 2, 1]], (1, 1, 1)),  # width ahead of height
        (of_lines((0, 0, 0), (1, 0, 0), (2, 0, 0)), (3, 1, 1)),
        (of_lines((0, 0, 0), (1, 5, 0), (2, 0, 5)), (1, 1, 1)),
        (of_lines((0, 0, 0), (0, 0, 0)), (1, 1, 1)),
    ],
)
def test_takes_no_other_order(sequence, grid):
    assert grid_at_end(sequence) == grid


def test_looks_once_at_a_tensor():
    tokens = places(4)
    assert grid_at_end(tokens) == (4, 3, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", None)
        assert grid_at_end(tokens) == (4, 3, 5)
    tokens[0, :15] = 9
    assert grid_at_end(tokens) == (3, 3, 5)


def test_looks_once_at_the_coordinates_of_ltx():
    """Which are [B, 3, N]."""
    tokens = places(4).expand(2, -1, -1)
    with pytest.MonkeyPatch.context() as patch:
        searches = []
        patch.setattr("frameattn.adapters.places._search", lambda x: searches.append(x.shape) or (4, 3, 5))
        for _ in range(3):
            assert LTXVideoProcessor.grid(None, {**NO_SIZES, "video_coords": tokens}) == (4, 3, 5)
    assert searches == [(2, 3, 60)]


def test_takes_tensors_of_inference_mode():
    """Which have no version: what was written to them is seen all the same."""
    with torch.inference_mode():
        tokens = places(4)
        assert grid_at_end(tokens) == (4, 3, 5)
        tokens[0, :15] = 9
        assert grid_at_end(tokens) == (3, 3, 5)


def test_finds_the_video_of_ltx_pipelines():
    """Between images, of which one is at the video's end."""
    pipelines = "diffusers.pipelines.ltx.pipeline_ltx_condition"  # of 0.35: not with every transformers
    ltx = pytest.importorskip(pipelines, exc_type=ImportError).LTXConditionPipeline
    video, image = (ltx._prepare_video_ids(2, frames, 3, 5) for frames in (4, 1))
    images = [ltx._scale_video_ids(image, frame_index=index) for index in (8, 24)]
    coordinates = torch.cat([*images, ltx._scale_video_ids(video)], dim=2).float()
    coordinates[:, 0] /= 25
    assert grid_at_end(coordinates[0]) == (4, 3, 5)


def test_finds_the_video_of_minimax_h3():
    """Behind an image of its size, with text and sound ahead."""
    blocks = pytest.importorskip("diffusers.modular_pipelines.minimax_h3.before_denoise")
    frame, _ = blocks._frame_position_grid(6, 10, 2, 2)
    times = blocks._temporal_position_grid(7, 5.0)
    text = torch.arange(5.0, dtype=torch.float64).view(-1, 1) * torch.tensor([1.0, 0.0, 0.0])
    image = torch.cat([times[:1].expand(15).unsqueeze(1), frame], dim=1)
    sound = torch.cat([times[:3, None], frame[:3]], dim=1)
    video = torch.cat([times.repeat_interleave(15).unsqueeze(1), frame.repeat(7, 1)], dim=1)
    assert grid_at_end(torch.cat([text, image, sound, video])) == (7, 3, 5)
