"""What our operators compute, from the formulas in csrc/*/README.md: plain torch, for float64, whatever it costs.

Written for the stage `operators` alone: frameattn.reference serves the tests, and what both had wrong nobody would see.
Names and parameters are the operators'. Letters: frames l and k, positions j of queries and i of keys.
"""

import torch
from torch import Tensor

NEVER = -1e300  # the logit of a key that takes no part: finite, so that gradients are


def matrix_linear(x: Tensor, u: Tensor | None, w: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    y = x @ w if u is None else torch.einsum("nm,...nd,de->...me", u, x, w)
    return {"out": y if bias is None else y + bias}


def matrix_attention(
    query: Tensor, key: Tensor, value: Tensor, row_heads: int, col_heads: int, scale: float | None = None
) -> dict[str, Tensor]:
    """A head (c, r) has n rows and d columns of each frame."""
    q, k, v = (x.unflatten(2, (col_heads, -1)).unflatten(4, (row_heads, -1)) for x in (query, key, value))
    scale = (q.size(3) * q.size(5)) ** -0.5 if scale is None else scale
    weights = torch.softmax(scale * torch.einsum("btcnrd,bscnrd->bcrts", q, k), dim=-1)
    return {"out": torch.einsum("bcrts,bscnrd->btcnrd", weights, v).flatten(4).flatten(2, 3)}


def spatial_step(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    frames: int,
    scale: float,
    weigh_keys: bool,
    key_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    u, k = (x.unflatten(2, (frames, -1)) for x in (query, key))
    x = scale * torch.einsum("bhkjd,bhkid->bhkji", u, k)
    if key_mask is not None:
        x = x.masked_fill(~key_mask.unflatten(1, (frames, -1))[:, None, :, None], NEVER)
    weights = torch.softmax(x, dim=-1)
    results = {"weighted_key": scale * weights @ k} if weigh_keys else {}
    if value is not None:
        results["weighted_value"] = weights @ value.unflatten(2, (frames, -1))
    return {name: y.flatten(2, 3) for name, y in (*results.items(), ("lse", torch.logsumexp(x, dim=-1)))}


def temporal_update(
    query: Tensor, weighted_key: Tensor, entropy: Tensor, frames: int, mass_floor: float
) -> dict[str, Tensor]:
    q, x = temporal_logits(query, weighted_key, entropy, frames)
    weights = torch.softmax(x, dim=-1)
    mass = torch.einsum("bhjlk->bhkj", weights)
    surrogate = torch.einsum("bhjlk,bhljd->bhkjd", weights, q) / mass.clamp(min=mass_floor).unsqueeze(-1)
    return {"surrogate": surrogate.flatten(2, 3), "mass": mass.flatten(2, 3).detach()}


def temporal_output(
    query: Tensor, weighted_key: Tensor, entropy: Tensor, value: Tensor, frames: int
) -> dict[str, Tensor]:
    _, x = temporal_logits(query, weighted_key, entropy, frames)
    out = torch.einsum("bhjlk,bhkjd->bhljd", torch.softmax(x, dim=-1), value.unflatten(2, (frames, -1)))
    return {"out": out.flatten(2, 3), "lse": torch.logsumexp(x, dim=-1).transpose(2, 3).flatten(2, 3)}


def temporal_logits(query: Tensor, weighted_key: Tensor, entropy: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    q, a, c = (x.unflatten(2, (frames, -1)) for x in (query, weighted_key, entropy))
    return q, torch.einsum("bhljd,bhkjd->bhjlk", q, a) - c.transpose(2, 3).unsqueeze(3)


def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    iterations: int = 2,
    dense_first_frame: bool = True,
    mass_floor: float = 0.1,
    scale: float | None = None,
    entropy_gradient: bool = True,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_mask: Tensor | None = None,
    return_lse: bool = False,
) -> dict[str, Tensor]:
    scale = query.size(3) ** -0.5 if scale is None else scale
    u = query
    for step in range(iterations):
        spatial = spatial_step(u, key, value, frames, scale, weigh_keys=True)
        weighted_key = spatial["weighted_key"]
        entropy = (u * weighted_key).sum(-1) - spatial["lse"]
        entropy = entropy if entropy_gradient else entropy.detach()
        if step < iterations - 1:
            u = temporal_update(query, weighted_key, entropy, frames, mass_floor)["surrogate"]
    rows = temporal_output(query, weighted_key, entropy, spatial["weighted_value"], frames)
    if dense_first_frame:
        first = query.size(2) // frames
        dense = attention(query[:, :, :first], key, value, scale)
        rows = {name: torch.cat([dense[name], x[:, :, first:]], dim=2) for name, x in rows.items()}
    if extra_key is not None:
        rows = merged(rows, attention(query, extra_key, extra_value, scale, extra_mask))
    return rows if return_lse else {"out": rows["out"]}


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> dict[str, Tensor]:
    """A row of a modulation for each clip or each frame, the only dimension of it between clips and channels."""
    shift, scale = (m.reshape(m.size(0), -1, 1, m.size(-1)) for m in (shift, scale))
    centered = x - x.sum(-1, keepdim=True) / x.size(-1)
    variance = torch.einsum("btnd,btnd->btn", centered, centered) / x.size(-1)
    return {"out": centered / (variance + eps).sqrt().unsqueeze(-1) * (1 + scale) + shift}


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"out": x + gate.reshape(gate.size(0), -1, 1, gate.size(-1)) * y}


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> dict[str, Tensor]:
    rows = spatial_step(query, key, value, 1, scale, weigh_keys=False, key_mask=mask)
    return {"out": rows["weighted_value"], "lse": rows["lse"]}


def merged(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention to the keys of both."""
    lse = torch.logaddexp(a["lse"], b["lse"])
    return {"out": sum(torch.exp(x["lse"] - lse).unsqueeze(-1) * x["out"] for x in (a, b)), "lse": lse}
