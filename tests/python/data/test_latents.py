"""Encoded clips: which frames and texts a draw takes, and files that are refused."""

import re
import warnings

import pytest
import torch

from frameattn.data import EncodedClip, LatentClips, create_dataset, save_latents

CHANNELS, SIZE, TEXT = 4, 6, 5


def clip(number: int, frames: int, tokens: int, padding: int = 0) -> EncodedClip:
    """Latents are 100 * number + frame everywhere; the text is the number, then padding of -1."""
    latents = (100.0 * number + torch.arange(frames)).view(-1, 1, 1, 1).expand(-1, CHANNELS, SIZE, SIZE)
    mask = torch.tensor([1] * tokens + [0] * padding)
    text = torch.where(mask.bool(), number, -1.0).view(-1, 1).expand(-1, TEXT)
    return EncodedClip(latents.half(), text.half(), mask)


@pytest.fixture
def folder(tmp_path):
    save_latents(tmp_path / "b.safetensors", {"third": clip(3, 2, 3)}, scaling_factor=0.5)
    save_latents(tmp_path / "a.safetensors", {"one": clip(1, 9, 2), "two": clip(2, 5, 4, padding=3)}, 0.5)
    return tmp_path


def draw(data, count=40, frames=2, seed=0):
    return data.draw_with_text(count, frames, torch.Generator().manual_seed(seed))


def test_a_draw_is_a_stretch_of_a_clip_with_its_text(folder):
    data = create_dataset(str(folder))
    assert isinstance(data, LatentClips)
    assert (data.channels, data.size, data.text_channels, data.text_tokens, data.num_classes) == (4, 6, 5, 7, 0)
    latents, text, mask = draw(data)
    assert latents.shape == (40, 2, 4, 6, 6) and text.shape == (40, 7, 5) and mask.shape == (40, 7)
    assert {x.dtype for x in (latents, text, mask)} == {torch.float32}
    starts = set()
    for x, words, here in zip(latents, text, mask, strict=True):
        number = int(words[0, 0])
        assert here.tolist() == [[], [1] * 2 + [0] * 5, [1] * 4 + [0] * 3, [1] * 3 + [0] * 4][number]
        assert (words[here.bool()] == number).all()
        first, second = (x / 0.5).flatten(1).unique(dim=1).squeeze(1).tolist()
        assert second == first + 1 and first // 100 == number
        starts.add(first)
    assert starts >= {100, 107, 200, 203, 300} and max(s for s in starts if s < 200) == 107


def test_rate_of_the_clips(folder):
    assert LatentClips(folder).frame_rate is None  # nobody has said it
    save_latents(folder / "a.safetensors", {"one": clip(1, 9, 2)}, 0.5, fps=24)
    assert LatentClips(folder / "a.safetensors", frame_interval=3).frame_rate == 8
    assert LatentClips(folder).frame_rate is None
    save_latents(folder / "b.safetensors", {"two": clip(2, 9, 2)}, 0.5, fps=24)
    assert LatentClips(folder).frame_rate == 24
    with pytest.raises(ValueError, match="fps must be a number of more than 0, got -1"):
        save_latents(folder / "b.safetensors", {"two": clip(2, 9, 2)}, 0.5, fps=-1)


@pytest.mark.parametrize(
    ("name", "known"), [("moving_digits", "size, split, speed"), ("a.safetensors", "frame_interval")]
)
def test_arguments_that_a_data_set_does_not_have(name, known, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"{name} has no argument fps, but {known}"):
        create_dataset(name, fps=8)


