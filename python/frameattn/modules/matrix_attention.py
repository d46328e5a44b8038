"""MatrixAttention: attention over frames whose queries, keys and values are matrices (arXiv 2603.09721)."""

import torch
from torch import Tensor, nn

from frameattn import functional
from frameattn.modules.matrix_linear import MatrixLinear


class MatrixAttention(nn.Module):
    """Self-attention over the T frames of a clip, with frames as matrices of N tokens and D channels.

    Query and key are frames mixed to ``qk_col_dim`` tokens, values to ``v_col_dim``; heads split both axes; the result
    is mixed back to N tokens: ``proj_v(matrix_attention(linear_q(x), linear_k(x), linear_v(x)))``.

    Args:
        dim: D.
        num_tokens: N.
        qk_col_dim, v_col_dim: tokens of query and key, and of value; ``num_col_heads`` divides both.
        num_row_heads: splits the channels; divides ``dim``.
        num_col_heads: splits the tokens.
        bias, bias_type, u_type, sparse_bandwidth, u_norm_eps_outside: of the four ``MatrixLinear``.

    Raises:
        ValueError: heads do not divide.

    Shapes: x [B, T, N, D] -> [B, T, N, D].

    Examples:
        >>> import torch
        >>> layer = MatrixAttention(384, 256, qk_col_dim=128, v_col_dim=512, num_row_heads=6, num_col_heads=64)
        >>> layer(torch.randn(1, 16, 256, 384)).shape
        torch.Size([1, 16, 256, 384])
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        qk_col_dim: int,
        v_col_dim: int,
        num_row_heads: int,
        num_col_heads: int,
        bias: bool = True,
        bias_type: str = "matrix",
        u_type: str = "param",
        sparse_bandwidth: int = 16,
        u_norm_eps_outside: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for what, size, heads in (
            ("num_row_heads must divide dim", dim, num_row_heads),
            ("num_col_heads must divide qk_col_dim", qk_col_dim, num_col_heads),
            ("num_col_heads must divide v_col_dim", v_col_dim, num_col_heads),
        ):
            if heads < 1 or size % heads:
                raise ValueError(f"MatrixAttention: {what} = {size}, got {heads}")
        self.num_row_heads, self.num_col_heads = num_row_heads, num_col_heads

        def linear(tokens_in: int, tokens_out: int) -> MatrixLinear:
            return MatrixLinear(
                (tokens_in, dim),
                (tokens_out, dim),
                bias=bias,
                bias_type=bias_type,
                u_type=u_type,
                sparse_bandwidth=sparse_bandwidth,
                u_norm_eps_outside=u_norm_eps_outside,
                device=device,
                dtype=dtype,
            )

        self.linear_q = linear(num_tokens, qk_col_dim)
        self.linear_k = linear(num_tokens, qk_col_dim)
        self.linear_v = linear(num_tokens, v_col_dim)
        self.proj_v = linear(v_col_dim, num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.linear_q(x), self.linear_k(x), self.linear_v(x)
        return self.proj_v(functional.matrix_attention(query, key, value, self.num_row_heads, self.num_col_heads))

    def extra_repr(self) -> str:
        return f"num_row_heads={self.num_row_heads}, num_col_heads={self.num_col_heads}"
