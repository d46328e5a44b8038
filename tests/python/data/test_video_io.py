"""Files read back with PyAV and Pillow, and frames by number for every kind of file."""

import gc
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("PIL")

import av
from PIL import Image

from frameattn.data.video_io import (
    GAP,
    UnreadableVideo,
    count_frames,
    enlarge,
    read_video,
    write_contact_sheet,
    write_gif,
    write_mp4,
)


def smooth_videos(count, frames, channels, height=16, width=16):
    """Different smooth videos [K, T, C, H, W] in -1..1, no two frames alike."""
    k, t, c, y, x = (torch.arange(n) for n in (count, frames, channels, height, width))
    phase = 2 * k.view(-1, 1, 1, 1, 1) + 0.4 * t.view(-1, 1, 1, 1) + 2 * c.view(-1, 1, 1)
    return torch.sin(phase + 0.2 * y.view(-1, 1) + 0.1 * x)


def as_bytes(videos):
    return (videos.clamp(-1, 1) + 1) * 127.5


CLOCKWISE = (0, 1, -1, 0)  # a quarter


def set_matrix(path, a, b, c, d):
    """Puts into an MP4 that players show point (x, y) at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44  # version 0: 40 bytes of other fields
    numbers = (a << 16, b << 16, 0, c << 16, d << 16)
    data[place : place + 20] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    path.write_bytes(data)


FILES = {
    "short.mp4": dict(rate=25, key_frames_every=5),
    "long.mp4": dict(rate=30, key_frames_every=250),
    "ntsc.mp4": dict(rate=Fraction(30000, 1001), key_frames_every=12),
    "open.mp4": dict(rate=25, options={"x264-params": "open-gop=1:bframes=8:b-adapt=0:keyint=24:scenecut=0"}),
    "rounded_times.mkv": dict(rate=30, key_frames_every=20),
    "vp9.webm": dict(rate=30, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4.mov": dict(rate=25, codec="mpeg4", options={"bf": "2"}),
    "mpeg4.avi": dict(rate=25, codec="mpeg4", options={"bf": "2"}),
    "h264.avi": dict(rate=25),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_by_number(name, tmp_path, write_numbers, read_numbers):
    if FILES[name].get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"PyAV without {FILES[name]['codec']}")
    path = write_numbers(tmp_path / name, range(80), **FILES[name])
    assert count_frames(path) == 80
    assert read_numbers(read_video(path)) == list(range(80))
    for start in range(0, 50, 3):
        assert read_numbers(read_video(path, range(start, start + 30, 7))) == list(range(start, start + 30, 7))
    assert read_numbers(read_video(path, [79])) == [79]


@pytest.mark.parametrize("name", ["varying.mp4", "varying.mkv"])
def test_frame_on_screen_where_the_rate_varies(name, tmp_path, write_numbers, read_numbers):
    times = [t for t in range(80) if t % 7 != 3]
    path = write_numbers(tmp_path / name, times, times=times, rate=30)
    for start in (0, 10, 23, 31):
        indices = range(start, start + 36, 5)
        assert read_numbers(read_video(path, indices)) == [i - 1 if i % 7 == 3 else i for i in indices]


def test_frames_of_a_gif(tmp_path, read_numbers, write_numbers):
    numbers = read_video(write_numbers(tmp_path / "numbers.mp4", range(20)))
    write_gif(tmp_path / "numbers.gif", numbers[None], fps=8)
    assert count_frames(tmp_path / "numbers.gif") == 20
    assert read_numbers(read_video(tmp_path / "numbers.gif", [3, 11, 19])) == [3, 11, 19]


def test_read_scales_and_crops(tmp_path, write_video):
    stripes = np.zeros((64, 96, 3), np.uint8)
    for third, channel in enumerate((0, 1, 2)):
        stripes[:, 32 * third : 32 * third + 32, channel] = 255
    wide = write_video(tmp_path / "wide.mp4", [stripes] * 2, options={"crf": "1"})
    high = write_video(tmp_path / "high.mp4", [stripes.swapaxes(0, 1)] * 2, options={"crf": "1"})
    assert read_video(wide).shape == (2, 3, 64, 96)
    video = read_video(wide, size=32)  # 32 x 48, of which columns 8 to 40 are left
    assert video.shape == (2, 3, 32, 32)
    assert (video - read_video(high, size=32).mT).abs().mean() < 0.04
    for columns, colour in ((slice(0, 6), 0), (slice(10, 22), 1), (slice(26, 32), 2)):
        expected = torch.full((3,), -1.0)
        expected[colour] = 1
        assert (video[:, :, :, columns] - expected.view(3, 1, 1)).abs().max() < 0.1
    assert read_video(wide, size=100).shape == (2, 3, 100, 100)


def test_read_turns_as_the_file_says(tmp_path, write_video):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24] = 255  # what was up
    path = write_video(tmp_path / "phone.mp4", [picture] * 2)
    set_matrix(path, *CLOCKWISE)
    video = read_video(path)
    assert video.shape == (2, 3, 64, 48)
    assert video[..., :20].max() < -0.9 and video[..., -20:].min() > 0.9


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [(Fraction(2), (64, 128)), (Fraction(1, 2), (128, 64)), (Fraction(128, 117), (64, 70)), (Fraction(0), (64, 64))],
)
@pytest.mark.parametrize("turned", [0, 90])
def test_pixels_become_square(aspect, shape, turned, tmp_path, write_video, monkeypatch):
    """A disc that is 51 of 64 pixels wide and high on screen, stored with pixels that are not square."""
    wide, high = max(1, float(aspect or 1)), max(1, 1 / float(aspect or 1))  # of the picture on screen, in 64 pixels
    y, x = (torch.arange(64) + 0.5 - 32).view(-1, 1) * high, (torch.arange(64) + 0.5 - 32) * wide
    disc = ((25.5 - (x.square() + y.square()).sqrt()).clamp(-0.5, 0.5) + 0.5).mul(255).byte().numpy()
    picture = disc[..., None].repeat(3, -1)
    path = write_video(tmp_path / "disc.mp4", [picture] * 2, aspect=aspect, options={"crf": "1"})
    if turned:  # a quarter, in the file's header
        set_matrix(path, *CLOCKWISE)
        shape = shape[::-1]
    assert read_video(path).shape == (2, 3, *shape)
    video = read_video(path, size=64)
    assert video.shape == (2, 3, 64, 64)
    inside = video.mean(1) > 0
    heights, widths = inside.any(2).sum(1), inside.any(1).sum(1)
    assert (heights - 51).abs().max() <= 1 and (widths - 51).abs().max() <= 1
    assert inside[0].sum().item() == pytest.approx(torch.pi * 25.5**2, rel=0.03)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_read_turns_and_mirrors_as_the_file_says(swapped, signs, tmp_path, write_video):
    """All eight ways to show a picture whose top left quarter is white."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255
    path = write_video(tmp_path / "phone.mp4", [picture] * 2)
    a, b, c, d = (0, signs[0], signs[1], 0) if swapped else (signs[0], 0, 0, signs[1])
    set_matrix(path, a, b, c, d)
    video = read_video(path)
    height, width = (64, 48) if swapped else (48, 64)
    assert video.shape == (2, 3, height, width)
    right, low = -a - c > 0, -b - d > 0  # where (-1, -1) comes to
    for row in (0, 1):
        for column in (0, 1):
            y, x = height // 4 + row * height // 2, width // 4 + column * width // 2
            assert (video[:, :, y, x] > 0.9).all() == ((row, column) == (low, right))


