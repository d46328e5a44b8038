"""Frames of video files by their number or by time, upright and with square pixels.

Frame i of a file is the one on screen at i / rate, which for a constant rate is the i-th. Formats that store
presentation times (MP4, MOV, Matroska, WebM) are entered at a key frame; of others with reliable times (GIF, FLV, WMV)
these count as well, from the start; the rest are decoded from the start and counted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frameattn._optional import require

ENTERED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # as FFmpeg calls them
TIMED_FORMATS = (*ENTERED_FORMATS, "gif", "flv", "asf")
# FFmpeg's SWS_BICUBIC, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND, which PyAV has names for from version 17 on. Without
# the latter two the half resolution of colour is doubled, not interpolated, where a frame keeps its size.
SCALING = 0x4 | 0x2000 | 0x40000
MAX_GUESS = 240  # where FFmpeg guesses more frames a second, it is the tick of the file's clock
RGB, UNKNOWN, FULL = 0, 2, 2  # FFmpeg's AVCOL_SPC_RGB, AVCOL_SPC_UNSPECIFIED and AVCOL_RANGE_JPEG
HALF = Fraction(1, 2)

Rational = int | Fraction


class UnreadableVideo(ValueError):
    """A file is not a video that can be decoded, or ends too early."""


def probe_video(path: str | PathLike) -> tuple[int, Fraction]:
    """Number of frames and frames a second of a file as its header has them, decoded and counted if it says nothing.

    Where the rate varies, frames are those that are on screen at 0, 1 / rate, 2 / rate, ...

    Raises:
        UnreadableVideo: the file holds no video.
    """
    with _open_video(path) as (container, stream, rate):
        count = _count_in_header(container, stream, rate) or sum(1 for _ in container.decode(stream))
    if not count:
        raise UnreadableVideo(f"{path}: holds no frame")
    return count, rate


def check_fps(fps: float) -> Fraction:
    """Frames a second as an exact number; ValueError if they are none."""
    number = isinstance(fps, (int, float, Fraction)) and not isinstance(fps, bool)
    if not number or not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number of more than 0, got {fps!r}")
    return Fraction(str(fps))


def count_frames(path: str | PathLike) -> int:
    """Frames of a file, as probe_video has them."""
    return probe_video(path)[0]


def read_video(
    path: str | PathLike,
    indices: Sequence[Rational] | None = None,
    size: int | None = None,
    fps: float | None = None,
) -> Tensor:
    """Frames [T, 3, H, W] in -1..1 of a file: those of ascending indices, or all that are stored.

    A GIF may store a frame that repeats as one that stays longer: without indices it is repeated.

    Oblong pixels (sample aspect ratio) are made square: the side of which they have too few is scaled up.

    Args:
        indices: may be fractions: the frame that is nearest, but none that comes more than half a frame later.
        size: frames are scaled to this short side and cut to the square in their middle.
        fps: frames are those of a file of so many a second: index i is what is on screen at i / fps.

    Raises:
        ValueError: fps is no number of more than 0.
        UnreadableVideo: the file cannot be decoded or ends before the last index.
    """
    with _open_video(path) as (container, stream, rate):
        aspect = stream.sample_aspect_ratio or Fraction(1)  # 0 / 1: not known
        step = 1 if fps is None else rate / check_fps(fps)
        if indices is not None:
            frames = _pick_frames(container, stream, rate, [index * step for index in indices])
        elif fps is not None or container.format.name == "gif":
            count = math.ceil((probe_video(path)[0] - HALF) / step)
            frames = _pick_frames(container, stream, rate, [i * step for i in range(count)], to_end=True)
        else:
            frames = container.decode(stream)
        # Of this call: one that a frame keeps may be freed in a process that is forked later, which would hang.
        reformat = require("av.video.reformatter").VideoReformatter().reformat
        images: list[np.ndarray] = []
        mirrored = False
        for frame in frames:
            if not images:  # asking makes a frame refer to itself: it would stay until the garbage is collected
                mirrored = _is_mirrored(frame)
            images.append(_to_image(frame, reformat, aspect, size, mirrored))
    if not images:
        raise UnreadableVideo(f"{path}: no frame can be decoded")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@contextmanager
def _open_video(path: str | PathLike) -> Iterator[tuple[Any, Any, Fraction]]:
    """The container, its first video stream and frames a second; what FFmpeg reports meanwhile names the file."""
    av = require("av")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableVideo(f"{path}: holds no video")
            stream = container.streams.video[0]
            yield container, stream, _rate(path, container, stream)
    except av.FFmpegError as error:
        raise UnreadableVideo(f"{path}: {error.strerror}") from error


def _count_in_header(container: Any, stream: Any, rate: Fraction) -> int:
    """Frames on screen at 0, 1 / rate, ... as the header has them, 0 if it says nothing."""
    seconds = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 10**6)
    by_time = round(seconds * rate)
    if container.format.name == "gif":
        return by_time
    # Elsewhere the duration of the last frame may be anything: a difference of one frame is none.
    varies = container.format.name in TIMED_FORMATS and stream.duration and abs(by_time - stream.frames) > 1
    return by_time if varies or not stream.frames else stream.frames


def _rate(path: str | PathLike, container: Any, stream: Any) -> Fraction:
    """Frames a second. The mean alone would be off where the last frame's duration is; the guess, where rates vary."""
    if container.format.name == "gif":
        return _gif_rate(path)
    guess: Fraction | None = stream.guessed_rate
    mean: Fraction | None = stream.average_rate
    if not mean and guess and guess > MAX_GUESS:
        return _mean_rate(path)
    return mean if mean and (not guess or guess > 1.5 * mean) else guess or Fraction(25)


