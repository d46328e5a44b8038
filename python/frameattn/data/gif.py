"""A GIF with every frame in it. Pillow's own writer joins frames that are equal, so that reading gives fewer."""

from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np

from frameattn._optional import require


def save_gif(path: str | PathLike, frames: np.ndarray, delays: Sequence[int]) -> None:
    """Writes frames [T, H, W, C], bytes, C 1 or 3, as a GIF that repeats; delays are hundredths of a second.

    Of every frame but the first only the box that changes is stored, of an equal one a single transparent pixel.
    """
    height, width = frames.shape[1:3]
    repeat = b"\x21\xff\x0bNETSCAPE2.0" + pack("<BBHB", 3, 1, 0, 0)
    parts = [b"GIF89a" + pack("<HHBBB", width, height, 0x70, 0, 0), repeat]
    for t, (frame, delay) in enumerate(zip(frames, delays, strict=True)):
        top, left, bottom, right = _changed_box(frames[t - 1], frame) if t else (0, 0, height, width)
        equal = bottom == 0
        part = np.zeros_like(frame[:1, :1]) if equal else frame[top:bottom, left:right]
        # 1 << 2: the next is drawn over it; 1: colour 0, which is the black of an equal frame, is transparent
        parts.append(b"\x21\xf9" + pack("<BBHBB", 4, 1 << 2 | equal, delay, 0, 0))
        parts.append(_image(to_picture(part), left, top))
    Path(path).write_bytes(b"".join([*parts, b";"]))


def to_picture(frame: np.ndarray) -> Any:
    """A frame [H, W, C] as Pillow's image."""
    return require("PIL.Image").fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def _changed_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the pixels that differ, all 0 where none does."""
    changed = (before != after).any(-1)
    if not changed.any():
        return 0, 0, 0, 0
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _image(picture: Any, left: int, top: int) -> bytes:
    """A picture as GIF's image block: its place, its colours and its pixels as Pillow compresses them."""
    with BytesIO() as file:
        picture.save(file, format="GIF")
        data = file.getvalue()
    table_bits = data[10] & 0b111  # of the file's header, whose table is for all images: it becomes that of this one
    end_of_table = 13 + (3 << (table_bits + 1))
    if data[end_of_table] != ord(","):
        raise RuntimeError("write_gif: Pillow wrote something before the image")
    interlaced = data[end_of_table + 9] & 0x40
    place = pack("<HHHHB", left, top, *picture.size, 0x80 | interlaced | table_bits)
    return b"," + place + data[13:end_of_table] + data[end_of_table + 10 : -1]
