"""Named problem sizes, so that tables, plots and words speak of the same thing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MatrixShape:
    """One Matrix Attention layer of FrameDiT at 256 px: B clips of T frames, a frame is N tokens x D channels."""

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
        MatrixShape("tiny", 8, 2, batch=2, frames=3, tokens=4, col_heads=2, qk_col_dim=4, v_col_dim=8),  # for tests
    )
}
