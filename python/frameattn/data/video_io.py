"""Video files: frames by their number, exactly, and GIF, MP4 and contact sheets of videos in -1..1.

Frame i of a file is the one on screen at i / rate, which for a constant rate is the i-th. Only formats that store
presentation times (MP4, MOV, Matroska, WebM) are entered at a key frame; others are decoded from the start and counted.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, pairwise
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frameattn._optional import require

TIMED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # as FFmpeg calls them
# FFmpeg's SWS_BICUBIC, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND, which PyAV has names for from version 17 on. Without
# the latter two the half resolution of colour is doubled, not interpolated, where a frame keeps its size.
SCALING = 0x4 | 0x2000 | 0x40000
GAP = 4  # white pixels between videos and between frames


class UnreadableVideo(ValueError):
    """A file is not a video that can be decoded, or ends too early."""


def count_frames(path: str | PathLike) -> int:
    """Frames of a file as its header has it, decoded and counted if the header says nothing.

    Raises:
        UnreadableVideo: the file holds no video.
    """
    with _open_video(path) as (container, stream):
        if stream.frames:
            return stream.frames
        seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000
        count = round(seconds * _rate(stream)) or sum(1 for _ in container.decode(stream))
    if not count:
        raise UnreadableVideo(f"{path}: holds no frame")
    return count


def read_video(path: str | PathLike, indices: Sequence[int] | None = None, size: int | None = None) -> Tensor:
    """Frames [T, 3, H, W] in -1..1 of a file: those of ascending indices, or all.

    Args:
        size: frames are scaled to this short side and cut to the square in their middle.

    Raises:
        UnreadableVideo: the file cannot be decoded or ends before the last index.
    """
    with _open_video(path) as (container, stream):
        frames = container.decode(stream) if indices is None else _pick_frames(container, stream, indices)
        images = [_to_image(frame, size) for frame in frames]
    if not images:
        raise UnreadableVideo(f"{path}: no frame can be decoded")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def enlarge(videos: Tensor, side: int = 128) -> Tensor:
    """Videos [K, T, C, H, W] in -1..1, an integer number of times larger where they are smaller than side."""
    factor = math.ceil(side / min(videos.shape[-2:]))
    if factor == 1:
        return videos.clamp(-1, 1)
    larger = F.interpolate(videos.flatten(0, 1).float(), scale_factor=factor, mode="bicubic")
    return larger.clamp(-1, 1).unflatten(0, videos.shape[:2])


def write_gif(path: str | PathLike, videos: Tensor, fps: float) -> None:
    """Writes videos [K, T, C, H, W] in -1..1, C 1 or 3, side by side as a GIF that repeats; 50 fps at most."""
    frames = _side_by_side(videos)
    # GIF counts hundredths of a second: rounding the moments, not the durations, keeps the mean rate right.
    moments = [round(100 * i / min(fps, 50)) for i in range(len(frames) + 1)]
    durations = [10 * (after - before) for before, after in pairwise(moments)]
    first, *others = (_to_picture(frame) for frame in frames)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def write_mp4(path: str | PathLike, videos: Tensor, fps: float) -> None:
    """Writes videos [K, T, C, H, W] in -1..1, C 1 or 3, side by side as H.264, which every browser plays."""
    av = require("av")
    if "libx264" not in av.codecs_available:
        raise RuntimeError("write_mp4 needs PyAV with libx264 (the wheels of PyPI have it): pip install --upgrade av")
    frames = _side_by_side(videos)
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")  # yuv420p has one colour for 2x2 pixels
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_to_rgb(frame), format="rgb24")))
        container.mux(stream.encode(None))


def write_contact_sheet(path: str | PathLike, videos: Tensor, labels: Sequence[int | None]) -> None:
    """Writes a PNG: a row for every video [K, T, C, H, W], at most 16 of its frames, its label on the left."""
    frames = videos.shape[1]
    chosen = torch.linspace(0, frames - 1, min(frames, 16)).round().long()
    pictures = _to_bytes(enlarge(_check_videos(videos)[:, chosen], side=64))
    height = pictures.shape[2]
    sheet = _to_picture(_tile(pictures.reshape(-1, 1, *pictures.shape[2:]), columns=len(chosen))[0])

    require("PIL.Image")
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=min(max(height // 4, 12), 24))
    texts = ["" if label is None else str(label) for label in labels]
    margin = math.ceil(max(font.getlength(text) for text in texts))
    margin += 4 * GAP if margin else 0
    page = Image.new(sheet.mode, (margin + sheet.width, sheet.height), "white")
    page.paste(sheet, (margin, 0))
    draw = ImageDraw.Draw(page)
    for row, text in enumerate(texts):
        draw.text((margin // 2, row * (height + GAP) + height // 2), text, fill="black", font=font, anchor="mm")
    page.save(path, format="PNG")


@contextmanager
def _open_video(path: str | PathLike) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever FFmpeg reports meanwhile names the file."""
    av = require("av")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableVideo(f"{path}: holds no video")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise UnreadableVideo(f"{path}: {error.strerror}") from error