def test_unreadable_files(tmp_path, write_numbers):
    path = write_numbers(tmp_path / "whole.mp4", range(60), options={"movflags": "faststart"})
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    for name, reason in (("noise.mp4", "Invalid data"), ("missing.mp4", "No such file")):
        with pytest.raises(UnreadableVideo, match=f"{name}: {reason}"):
            count_frames(tmp_path / name)
    with pytest.raises(UnreadableVideo, match=r"whole.mp4: ends after frame 59, 90 was asked for"):
        read_video(path, [50, 90])


def test_enlarge():
    videos = smooth_videos(2, 3, 1)
    larger = enlarge(videos)
    assert larger.shape == (2, 3, 1, 128, 128)
    assert larger.min() >= -1 and larger.max() <= 1
    means = larger.flatten(0, 1).unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
    assert (means - videos.flatten(0, 1)).abs().max() < 0.05
    assert enlarge(torch.zeros(1, 1, 3, 100, 150)).shape[-2:] == (200, 300)
    assert torch.equal(enlarge(torch.full((1, 1, 3, 128, 130), 2.0)), torch.ones(1, 1, 3, 128, 130))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_mp4(channels, count, tmp_path):
    videos = smooth_videos(count, 10, channels, 131, 150)
    path = tmp_path / "videos.mp4"
    write_mp4(path, videos, fps=8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate, stream.time_base * stream.duration) == (10, 8, Fraction(10, 8))
    video = read_video(path)
    assert video.shape == (10, 3, 132, count * (150 + GAP) - GAP)
    for k in range(count):
        left = k * (150 + GAP)
        assert (video[:, :, :131, left : left + 150] - videos[k]).abs().mean() < (0.02 if channels == 1 else 0.04)
    if count > 1:
        assert video[:, :, :131, 151:153].mean() > 0.9  # white


def test_mp4_of_small_pictures_is_sharp(tmp_path):
    videos = (torch.rand(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5) * 2.0 - 1
    write_mp4(tmp_path / "small.mp4", videos, fps=12.5)
    assert (read_video(tmp_path / "small.mp4") - enlarge(videos)[0]).abs().mean() < 0.03


COLOURS = [(200, 30, 60), (20, 180, 40), (30, 60, 220), (255, 255, 255), (128, 128, 128), (0, 0, 0)]


@pytest.mark.parametrize("size", [(720, 1280), (144, 176), (16, 16)])
def test_mp4_says_what_its_colours_are(size, tmp_path):
    for rgb in COLOURS if size[0] < 720 else COLOURS[:1]:
        videos = (torch.tensor(rgb) / 127.5 - 1).view(1, 1, 3, 1, 1).expand(1, 2, 3, *size)
        write_mp4(tmp_path / "flat.mp4", videos, fps=8)
        with av.open(str(tmp_path / "flat.mp4")) as container:
            context = container.streams.video[0].codec_context
            # BT.709 is 1 in ISO/IEC 23091-2, limited range 1 in FFmpeg
            assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1,) * 4
            luma = next(container.decode(video=0)).to_ndarray()[:-1:2, ::2][: size[0] // 4]
        red, green, blue = rgb
        expected = 16 + 219 / 255 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
        assert abs(luma.mean() - expected) < 1  # 75 for 200, 30, 60; BT.601 has 88
        read = (read_video(tmp_path / "flat.mp4") + 1) * 127.5
        assert (read - torch.tensor(rgb).view(3, 1, 1)).abs().max() <= 3


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize(
    ("matrix", "span", "tags"),
    [
        ("ITU709", "MPEG", dict(colorspace="bt709", color_range="tv")),
        ("ITU709", "JPEG", dict(colorspace="bt709", color_range="pc")),
        ("ITU601", "MPEG", dict(colorspace="smpte170m", color_range="tv")),
        ("ITU601", "JPEG", dict(colorspace="smpte170m", color_range="pc")),
        ("ITU601", "MPEG", {}),
    ],
)
def test_read_takes_colours_as_the_file_says(pixels, matrix, span, tags, tmp_path):
    picture = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1", **tags})
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=span)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for size in (None, 32):
        read = (read_video(tmp_path / "a.mp4", size=size) + 1) * 127.5
        assert (read - torch.tensor([200, 30, 60]).view(3, 1, 1)).abs().max() <= 3


def test_gif_keeps_frames_that_are_equal(tmp_path):
    """Eleven frames of which six show the same, and one image eleven times."""
    moving = smooth_videos(1, 11, 3)
    moving[:, 3:9] = moving[:, 3:4]
    for videos in (moving, moving[:, :1].expand(1, 11, 3, 16, 16)):
        write_gif(tmp_path / "pause.gif", videos, fps=8)
        with Image.open(tmp_path / "pause.gif") as gif:
            assert gif.n_frames == 11
            durations = []
            for t in range(11):
                gif.seek(t)
                durations.append(gif.info["duration"])
        assert set(durations) == {120, 130} and sum(durations) == pytest.approx(11 * 125, abs=5)
        assert count_frames(tmp_path / "pause.gif") == 11
        read = read_video(tmp_path / "pause.gif")
        assert (read - enlarge(videos)[0]).abs().mean((1, 2, 3)).max() < 0.05
        assert torch.equal(read[3], read[8])


