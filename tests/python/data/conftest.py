"""Videos whose frames show their own number: 2 x 4 fields, black or white, one for each bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch

FIELD = 16  # pixels


def number_picture(number: int) -> np.ndarray:
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4)
    return np.kron(bits * 255, np.ones((FIELD, FIELD), np.uint8))[..., None].repeat(3, -1)


def read_number(frame: torch.Tensor) -> int:
    """The number in frame [3, H, W], which may be scaled or cut to the square in its middle (fields 1, 2, 5, 6)."""
    height, width = frame.shape[-2:]
    columns = 4 * width // (2 * height)
    fields = frame.mean(0).unfold(0, height // 2, height // 2).unfold(1, width // columns, width // columns)
    bits = fields.mean((-1, -2)) > 0
    places = torch.arange(8).view(2, 4)[:, (4 - columns) // 2 : (4 + columns) // 2]
    return int((bits * 2**places).sum())


@pytest.fixture
def write_video():
    """Writes pictures [T, H, W, 3] with PyAV, one after the other or at times, in units of unit seconds or frames."""
    av = pytest.importorskip("av")

    def write(
        path,
        pictures,
        rate=25,
        codec="libx264",
        key_frames_every=12,
        times=None,
        unit=None,
        aspect=None,
        options=None,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = key_frames_every
            unit = unit or 1 / Fraction(rate)
            stream.codec_context.time_base = unit
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = times[i] if times else i, unit
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def write_numbers(write_video):
    """Writes a video that shows numbers, by default those of its frames."""

    def write(path, numbers=range(60), **arguments):
        return write_video(path, [number_picture(number) for number in numbers], **arguments)

    return write


@pytest.fixture
def read_numbers():
    return lambda video: [read_number(frame) for frame in video]
