"""VMonarchAttention: self-attention over all tokens of a video, Monarch-factorised (arXiv 2601.22275) or dense."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frameattn import functional
from frameattn.modules.attention import Projections

ATTENTIONS = ("vmonarch", "dense")


class VMonarchAttention(Projections):
    r"""``proj(attention(query, key, value))`` with query, key, value = ``qkv(x)``, over all tokens of a clip.

    Args:
        dim: D.
        num_heads: divides D; heads have d = D / num_heads channels, at most 256 for "vmonarch"; the logits are scaled
            by d^-0.5.
        bias: of the query, key and value projection.
        qk_norm: an RMSNorm over the d channels of a head (eps 1e-6), one for query and one for key, ahead of the
            rotary embedding.
        attention: "vmonarch", or "dense" for F.scaled_dot_product_attention. Both have the same parameters; assign to
            ``layer.attention`` to switch.
        iterations, dense_first_frame, mass_floor, workspace_bytes: of ``functional.vmonarch_attention``.

    Raises:
        ValueError: an argument does not fit; the message names what came.

    Examples:
        >>> import torch
        >>> layer = VMonarchAttention(384, 6, qk_norm=True)
        >>> layer(torch.randn(1, 8 * 6 * 10, 384), frames=8).shape
        torch.Size([1, 480, 384])
        >>> layer.attention = "dense"
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        qk_norm: bool = False,
        attention: str = "vmonarch",
        iterations: int = 2,
        dense_first_frame: bool = True,
        mass_floor: float = 0.1,
        workspace_bytes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dim, num_heads, bias, device, dtype)
        if iterations < 1:
            raise ValueError(f"VMonarchAttention: iterations must be at least 1, got {iterations}")
        if workspace_bytes is not None and workspace_bytes < 0:
            raise ValueError(f"VMonarchAttention: workspace_bytes must be at least 0, got {workspace_bytes}")
        if not mass_floor > 0:
            raise ValueError(f"VMonarchAttention: mass_floor must be more than 0, got {mass_floor}")
        self.attention = attention
        self.iterations, self.dense_first_frame, self.mass_floor = iterations, dense_first_frame, mass_floor
        self.workspace_bytes = workspace_bytes

        def norm() -> nn.RMSNorm | None:
            return nn.RMSNorm(dim // num_heads, eps=1e-6, device=device, dtype=dtype) if qk_norm else None

        self.norm_q, self.norm_k = norm(), norm()

    @property
    def attention(self) -> str:
        return self._attention

    @attention.setter
    def attention(self, attention: str) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"VMonarchAttention: attention must be one of {', '.join(ATTENTIONS)}, got {attention!r}")
        self._attention = attention

    def forward(self, x: Tensor, frames: int, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        r"""Attention of all tokens to all tokens.

        Args:
            x: [B, N, D], N = frames * S, tokens row-major over (frame, height, width).
            frames: T. With one frame both attentions are the same.
            rotary: cos and sin of the angles, each [N, d] or anything that broadcasts to [B, num_heads, N, d]. Channel
                c turns with channel c + d / 2 (the half-rotated form, not interleaved pairs): query and key become
                $x \cos + [-x_{d/2:}, x_{:d/2}] \sin$, so both halves of the last axis usually hold the same angles.
                Computed in the wider dtype of the two.

        Returns:
            [B, N, D].

        Raises:
            ValueError: a size does not fit; the message names what came.
        """
        if x.dim() != 3 or x.size(2) != self.qkv.in_features:
            raise ValueError(f"VMonarchAttention: x must be [B, N, {self.qkv.in_features}], got {list(x.shape)}")
        if frames < 1 or x.size(1) % frames:
            raise ValueError(f"VMonarchAttention: frames must divide the {x.size(1)} tokens of x, got {frames}")
        # [B, N, 3 D] -> three views [B, heads, N, d] of it
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.transpose(1, 3).unbind(2)
        if self.norm_q is not None and self.norm_k is not None:
            # In the dtype of the weight, which autocast does not see to.
            wide = self.norm_q.weight.dtype
            query, key = self.norm_q(query.to(wide)), self.norm_k(key.to(wide))
        if rotary is not None:
            cos, sin = rotary
            _check_rotary(cos, sin, query)
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        out = self.attend(query.to(value.dtype), key.to(value.dtype), value, frames)
        return self.proj(out.transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, frames: int) -> Tensor:
        if self.attention == "dense":
            return F.scaled_dot_product_attention(query, key, value)
        return functional.vmonarch_attention(
            query,
            key,
            value,
            frames,
            iterations=self.iterations,
            dense_first_frame=self.dense_first_frame,
            mass_floor=self.mass_floor,
            workspace_bytes=self.workspace_bytes,
        )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, attention={self.attention!r}, iterations={self.iterations}, "
            f"dense_first_frame={self.dense_first_frame}, mass_floor={self.mass_floor}"
        )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _check_rotary(cos: Tensor, sin: Tensor, query: Tensor) -> None:
    if query.size(3) % 2:
        raise ValueError(f"VMonarchAttention: rotary needs an even number of channels a head, got {query.size(3)}")
    for name, angles in (("cos", cos), ("sin", sin)):
        sizes = query.shape[4 - angles.dim() :] if angles.dim() <= 4 else ()
        if len(sizes) != angles.dim() or any(a not in (1, b) for a, b in zip(angles.shape, sizes, strict=True)):
            raise ValueError(
                f"VMonarchAttention: rotary {name} must be {list(query.shape[2:])} or broadcast to "
                f"{list(query.shape)}, got {list(angles.shape)}"
            )
