"""Video files: reading (decoding.py), and GIF, MP4 and contact sheets of videos in -1..1."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from os import PathLike

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frameattn._optional import require
from frameattn.data.decoding import UnreadableVideo, count_frames, read_video
from frameattn.data.gif import save_gif, to_picture

__all__ = [
    "UnreadableVideo",
    "count_frames",
    "enlarge",
    "read_video",
    "write_contact_sheet",
    "write_gif",
    "write_mp4",
]

GAP = 4  # white pixels between videos and between frames
# Without tags players guess, most by the height of the picture.
COLOURS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}


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
    save_gif(path, frames, [after - before for before, after in pairwise(moments)])


def write_mp4(path: str | PathLike, videos: Tensor, fps: float) -> None:
    """Writes videos [K, T, C, H, W] in -1..1, C 1 or 3, side by side as H.264, which every browser plays.

    Colours are those of BT.709 in limited range, and the file says so.
    """
    av = require("av")
    if "libx264" not in av.codecs_available:
        raise RuntimeError("write_mp4 needs PyAV with libx264 (the wheels of PyPI have it): pip install --upgrade av")
    frames = _side_by_side(videos)
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")  # yuv420p has one colour for 2x2 pixels
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", **COLOURS})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(_to_rgb(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_contact_sheet(path: str | PathLike, videos: Tensor, labels: Sequence[int | str | None]) -> None:
    """Writes a PNG: a row for every video [K, T, C, H, W], at most 16 of its frames, its label on the left."""
    frames = videos.shape[1]
    chosen = torch.linspace(0, frames - 1, min(frames, 16)).round().long()
    pictures = _to_bytes(enlarge(_check_videos(videos)[:, chosen], side=64))
    height = pictures.shape[2]
    sheet = to_picture(_tile(pictures.reshape(-1, 1, *pictures.shape[2:]), columns=len(chosen))[0])

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


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    return np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame
