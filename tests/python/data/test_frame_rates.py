"""The same motion is as fast from every file: a bar that crosses at 24 columns a second, whatever the file's rate."""

import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("PIL")

import av
from PIL import Image

from frameattn.data import MovingDigits, create_dataset
from frameattn.data.decoding import UnreadableVideo, count_frames, probe_video, read_video
from frameattn.data.gif import to_picture
from frameattn.data.video_folder import VideoFolder

SPEED = 24  # columns a second


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bar(seconds):
    """A picture of 64 columns with a white bar of 8, whose middle is at column 8 + SPEED seconds."""
    columns = np.arange(64) + 0.5
    inside = np.clip(4.5 - np.abs(columns - 8 - SPEED * seconds), 0, 1)
    return np.repeat(np.repeat((255 * inside).astype(np.uint8)[None, :, None], 64, 0), 3, -1)


def middles(clip):
    """The column of the bar's middle in every frame of clip [T, 3, 64, 64]."""
    brightness = (clip.mean((1, 2)).double() + 0.9).clamp(min=0)
    return (brightness * (torch.arange(64) + 0.5)).sum(-1) / brightness.sum(-1)


def slope(values):
    """Of the straight line through values, a step."""
    steps = torch.arange(len(values)).double()
    steps -= steps.mean()
    return float((steps * values).sum() / steps.square().sum())


def write_bar(write_video, path, moments, **arguments):
    """The bar of two seconds, its frames at moments in seconds."""
    if path.suffix == ".gif":
        delays = [round(1000 * (after - before)) for before, after in pairwise([*moments, 2.0])]
        first, *others = (to_picture(bar(t)) for t in moments)
        first.save(path, save_all=True, append_images=others, duration=delays, loop=0)
        return path
    times = [round(1000 * t) for t in moments]
    return write_video(path, [bar(t) for t in moments], times=times, unit=Fraction(1, 1000), **arguments)


def evenly(rate):
    return [i / rate for i in range(int(2 * rate))]


def jittered():
    draw = np.random.default_rng(0)
    return [0.0, *((i + draw.uniform(-0.25, 0.25)) / 30 for i in range(1, 60))]


FILES = {
    "slow.mp4": (evenly(12), {}),
    "fast.mp4": (evenly(60), {}),
    "fast.mkv": (evenly(60), {}),
    "ntsc.webm": (
        evenly(29.97),
        dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    ),
    "phone.mp4": (jittered(), {}),
    "phone.mkv": (jittered(), {}),
    "phone.flv": (jittered(), dict(codec="flv")),
    "phone.wmv": (jittered(), dict(codec="wmv2")),
    "two_rates.mp4": ([i / 50 for i in range(50)] + [1 + i / 20 for i in range(20)], {}),
    "two_rates.mkv": ([i / 50 for i in range(50)] + [1 + i / 20 for i in range(20)], {}),
    "clip.gif": (evenly(20), {}),
}