def _packets(path: str | PathLike) -> tuple[list[Any], Fraction]:
    """The packets of the video, not decoded, and the unit of their times in seconds."""
    with require("av").open(str(path)) as container:
        stream = container.streams.video[0]
        unit: Fraction = stream.time_base
        return [packet for packet in container.demux(stream) if packet.pts is not None], unit


def _mean_rate(path: str | PathLike) -> Fraction:
    """Frames a second on average, of a file whose header does not know."""
    packets, unit = _packets(path)
    times: list[int] = [packet.pts for packet in packets]
    return (len(times) - 1) / ((max(times) - min(times)) * unit) if len(set(times)) > 1 else Fraction(25)


def _gif_rate(path: str | PathLike) -> Fraction:
    """Frames a second of a GIF, in which a frame that does not change may be one that stays longer."""
    packets, unit = _packets(path)
    delays = [packet.duration for packet in packets if packet.duration]
    if not delays:
        return Fraction(25)
    # Delays are hundredths, so that those of one frame differ: 12 and 13 for 8 frames a second.
    single = [delay for delay in delays if 2 * delay < 3 * min(delays)]
    counts = [round(Fraction(delay * len(single), sum(single))) or 1 for delay in delays]
    return sum(counts) / (sum(delays) * unit)


def _pick_frames(
    container: Any, stream: Any, rate: Fraction, indices: Sequence[Rational], to_end: bool = False
) -> Iterator[Any]:
    """The frames of ascending indices; to_end: those that the file has."""
    remaining = list(reversed(indices))
    shown, shown_at = None, Fraction(-1)
    for at, frame in _decode_from(container, stream, rate, indices[0]):
        while remaining and remaining[-1] <= at:
            index = remaining.pop()
            # A frame that comes late leaves the one before it on screen.
            yield frame if shown is None or at - index <= min(HALF, index - shown_at) else shown
        if not remaining:
            return
        shown, shown_at = frame, at
    # Headers count what sound adds at the end: hold the last frame, but only a second longer than it says. A GIF has
    # no sound, and frames of PyAV 14 do not say it.
    unit: Fraction = stream.time_base * rate
    end = stream.duration * unit if container.format.name == "gif" else shown_at + getattr(shown, "duration", 0) * unit
    if to_end:
        remaining = [index for index in remaining if index < end]
    elif shown is None or remaining[0] > end + max(rate, Fraction(1)):
        raise UnreadableVideo(
            f"{container.name}: ends after frame {round(shown_at)}, {math.floor(remaining[0])} was asked for"
        )
    yield from [shown] * len(remaining)


def _decode_from(container: Any, stream: Any, rate: Fraction, index: Rational) -> Iterator[tuple[Fraction, Any]]:
    """Pairs of position and frame, the first at or before index."""
    start = stream.start_time or 0

    def decode() -> Iterator[tuple[Fraction, Any]]:
        return ((Fraction((f.pts - start) * stream.time_base * rate), f) for f in container.decode(stream))

    if container.format.name not in TIMED_FORMATS:
        return ((Fraction(i), frame) for i, frame in enumerate(container.decode(stream)))
    if container.format.name not in ENTERED_FORMATS:
        return decode()
    for seconds in (0, 1, 10):  # files say which frames are key frames in decoding order: one may come after index
        container.seek(start + int((index / rate - seconds) / stream.time_base), stream=stream)
        frames = decode()
        first = next(frames, None)
        if first and first[0] <= index + HALF:  # stored times are rounded
            return chain([first], frames)
    container.seek(start, stream=stream)
    return decode()


def _to_image(
    frame: Any, reformat: Callable[..., Any], aspect: Fraction, size: int | None, mirrored: bool
) -> np.ndarray:
    """A decoded frame, whose pixels are aspect times as wide as high, as bytes [H, W, 3], upright."""
    height, width = frame.height * max(1, 1 / aspect), frame.width * max(1, aspect)
    scale = size / min(height, width) if size else 1
    height, width = (max(size or 1, round(side * scale)) for side in (height, width))
    colours = {}
    if frame.colorspace not in (RGB, UNKNOWN):  # PyAV 14 does not convert what it takes for the same on both sides
        span = "JPEG" if frame.color_range == FULL else "MPEG"
        colours = {"src_color_range": span, "dst_color_range": "JPEG", "dst_colorspace": "ITU601"}
    rgb = reformat(frame, format="rgb24", width=width, height=height, interpolation=SCALING, **colours)
    image = rgb.to_ndarray()
    quarters = round(frame.rotation / 90)  # phones store how they were held
    image = np.rot90(image, quarters)
    if mirrored:
        image = image[:, ::-1] if quarters % 2 else image[::-1]
    if size:
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        image = image[top : top + size, left : left + size]
    return image


def _is_mirrored(frame: Any) -> bool:
    """Whether the file asks for that beside a rotation, which frame.rotation does not say."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)  # [[a, b, u], [c, d, v], [x, y, w]]
    return a * d < b * c