def test_gif_stores_what_changes(tmp_path):
    videos = torch.rand(1, 2, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    videos[:, 1] = videos[:, 0]
    videos[0, 1, 0, 40:60, 100:128] *= -1  # a box at the right border
    write_gif(tmp_path / "one.gif", videos[:, :1], fps=8)
    write_gif(tmp_path / "two.gif", videos, fps=8)
    assert (tmp_path / "two.gif").stat().st_size < 1.2 * (tmp_path / "one.gif").stat().st_size
    assert (read_video(tmp_path / "two.gif") - videos[0]).abs().max() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(channels, tmp_path):
    videos = smooth_videos(5, 9, channels)
    path = tmp_path / "videos.gif"
    write_gif(path, videos, fps=8)
    expected = as_bytes(enlarge(videos))
    durations = []
    with Image.open(path) as gif:
        assert gif.n_frames == 9 and gif.info["loop"] == 0
        assert gif.size == (3 * 128 + 2 * GAP, 2 * 128 + GAP)
        for t in range(9):
            gif.seek(t)
            durations.append(gif.info["duration"])
            frame = torch.from_numpy(np.array(gif.convert("RGB"))).movedim(-1, 0)
            last = frame[:, 128 + GAP :, 128 + GAP : 256 + GAP]
            assert (last - expected[4, t]).abs().mean() < (0.6 if channels == 1 else 8)  # 256 colours
            assert (frame[:, 128 + GAP :, 256 + GAP :] == 255).all()  # the empty place
    assert sum(durations) == pytest.approx(9 * 125, abs=5) and set(durations) == {120, 130}


@pytest.mark.parametrize("fps", [50, 60])
def test_gif_is_not_faster_than_browsers_play(fps, tmp_path):
    write_gif(tmp_path / "fast.gif", smooth_videos(1, 4, 1), fps)
    with Image.open(tmp_path / "fast.gif") as gif:
        assert gif.info["duration"] == 20


def test_still_images(tmp_path):
    images = smooth_videos(1, 1, 3)
    for name, write in (("image.gif", write_gif), ("image.mp4", write_mp4)):
        write(tmp_path / name, images, fps=8)
        assert (read_video(tmp_path / name) - enlarge(images)[0]).abs().mean() < 0.06


@pytest.mark.parametrize("frames", [3, 16, 40])
def test_contact_sheet(frames, tmp_path):
    videos = smooth_videos(3, frames, 1)
    write_contact_sheet(tmp_path / "sheet.png", videos, [7, None, 10])
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "sheet.png")))
    columns = min(frames, 16)
    margin = sheet.shape[1] - (columns * (64 + GAP) - GAP)
    assert sheet.shape[0] == 3 * (64 + GAP) - GAP and 20 < margin < 60
    expected = as_bytes(enlarge(videos, side=64))
    for row in range(3):
        top = row * (64 + GAP)
        for column, frame in ((0, 0), (columns - 1, frames - 1)):
            left = margin + column * (64 + GAP)
            assert (sheet[top : top + 64, left : left + 64] - expected[row, frame, 0]).abs().max() < 1
    written = [sheet[row * (64 + GAP) : row * (64 + GAP) + 64, :margin].min() < 100 for row in range(3)]
    assert written == [True, False, True]


def test_contact_sheet_without_labels(tmp_path):
    write_contact_sheet(tmp_path / "sheet.png", smooth_videos(2, 2, 3, 64, 80), [None, None])
    assert Image.open(tmp_path / "sheet.png").size == (2 * 80 + GAP, 2 * 64 + GAP)


@pytest.mark.parametrize("shape", [(2, 3, 4, 16, 16), (3, 1, 16, 16), (0, 3, 1, 16, 16)])
def test_rejects_what_is_no_video(shape, tmp_path):
    with pytest.raises(ValueError, match=r"videos must be \[K, T, C, H, W\] with C 1 or 3, got \[\d"):
        write_gif(tmp_path / "x.gif", torch.zeros(shape), fps=8)


def test_mp4_without_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with pytest.raises(RuntimeError, match="write_mp4 needs PyAV with libx264"):
        write_mp4(tmp_path / "x.mp4", smooth_videos(1, 2, 1), fps=8)


def test_frames_are_freed_when_they_are_read(tmp_path, write_numbers):
    """Not when the garbage is collected: a process that is forked meanwhile may hang as it frees FFmpeg's threads."""
    av = pytest.importorskip("av")
    write_numbers(tmp_path / "a.mp4", range(20))
    gc.collect()
    gc.disable()
    try:
        read_video(tmp_path / "a.mp4")
        read_video(tmp_path / "a.mp4", range(0, 20, 3), size=16)
        alive = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2  # the first of each, which was asked for its orientation
