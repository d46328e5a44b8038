"""MatrixLinear: the parameters of Y = U^T X W + bias, with every form that FrameDiT gives to U and to the bias."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from frameattn import functional

U_TYPES = ("param", "softmax", "pure-softmax", "normalized_l1", "normalized_l2", "identity", "sparse")
BIAS_TYPES = ("matrix", "row", "col", "col_row")
_BIAS_RANK = 16  # of col_row


class MatrixLinear(nn.Module):
    r"""Linear map of frames from both sides: $Y = U^\top X W + \text{bias}$.

    Args:
        in_size: (N, D), tokens and channels of a frame X.
        out_size: (M, E), those of Y.
        bias: with False there is none.
        bias_type: ``matrix`` [M, E]; ``row`` [1, E]; ``col`` [M, 1]; ``col_row``, the product of ``bias_col`` [M, 16]
            and ``bias_row`` [16, E].
        u_type: what U is made of, all from a matrix ``u`` [N, M]:
            ``param`` u itself; ``softmax`` softmax(u / u_temperature) over the N tokens, with a learned
            ``u_temperature`` [1, M]; ``pure-softmax`` softmax(u); ``normalized_l1``, ``normalized_l2`` u divided by the
            norm of each column; ``identity`` a fixed unit matrix (N = M); ``sparse`` u inside a band, zero outside
            (N = M).
        sparse_bandwidth: of ``sparse``: row i keeps columns i - bandwidth // 2 .. i + bandwidth // 2 - 1.
        u_norm_eps_outside: how ``normalized_*`` is guarded: u / (norm + 1e-6), or with True u / norm + 1e-6, which the
            official files of FrameDiT-G and -H compute.

    Raises:
        ValueError: an unknown type, or N and M differ where they must not.

    Shapes: x [..., N, D] -> [..., M, E].

    Examples:
        >>> import torch
        >>> MatrixLinear((256, 384), (128, 384), u_type="softmax")(torch.randn(2, 16, 256, 384)).shape
        torch.Size([2, 16, 128, 384])
    """

    u: Tensor  # a buffer or a parameter
    u_mask: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_size: tuple[int, int],
        out_size: tuple[int, int],
        bias: bool = True,
        bias_type: str = "matrix",
        u_type: str = "param",
        sparse_bandwidth: int = 16,
        u_norm_eps_outside: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if u_type not in U_TYPES:
            raise ValueError(f"MatrixLinear: u_type must be one of {', '.join(U_TYPES)}, got {u_type!r}")
        if bias_type not in BIAS_TYPES:
            raise ValueError(f"MatrixLinear: bias_type must be one of {', '.join(BIAS_TYPES)}, got {bias_type!r}")
        (n, d), (m, e) = in_size, out_size
        if u_type in ("identity", "sparse") and n != m:
            raise ValueError(f"MatrixLinear: u_type {u_type!r} keeps the number of tokens, got {n} in and {m} out")
        if u_type == "sparse" and sparse_bandwidth < 2:
            raise ValueError(f"MatrixLinear: sparse_bandwidth must be at least 2, got {sparse_bandwidth}")
        self.in_size, self.out_size = (n, d), (m, e)
        self.u_type, self.bias_type = u_type, bias_type if bias else None
        self.u_norm_eps_outside = u_norm_eps_outside
        place: dict[str, Any] = {"device": device, "dtype": dtype}

        if u_type == "identity":
            self.register_buffer("u", torch.empty(n, n, **place))
        else:
            self.u = nn.Parameter(torch.empty(n, m, **place))
        if u_type == "softmax":
            self.u_temperature = nn.Parameter(torch.empty(1, m, **place))
        if u_type == "sparse":
            self.sparse_bandwidth = sparse_bandwidth
            self.register_buffer("u_mask", torch.empty(n, n, **place))
        self.w = nn.Parameter(torch.empty(d, e, **place))
        if self.bias_type == "col_row":
            self.bias_col = nn.Parameter(torch.empty(m, _BIAS_RANK, **place))
            self.bias_row = nn.Parameter(torch.empty(_BIAS_RANK, e, **place))
        elif self.bias_type:
            self.bias = nn.Parameter(torch.empty({"matrix": (m, e), "row": (1, e), "col": (m, 1)}[bias_type], **place))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """u and w Xavier uniform, bias zero, temperature one."""
        nn.init.xavier_uniform_(self.w)
        if self.u_type == "identity":
            nn.init.eye_(self.u)
        else:
            nn.init.xavier_uniform_(self.u)
        if self.u_type == "sparse":
            half = self.sparse_bandwidth // 2
            self.u_mask.fill_(1).triu_(-half).tril_(half - 1)
        if self.u_type == "softmax":
            nn.init.ones_(self.u_temperature)
        if self.bias_type == "col_row":
            nn.init.kaiming_uniform_(self.bias_col, a=math.sqrt(5))
            nn.init.zeros_(self.bias_row)
        elif self.bias is not None:
            nn.init.zeros_(self.bias)

    def mixing_matrix(self) -> Tensor:
        """U [N, M], as u_type makes it from the parameters."""
        match self.u_type:
            case "softmax":
                return torch.softmax(self.u / self.u_temperature, dim=0)
            case "pure-softmax":
                return torch.softmax(self.u, dim=0)
            case "normalized_l1" | "normalized_l2":
                norm = torch.linalg.vector_norm(self.u, ord=int(self.u_type[-1]), dim=0, keepdim=True)
                return self.u / norm + 1e-6 if self.u_norm_eps_outside else self.u / (norm + 1e-6)
            case "sparse":
                return self.u * self.u_mask
        return self.u

    def bias_matrix(self) -> Tensor | None:
        """The bias as the operator takes it: [M, E], [1, E], [M, 1] or None."""
        return self.bias_col @ self.bias_row if self.bias_type == "col_row" else self.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.matrix_linear(x, self.mixing_matrix(), self.w, self.bias_matrix())

    def extra_repr(self) -> str:
        return f"{self.in_size} -> {self.out_size}, u_type={self.u_type}, bias_type={self.bias_type}"