def test_the_same_state_gives_the_same_bits(folder):
    first, again, other = draw(LatentClips(folder)), draw(LatentClips(folder)), draw(LatentClips(folder), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_frame_interval_and_clips_that_are_too_short(folder):
    data = LatentClips(folder / "a.safetensors", frame_interval=4)
    with pytest.warns(UserWarning, match=re.escape("two in ") + ".* has 5 frames, but a clip spans 9"):
        latents, _, _ = draw(data, frames=3)
    assert (latents[:, :, 0, 0, 0] == torch.tensor([50.0, 52.0, 54.0])).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        draw(data, frames=3)
    with pytest.raises(
        ValueError, match="a clip spans 13 frames, but the longest has 9: ask for fewer frames or .* is one in a"
    ):
        draw(data, frames=4)


def write(path, tensors, metadata='{"scaling_factor": 1.0}'):
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"frameattn": metadata})


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"x": torch.ones(1)}, "{}", "does not hold encoded clips: its metadata have no scaling_factor"),
        ({"a.text": torch.ones(2, 4)}, None, "clip a needs latents [T, C, H, W], and a mask where it has a text"),
        (
            {"a.latents": torch.ones(2, 4, 6, 6), "a.text": torch.ones(3, 5)},
            None,
            "clip a needs latents [T, C, H, W], and a mask where it has a text",
        ),
        (
            {"a.latents": torch.ones(2, 4, 6, 6), "a.text": torch.ones(3, 5), "a.mask": torch.ones(2)},
            None,
            "clip a must have text [L, D] and mask [L], got [3, 5] and [2]",
        ),
        (
            {"a.latents": torch.ones(2, 4, 6, 6), "a.std": torch.ones(2, 4, 6)},
            None,
            "std of clip a must be [2, 4, 6, 6], got [2, 4, 6]",
        ),
        (
            {"a.latents": torch.ones(2, 4, 6, 8), "a.text": torch.ones(3, 5), "a.mask": torch.ones(3)},
            None,
            "the latents must be square, got 6x8",
        ),
    ],
)
def test_files_that_are_no_clips(tmp_path, tensors, metadata, message):
    write(tmp_path / "x.safetensors", tensors, **({"metadata": metadata} if metadata else {}))
    with pytest.raises(ValueError, match=re.escape(message)):
        LatentClips(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("clip", "factor", "message"),
    [
        (
            (8, 6, 5),
            0.5,
            r"c.safetensors: latents \[C, H, W\] of odd is \[8, 6, 6\], that of one in .*a.sa.* \[4, 6, 6\]",
        ),
        ((4, 6, 7), 0.5, r"c.safetensors: text \[D\] of odd is \[7\], that of one in .*a.safetensors \[5\]"),
        ((4, 6, None), 0.5, r"c.safetensors: text \[D\] of odd is missing, that of one in .*a.safetensors \[5\]"),
        ((4, 6, 5), 0.25, r"c.safetensors: scaling_factor is 0.25, that of .*a.safetensors 0.5"),
    ],
)
def test_clips_that_differ_are_named(folder, clip, factor, message):
    channels, size, text = clip
    texts = (torch.ones(1, text), torch.ones(1)) if text else ()
    save_latents(folder / "c.safetensors", {"odd": EncodedClip(torch.ones(3, channels, size, size), *texts)}, factor)
    with pytest.raises(ValueError, match=message):
        LatentClips(folder)


def test_clips_may_share_a_text_and_must_fit(tmp_path):
    text, mask = torch.ones(1, 2, 5), torch.ones(2)
    clips = {name: EncodedClip(torch.ones(2, 4, 6, 6), text[0], mask) for name in ("a", "b")}
    save_latents(tmp_path / "x.safetensors", clips, 1.0)
    assert len(LatentClips(tmp_path).places) == 2
    with pytest.raises(ValueError, match=r"clip c must have text \[L, D\] and mask \[L\], got \[1, 2, 5\] and \[2\]"):
        save_latents(tmp_path / "y.safetensors", {"c": EncodedClip(torch.ones(2, 4, 6, 6), text, mask)}, 1.0)


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    for value in (1.0, 2.0):
        save_latents(tmp_path / "x.safetensors", {"a": EncodedClip(torch.full((2, 4, 6, 6), value))}, 1.0)
        latents, _ = LatentClips(tmp_path).draw(1, 1, torch.Generator())
        assert (latents == value).all()


def test_other_errors(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="holds no encoded clips"):
        LatentClips(empty)
    (empty / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x.safetensors is not a safetensors file"):
        create_dataset(str(empty))
    for interval in (0, 1.5):
        with pytest.raises(ValueError, match=f"frame_interval must be a whole number of at least 1, got {interval}"):
            LatentClips(folder, frame_interval=interval)
    with pytest.raises(ValueError, match="the name of a clip may not have a dot, got 'a.b'"):
        save_latents(folder / "d.safetensors", {"a.b": clip(1, 1, 1)}, 1.0)