@pytest.mark.parametrize("fps", [5, 10, 24])
@pytest.mark.parametrize("name", FILES)
def test_fps_makes_motion_as_fast_from_every_file(name, fps, tmp_path, write_video):
    moments, arguments = FILES[name]
    if arguments.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"PyAV without {arguments['codec']}")
    write_bar(write_video, tmp_path / name, moments, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that frames repeat, from 12 a second to 24
        dataset = VideoFolder(tmp_path, size=64, fps=fps)
    frames = round(1.5 * fps)
    clips, _ = dataset.draw(4, frames, seeded())
    longest = max(after - before for before, after in pairwise(moments))
    for clip in clips:
        columns = middles(clip)
        assert slope(columns) == pytest.approx(SPEED / fps, rel=0.05)
        steps = columns.diff()
        assert (steps - SPEED / fps).abs().max() < SPEED * longest + 0.5  # no frame is off by more than one of the file


@pytest.mark.parametrize("name", ["slow.mp4", "fast.mp4", "two_rates.mkv", "clip.gif"])
def test_read_video_by_time(name, tmp_path, write_video):
    moments, arguments = FILES[name]
    path = write_bar(write_video, tmp_path / name, moments, **arguments)
    expected = 8 + 24 / 10 * torch.arange(20)
    for video, columns in (
        (read_video(path, fps=10), expected),
        (read_video(path, [3, 8, 18], fps=10), expected[[3, 8, 18]]),
    ):
        assert len(video) == len(columns) and (middles(video) - columns).abs().max() < 24 / 12 / 2 + 0.5
    with pytest.raises(ValueError, match="fps must be a number of more than 0, got 0"):
        read_video(path, fps=0)


def test_without_fps_rates_that_differ_are_named_once(tmp_path, write_video):
    for name, rate in (("slow.mp4", 12), ("middle.mp4", 25), ("fast.mp4", 60)):
        write_bar(write_video, tmp_path / "deep" / name, evenly(rate))
    with pytest.warns(UserWarning, match="frame rates differ") as caught:
        dataset = VideoFolder(tmp_path, size=64, frame_interval=1)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "deep/slow.mp4, 12 frames a second" in message and "deep/fast.mp4, 60 frames a second" in message
    assert "middle" not in message and "set data.fps" in message
    assert dataset.frame_rate == 25
    slopes = sorted({round(slope(middles(clip)), 1) for clip in dataset.draw(20, 12, seeded())[0]})
    assert slopes == pytest.approx([24 / 60, 24 / 25, 2.0], abs=0.06)  # as the files are


@pytest.mark.parametrize("others", [{"b.mp4": 36}, {"b.mp4": 30, "c.mp4": 25}])
def test_rates_that_hardly_differ_are_no_warning(others, tmp_path, write_video):
    for name, rate in {"a.mp4": 24, **others}.items():
        write_bar(write_video, tmp_path / name, evenly(rate))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoFolder(tmp_path, size=64)


def test_fps_that_files_do_not_have_is_a_warning(tmp_path, write_video):
    for name, rate in (("slow.mp4", 12), ("fast.mp4", 60)):
        write_bar(write_video, tmp_path / name, evenly(rate))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoFolder(tmp_path, size=64, fps=12)
    with pytest.warns(UserWarning, match=r"1 of 2 videos have fewer frames than fps 30 asks for, .* slow.mp4, 12"):
        VideoFolder(tmp_path, size=64, fps=30)


def test_rate_of_the_clips(tmp_path, write_video):
    write_bar(write_video, tmp_path / "a.mp4", evenly(24))
    assert VideoFolder(tmp_path).frame_rate == 8  # every third
    assert VideoFolder(tmp_path, frame_interval=2).frame_rate == 12
    assert create_dataset(str(tmp_path), fps=7.5).frame_rate == 7.5
    assert not hasattr(MovingDigits(), "frame_rate")  # nobody knows how fast a digit is


def test_every_start_of_a_clip_is_drawn(tmp_path, write_video):
    write_bar(write_video, tmp_path / "a.mp4", evenly(12))  # 24 frames
    dataset = VideoFolder(tmp_path, size=64, fps=4)
    assert {round(float(middles(clip)[0])) for clip in dataset.draw(40, 8, seeded())[0]} == {8, 10, 12}
    with pytest.raises(ValueError, match=r"a clip spans 25 frames, but the longest video has 24 \(a.mp4, 12 frames a"):
        dataset.draw(1, 9, seeded())


def test_longest_video_is_that_of_the_most_seconds(tmp_path, write_video):
    write_bar(write_video, tmp_path / "fast.mp4", evenly(60)[:90])  # 1.5 s
    write_bar(write_video, tmp_path / "slow.mp4", evenly(12))
    with pytest.raises(
        ValueError,
        match=r"spans 48 frames, but the longest video has 24 \(slow.mp4, 12 frames a second\): "
        r"ask for fewer frames, now 48, or a higher data.fps, now 12$",
    ):
        VideoFolder(tmp_path, size=64, fps=12).long_enough(48)
    dataset = VideoFolder(tmp_path, size=64, fps=12)
    with pytest.warns(UserWarning, match=r"fast.mp4: has 90 frames, but a clip spans 116"):
        assert [video.path.name for video in dataset.long_enough(24)] == ["slow.mp4"]


@pytest.mark.parametrize("fps", [0, -5, float("nan"), float("inf"), "fast", True])
def test_rejects_bad_fps(fps, tmp_path):
    with pytest.raises(ValueError, match=f"fps must be a number of more than 0, got {fps!r}"):
        VideoFolder(tmp_path, fps=fps)


def test_fps_and_frame_interval_exclude_one_another(tmp_path):
    with pytest.raises(ValueError, match="fps 8 and frame_interval 3 exclude one another: make one of them null"):
        VideoFolder(tmp_path, fps=8, frame_interval=3)


def test_file_without_a_rate(tmp_path, write_video):
    """Its header knows the tick of the clock alone, of which FFmpeg makes 1,000 frames a second."""
    path = write_bar(write_video, tmp_path / "a.wmv", jittered(), codec="wmv2")
    count, rate = probe_video(path)
    assert count == 60 and float(rate) == pytest.approx(30, rel=0.01)


def test_last_frame_may_stay_long(tmp_path, write_video):
    """For four seconds, in a GIF and in an MP4; but of a file that was cut nothing is made up."""
    pictures = [to_picture(bar(t / 10)) for t in range(10)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100] * 9 + [4000])
    assert count_frames(tmp_path / "a.gif") == 49
    assert (middles(read_video(tmp_path / "a.gif"))[9:] - middles(read_video(tmp_path / "a.gif", [9]))).abs().max() == 0
    assert len(read_video(tmp_path / "a.gif")) == 49
    path = write_video(tmp_path / "a.mp4", [bar(t / 10) for t in range(20)], rate=10, key_frames_every=1)
    with pytest.raises(UnreadableVideo, match="ends after frame 19, 40 was asked for"):
        read_video(path, [40])


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_read_by_time_ends_with_the_video(name, tmp_path):
    """The sound of the file is three seconds longer."""
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=48000)
        for t in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bar(t / 10), format="rgb24")))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        for i in range(5 * 48000 // 1024):
            silence.pts = 1024 * i
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert len(read_video(tmp_path / name, fps=5)) in (10, 11)
    assert len(read_video(tmp_path / name, fps=10)) in (20, 21)
    assert (middles(read_video(tmp_path / name, fps=10))[:20] - 8 - 2.4 * torch.arange(20)).abs().max() < 0.3


def test_gif_whose_equal_frames_were_joined(tmp_path):
    """Pillow makes 6 frames of 11, of which one stays longer."""
    pictures = [to_picture(bar(t / 8)) for t in (0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5)]
    delays = [120 if t % 2 else 130 for t in range(11)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=delays)
    assert Image.open(tmp_path / "a.gif").n_frames == 6
    count, rate = probe_video(tmp_path / "a.gif")
    assert count == 11 and float(rate) == pytest.approx(8, rel=0.01)
    expected = 8 + 3 * torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5])
    assert (middles(read_video(tmp_path / "a.gif")) - expected).abs().max() < 0.1
    assert (middles(read_video(tmp_path / "a.gif", range(2, 11, 3))) - expected[2::3]).abs().max() < 0.1
    assert count_frames(tmp_path / "a.gif") == 11
