"""Named problem sizes, so that tables, plots and words speak of the same thing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MatrixShape:
    """One Matrix Attention layer of FrameDiT: B clips of T frames, a frame is N tokens x D channels.

    S and XL are models of 256 px, T2V the text-to-video model of 512 px: 8,192 heads of 1 x 72.
    """

    name: str
    dim: int  # D
    row_heads: int
    batch: int = 1  # B
    frames: int = 16  # T
    tokens: int = 256  # N
    col_heads: int = 64
    qk_col_dim: int = 128
    v_col_dim: int = 512


MATRIX_SHAPES = {
    shape.name: shape
    for shape in (
        MatrixShape("S", dim=384, row_heads=6),
        MatrixShape("XL", dim=1152, row_heads=16),
        MatrixShape("T2V", dim=1152, row_heads=16, tokens=1024, col_heads=512, qk_col_dim=512, v_col_dim=1024),
        MatrixShape("tiny", 8, 2, batch=2, frames=3, tokens=4, col_heads=2, qk_col_dim=4, v_col_dim=8),  # for tests
    )
}


@dataclass(frozen=True)
class VideoShape:
    """Attention within a clip of frames x height x width tokens; the name says its grid and head dimension.

    Two heads are for two threads: backward of torch's dense attention gives a head to one thread (forward splits rows).
    """

    frames: int
    height: int
    width: int
    head_dim: int
    batch: int = 1
    heads: int = 2

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}-d{self.head_dim}"

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


VIDEO_GRIDS = ((8, 14, 26), (13, 30, 45), (16, 28, 52), (21, 30, 52))
VIDEO_LENGTHS = tuple(VideoShape(frames, 28, 52, head_dim=64) for frames in (8, 16, 32, 64))  # how time grows
# The spatial attention of FrameDiT-S and -XL, 16 frames at once, and of frames four times as large.
FRAMES = tuple(
    VideoShape(1, side, side, head_dim, batch, heads)
    for side, head_dim, batch, heads in ((16, 64, 16, 6), (16, 72, 16, 16), (32, 72, 16, 16))
)
VIDEO_SHAPES = {
    shape.name: shape
    for shape in (
        *(VideoShape(*grid, head_dim) for grid in VIDEO_GRIDS for head_dim in (64, 128)),
        *VIDEO_LENGTHS,
        *FRAMES,
        VideoShape(3, 2, 4, head_dim=8),  # for tests
        VideoShape(1, 2, 4, head_dim=8),
    )
}
