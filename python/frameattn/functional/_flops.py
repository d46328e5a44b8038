"""Operation counts of the operators for torch.utils.flop_counter; a multiply-add counts as two."""

import torch
from torch.utils.flop_counter import register_flop_formula

from frameattn import _C
from frameattn._operators import operators

# ---- Matrix Attention ------------------------------------------------------------------------------------------------


def _sizes(x_shape, u_shape, w_shape) -> tuple[int, dict[str, int]]:
    """Number of frames, and the sizes of one."""
    *leading, n, d = x_shape
    return torch.Size(leading).numel(), {"n": n, "d": d, "m": u_shape[1], "e": w_shape[1]}


@register_flop_formula(operators.matrix_linear_forward)
def _(x_shape, u_shape, w_shape, bias_shape, save, *, out_shape=None, **kwargs) -> int:
    if u_shape is None:
        return 2 * torch.Size(x_shape).numel() * w_shape[1]
    frames, sizes = _sizes(x_shape, u_shape, w_shape)
    return 2 * frames * _C.matrix_linear_cost(**sizes)


@register_flop_formula(operators.matrix_linear_backward)
def _(grad_shape, x_shape, u_shape, w_shape, bias_shape, product_shape, wanted, *, out_shape=None, **kwargs) -> int:
    if u_shape is None:
        return 2 * torch.Size(x_shape).numel() * w_shape[1] * (wanted[0] + wanted[2])
    frames, sizes = _sizes(x_shape, u_shape, w_shape)
    plan = _C.plan_matrix_linear_backward(**sizes, wanted=wanted[:3], saved=product_shape is not None)
    return 2 * frames * plan.cost


@register_flop_formula(operators.matrix_attention)
def _(query_shape, key_shape, value_shape, row_heads, col_heads, scale=None, *, out_shape=None, **kwargs) -> int:
    batch, frames, rows, channels = query_shape
    return 2 * batch * frames**2 * channels * (rows + value_shape[2])


@register_flop_formula(operators.matrix_attention_backward)
def _(
    grad_shape, query_shape, key_shape, value_shape, row_heads, col_heads, scale=None, *, out_shape=None, **kw
) -> int:
    batch, frames, rows, channels = query_shape
    return 2 * batch * frames**2 * channels * (3 * rows + 2 * value_shape[2])


# ---- VMonarch attention: backward computes the logits again ----------------------------------------------------------


def _spatial(heads: int, queries: int, keys: int, dim: int, weighted_dims: int) -> int:
    return 2 * heads * queries * keys * (dim + weighted_dims)


@register_flop_formula(operators.spatial_step)
def _(query_shape, key_shape, value_shape, frames, scale, weigh_keys, *args, out_shape=None, **kwargs) -> int:
    batch, heads, queries, dim = query_shape
    weighted = dim * bool(weigh_keys) + (value_shape[3] if value_shape is not None else 0)
    return _spatial(batch * heads, queries, key_shape[2] // frames, dim, weighted)


@register_flop_formula(operators.spatial_step_backward)
def _(grad_weighted_key, grad_weighted_value, grad_lse, query, key, value, key_mask, weighted_key, weighted_value, lse,
      frames, scale, *, out_shape=None, **kwargs) -> int:  # fmt: skip
    batch, heads, queries, dim = query
    columns = 3 * dim  # the logits, and what they give to query and key
    if grad_weighted_key:
        columns += 2 * dim
    if grad_weighted_value:
        columns += 2 * value[3]
    return _spatial(batch * heads, queries, key[2] // frames, columns, 0)


@register_flop_formula(operators.temporal_update)
def _(query_shape, key_shape, entropy_shape, frames, mass_floor, *, out_shape=None, **kwargs) -> int:
    batch, heads, tokens, dim = query_shape
    return 4 * batch * heads * tokens * frames * dim


@register_flop_formula(operators.temporal_output)
def _(query_shape, key_shape, entropy_shape, value_shape, frames, *, out_shape=None, **kwargs) -> int:
    batch, heads, tokens, dim = query_shape
    return 2 * batch * heads * tokens * frames * (dim + value_shape[3])


@register_flop_formula(operators.temporal_update_backward)
def _(grad_surrogate, query, weighted_key, entropy, mass, frames, mass_floor, *, out_shape=None, **kwargs) -> int:
    batch, heads, tokens, dim = query
    return 2 * batch * heads * tokens * frames * 5 * dim


@register_flop_formula(operators.temporal_output_backward)
def _(grad_out, grad_lse, query, weighted_key, entropy, value, frames, *, out_shape=None, **kwargs) -> int:
    batch, heads, tokens, dim = query
    return 2 * batch * heads * tokens * frames * (3 * dim + 2 * value[3])


def _vmonarch_flops(
    query, value, frames, iterations, dense_first_frame, extra_key, spatial, update, keys, values
) -> int:
    """From how many products of D channels a spatial step and a temporal update take, and attention with values (dense
    rows, temporal output) of D channels of the keys and Dv of the values."""
    batch, heads, tokens, dim = query
    positions = tokens // frames
    attention = keys * dim + values * value[3]
    operations = tokens * extra_key[2] * attention if extra_key else 0
    if dense_first_frame:
        operations += positions * tokens * attention
    if not (dense_first_frame and frames == 1):  # else every row is dense
        operations += tokens * positions * (iterations * spatial * dim + values * value[3])
        operations += tokens * frames * ((iterations - 1) * update * dim + attention)
    return 2 * batch * heads * operations


@register_flop_formula(operators.vmonarch_attention_forward)
def _(query, key, value, frames, iterations, first, floor, scale, extra_key, *args, out_shape=None, **kwargs) -> int:
    return _vmonarch_flops(query, value, frames, iterations, first, extra_key, spatial=2, update=2, keys=1, values=1)


@register_flop_formula(operators.vmonarch_attention_backward)
def _(
    grad_out, grad_lse, query, key, value, out, lse, saved, frames, iterations, first, floor, scale, entropy, extra_key,
    *args, out_shape=None, **kwargs,
) -> int:  # fmt: skip
    return _vmonarch_flops(query, value, frames, iterations, first, extra_key, spatial=5, update=7, keys=3, values=2)