def _rate(stream: Any) -> Fraction:
    """Frames a second. The mean alone would be off where the last frame's duration is; the guess, where rates vary."""
    guess, mean = stream.guessed_rate, stream.average_rate
    return mean if mean and (not guess or guess > 1.5 * mean) else guess or Fraction(25)


def _pick_frames(container: Any, stream: Any, indices: Sequence[int]) -> Iterator[Any]:
    """The frames of ascending indices."""
    remaining = list(reversed(indices))
    shown, position = None, -1
    for position, frame in _decode_from(container, stream, indices[0]):
        while remaining and remaining[-1] <= position:
            # A frame that comes late leaves the one before it on screen.
            yield frame if remaining.pop() == position or shown is None else shown
        if not remaining:
            return
        shown = frame
    # Headers count what sound adds at the end: hold the last frame, but no longer than a second.
    if shown is None or remaining[0] - position > _rate(stream):
        raise UnreadableVideo(f"{container.name}: ends after frame {position}, {remaining[0]} was asked for")
    yield from [shown] * len(remaining)


def _decode_from(container: Any, stream: Any, index: int) -> Iterator[tuple[int, Any]]:
    """Pairs of position and frame, the first at or before index."""
    if container.format.name not in TIMED_FORMATS:
        return enumerate(container.decode(stream))
    start, rate = stream.start_time or 0, _rate(stream)

    def decode() -> Iterator[tuple[int, Any]]:
        return ((round((f.pts - start) * stream.time_base * rate), f) for f in container.decode(stream))

    for seconds in (0, 1, 10):  # files say which frames are key frames in decoding order: one may come after index
        container.seek(start + int((index / rate - seconds) / stream.time_base), stream=stream)
        frames = decode()
        first = next(frames, None)
        if first and first[0] <= index:
            return chain([first], frames)
    container.seek(start, stream=stream)
    return decode()


def _to_image(frame: Any, size: int | None) -> np.ndarray:
    """A decoded frame as bytes [H, W, 3], upright."""
    height, width = frame.height, frame.width
    if size:
        short = min(height, width)
        height, width = (max(size, round(side * size / short)) for side in (height, width))
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=SCALING)
    image = np.rot90(image, frame.rotation // 90)  # phones store how they were held
    if size:
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        image = image[top : top + size, left : left + size]
    return image


def _check_videos(videos: Tensor) -> Tensor:
    if videos.ndim != 5 or videos.shape[2] not in (1, 3) or not videos.numel():
        raise ValueError(f"videos must be [K, T, C, H, W] with C 1 or 3, got {list(videos.shape)}")
    return videos


def _to_bytes(videos: Tensor) -> np.ndarray:
    """[K, T, C, H, W] in -1..1 -> bytes [K, T, H, W, C]."""
    return ((videos.float() + 1) * 127.5).round().byte().movedim(2, -1).cpu().numpy()


def _side_by_side(videos: Tensor) -> np.ndarray:
    """Frames [T, H, W, C] of all videos [K, T, C, H, W] in a nearly square grid."""
    pictures = _to_bytes(enlarge(_check_videos(videos)))
    side = math.ceil(math.sqrt(len(videos)))
    return _tile(pictures, columns=min(side, side + 1, key=lambda columns: -len(videos) % columns))  # few empty places


def _tile(videos: np.ndarray, columns: int) -> np.ndarray:
    """[K, T, H, W, C] -> [T, rows H, columns W, C] with gaps."""
    count, frames, height, width, channels = videos.shape
    rows = math.ceil(count / columns)
    shape = (frames, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels)
    grid = np.full(shape, 255, np.uint8)
    for k, video in enumerate(videos):
        top, left = k // columns * (height + GAP), k % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = video
    return grid


def _to_picture(frame: np.ndarray) -> Any:
    return require("PIL.Image").fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    return np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame
