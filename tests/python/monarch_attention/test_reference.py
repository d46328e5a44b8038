"""The readable definition against the formulas written out, dense attention, and what the mathematics promises."""

import math

import pytest
import torch
from torch.nn import functional as F

from frameattn.reference import monarch_factors, monarch_matrix, vmonarch_attention
from oracle import DTYPES, randn

TINY = 1e-9  # a mass floor that is never reached


def inputs_of(frames=3, size=4, d=5, dv=2, batch=2, heads=2, dtype=torch.float64, spread=1.0, requires_grad=False):
    """query, key, value; `spread` widens the logits."""
    sizes = [(batch, heads, frames * size, channels) for channels in (d, d, dv)]
    tensors = [randn(*s, seed=i) * (spread if i == 0 else 1) for i, s in enumerate(sizes)]
    return [t.to(dtype).requires_grad_(requires_grad) for t in tensors]


def extras_of(count=3, d=5, dv=2, batch=2, heads=2, **kwargs):
    return [randn(batch, heads, count, channels, seed=10 + i, **kwargs) for i, channels in enumerate((d, dv))]


def dense(query, key, value, scale=None, mask=None):
    """Output and row log-sum-exp; mask [B, N]."""
    logits = (query.size(-1) ** -0.5 if scale is None else scale) * query @ key.mT
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -math.inf)
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def masses(query, key, frames, step, **kwargs):
    """cR [B, H, S, T], the mass that each frame receives in this step."""
    return monarch_factors(query, key, frames, iterations=step, **kwargs)[0].sum(-2)


# The formulas, one entry at a time


def by_loops(query, key, frames, iterations, mass_floor, scale):
    """L, R and log-sum-exp of one head; query, key [N, D]."""
    size = query.size(0) // frames
    q, k = query.view(frames, size, -1), key.view(frames, size, -1)
    left = torch.zeros(size, frames, frames, dtype=query.dtype)
    right = torch.zeros(frames, size, size, dtype=query.dtype)
    lse = torch.zeros(frames, size, dtype=query.dtype)
    u = q.clone()
    for step in range(iterations):
        for j in range(size):
            surrogate, entropy = [], []
            for kk in range(frames):
                if step > 0:
                    mass = left[j, :, kk].sum()
                    u[kk, j] = sum(left[j, m, kk] * q[m, j] for m in range(frames)) / max(mass, mass_floor)
                right[kk, j] = torch.softmax(scale * k[kk] @ u[kk, j], dim=0)
                surrogate.append(scale * right[kk, j] @ k[kk])
                entropy.append(-(right[kk, j] * right[kk, j].log()).sum())
            for m in range(frames):
                logits = torch.stack([q[m, j] @ a + e for a, e in zip(surrogate, entropy, strict=True)])
                left[j, m], lse[m, j] = logits.softmax(0), logits.logsumexp(0)
    return left, right, lse.flatten()


@pytest.mark.parametrize("mass_floor", [TINY, 0.9])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_factors_follow_the_formulas(iterations, mass_floor):
    query, key, value = inputs_of(spread=2)
    options = dict(iterations=iterations, mass_floor=mass_floor, scale=0.7)
    left, right = monarch_factors(query, key, 3, **options)
    lse = vmonarch_attention(query, key, value, 3, dense_first_frame=False, return_lse=True, **options)[1]
    for b in range(2):
        for h in range(2):
            expected = by_loops(query[b, h], key[b, h], 3, **options)
            for actual, wanted in zip((left, right, lse), expected, strict=True):
                torch.testing.assert_close(actual[b, h], wanted)


@pytest.mark.parametrize("dense_first_frame", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_output_is_the_matrix_times_value(iterations, dense_first_frame):
    query, key, value = inputs_of()
    options = dict(iterations=iterations, dense_first_frame=dense_first_frame)
    matrix = monarch_matrix(query, key, 3, **options)
    assert matrix.shape == (2, 2, 12, 12)
    torch.testing.assert_close(vmonarch_attention(query, key, value, 3, **options), matrix @ value)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_rows_of_factors_and_matrix_sum_to_one(iterations):
    query, key, _ = inputs_of(frames=5, size=3, spread=5)
    left, right = monarch_factors(query, key, 5, iterations=iterations)
    assert (left.shape, right.shape) == ((2, 2, 3, 5, 5), (2, 2, 5, 3, 3))
    for rows in (left, right, monarch_matrix(query, key, 5, iterations=iterations)):
        assert (rows >= 0).all()
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    exact = vmonarch_attention(*inputs_of(), 3, return_lse=True)
    rounded = vmonarch_attention(*inputs_of(dtype=dtype), 3, return_lse=True)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    assert [t.dtype for t in rounded] == [dtype, statistics]
    assert [t.dtype for t in monarch_factors(*inputs_of(dtype=dtype)[:2], 3)] == [statistics] * 2
    for actual, wanted in zip(rounded, exact, strict=True):
        assert (actual - wanted).abs().max() <= 8 * torch.finfo(dtype).eps * wanted.abs().max()


# Where it is dense attention


@pytest.mark.parametrize("dense_first_frame", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_one_frame_is_dense_attention(iterations, dense_first_frame):
    query, key, value = inputs_of(frames=1, size=7)
    options = dict(iterations=iterations, dense_first_frame=dense_first_frame, return_lse=True)
    out, lse = vmonarch_attention(query, key, value, 1, **options)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(lse, dense(query, key, value)[1])
    out, lse = vmonarch_attention(query, key, value, 1, scale=-0.3, **options)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value, scale=-0.3))


@pytest.mark.parametrize("iterations", [1, 2])
def test_one_position_is_dense_attention_over_frames(iterations):
    query, key, value = inputs_of(frames=7, size=1)
    out, lse = vmonarch_attention(query, key, value, 7, iterations=iterations, dense_first_frame=False, return_lse=True)
    for actual, wanted in zip((out, lse), dense(query, key, value), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_the_first_frame_is_dense_and_the_others_stay():
    query, key, value = inputs_of(frames=3, size=4)
    with_it = vmonarch_attention(query, key, value, 3, return_lse=True)
    without = vmonarch_attention(query, key, value, 3, dense_first_frame=False, return_lse=True)
    for actual, other, wanted in zip(with_it, without, dense(query, key, value), strict=True):
        torch.testing.assert_close(actual[:, :, :4], wanted[:, :, :4])
        assert torch.equal(actual[:, :, 4:], other[:, :, 4:])
        assert (other[:, :, :4] - wanted[:, :, :4]).abs().max() > 1e-3


def separable(frames=4, size=6, spread=2.0):
    """Logits a[l, j].b[k] + p[j].c[k, i]: the softmax of such a row is L[j, l, k] R[k, j, i] exactly."""
    a, b = randn(frames, size, 3, seed=1) * spread, randn(frames, 1, 3, seed=2).expand(-1, size, -1)
    p, c = randn(1, size, 5, seed=3).expand(frames, -1, -1) * spread, randn(frames, size, 5, seed=4)
    query, key = (torch.cat(parts, dim=-1).flatten(0, 1)[None, None] for parts in ((a, p), (b, c)))
    return query, key, randn(*query.shape[:-1], 2, seed=5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_attention_that_a_monarch_matrix_represents_is_recovered(iterations):
    query, key, value = separable()
    options = dict(iterations=iterations, dense_first_frame=False, mass_floor=TINY)
    expected = (query @ key.mT * 8**-0.5).softmax(-1)
    torch.testing.assert_close(monarch_matrix(query, key, 4, **options), expected)
    result = vmonarch_attention(query, key, value, 4, return_lse=True, **options)
    for actual, wanted in zip(result, dense(query, key, value), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_hard_attention_to_a_token_of_a_frame_is_recovered():
    # Frame l looks at frame perm[l], position j at position shift(j): a block permutation matrix in the limit.
    frames, size = 4, 5
    perm, shift = torch.tensor([2, 0, 3, 1]), (torch.arange(size) + 2) % size
    rows = torch.cat(
        [torch.eye(frames)[perm][:, None].expand(-1, size, -1), torch.eye(size)[shift].expand(frames, -1, -1)], dim=-1
    )
    keys = torch.cat([torch.eye(frames)[:, None].expand(-1, size, -1), torch.eye(size).expand(frames, -1, -1)], dim=-1)
    query, key = (t.flatten(0, 1)[None, None].double() for t in (rows, keys))
    value = randn(1, 1, frames * size, 3)
    out = vmonarch_attention(query, key, value, frames, scale=200.0, dense_first_frame=False)
    expected = value.view(frames, size, 3)[perm][:, shift].flatten(0, 1)
    torch.testing.assert_close(out[0, 0], expected)


# The log-sum-exp and the objective


@pytest.mark.parametrize("mass_floor", [TINY, 0.1, 0.9])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.3, 1, 5])
def test_lse_is_a_lower_bound_of_the_dense_one(spread, iterations, mass_floor):
    query, key, value = inputs_of(frames=5, size=7, spread=spread)
    options = dict(iterations=iterations, mass_floor=mass_floor, return_lse=True)
    bound = vmonarch_attention(query, key, value, 5, dense_first_frame=False, **options)[1]
    exact = dense(query, key, value)[1]
    assert (bound <= exact + 1e-12).all()
    assert (bound < exact - 1e-6).any()
    merged = vmonarch_attention(query, key, value, 5, **options)[1]
    assert (merged <= exact + 1e-12).all()


def test_lse_is_the_objective_of_its_row_and_steps_never_lower_the_sum():
    query, key, value = inputs_of(frames=5, size=7, spread=2)
    logits = query @ key.mT * 5**-0.5
    before = torch.tensor(-math.inf)
    for iterations in range(1, 8):
        options = dict(iterations=iterations, dense_first_frame=False, mass_floor=TINY)
        lse = vmonarch_attention(query, key, value, 5, return_lse=True, **options)[1]
        matrix = monarch_matrix(query, key, 5, **options)
        torch.testing.assert_close((matrix * logits).sum(-1) + torch.special.entr(matrix).sum(-1), lse)
        after = lse.sum((0, 1, 2))
        assert after > before
        before = after


# The mass floor


def test_mass_floor_below_every_mass_changes_nothing_and_above_changes_only_starved_frames():
    query, key, _ = inputs_of(frames=5, size=7, spread=4)
    mass = masses(query, key, 5, step=1).transpose(-1, -2)  # [B, H, T, S]
    torch.testing.assert_close(mass.mean(2), torch.ones_like(mass[:, :, 0]))
    floor = mass.median().item()
    _, low = monarch_factors(query, key, 5, mass_floor=mass.min().item() / 2)
    _, none = monarch_factors(query, key, 5, mass_floor=TINY)
    _, high = monarch_factors(query, key, 5, mass_floor=floor)
    assert torch.equal(low, none)
    starved = mass < floor
    assert torch.equal(high[~starved], none[~starved])
    assert ((high - none)[starved].abs().amax(-1) > 0).all()


def test_a_boundless_mass_floor_averages_frames():
    query, key, _ = inputs_of(frames=3, size=4)
    left, right = monarch_factors(query, key, 3, mass_floor=1e30)
    torch.testing.assert_close(right, torch.full_like(right, 1 / 4))
    mean = key.unflatten(2, (3, 4)).mean(3)
    expected = (query @ mean.mT * 5**-0.5).softmax(-1)  # [B, H, N, T]
    torch.testing.assert_close(left.transpose(2, 3).flatten(2, 3), expected)


# Symmetries


def tokens(order, frames=5, size=4):
    """Token order when frame l shows what frame order[l] did."""
    return torch.arange(frames * size).view(frames, size)[order].flatten()


def test_permuting_frames_permutes_the_output():
    query, key, value = inputs_of(frames=5)
    order = tokens(torch.tensor([3, 0, 4, 1, 2]))
    options = dict(dense_first_frame=False, return_lse=True)
    for before, after in zip(
        vmonarch_attention(query, key, value, 5, **options),
        vmonarch_attention(*(t[:, :, order] for t in (query, key, value)), 5, **options),
        strict=True,
    ):
        torch.testing.assert_close(after, before[:, :, order])
    # With a dense first frame the others may still change places.
    order = tokens(torch.tensor([0, 3, 4, 1, 2]))
    torch.testing.assert_close(
        vmonarch_attention(*(t[:, :, order] for t in (query, key, value)), 5),
        vmonarch_attention(query, key, value, 5)[:, :, order],
    )


def test_permuting_positions_permutes_the_output():
    query, key, value = inputs_of(frames=5)
    order = torch.arange(20).view(5, 4)[:, [2, 0, 3, 1]].flatten()
    expected = vmonarch_attention(query, key, value, 5)
    torch.testing.assert_close(
        vmonarch_attention(*(t[:, :, order] for t in (query, key, value)), 5), expected[:, :, order]
    )
    # Keys and values of one frame alone may change places: the output stays.
    order = torch.arange(20)
    order[8:12] = order[[11, 8, 10, 9]]
    torch.testing.assert_close(vmonarch_attention(query, key[:, :, order], value[:, :, order], 5), expected)


def test_a_vector_added_to_all_keys_shifts_only_the_lse():
    query, key, value = inputs_of()
    bias = randn(5, seed=8)
    out, lse = vmonarch_attention(query, key, value, 3, return_lse=True)
    moved, moved_lse = vmonarch_attention(query, key + bias, value, 3, return_lse=True)
    torch.testing.assert_close(moved, out)
    torch.testing.assert_close(moved_lse, lse + 5**-0.5 * query @ bias)


def test_scale_multiplies_queries():
    query, key, value = inputs_of()
    expected = vmonarch_attention(0.37 * 5**0.5 * query, key, value, 3)
    torch.testing.assert_close(vmonarch_attention(query, key, value, 3, scale=0.37), expected)


# Extra keys


@pytest.mark.parametrize("masked", [True, False])
def test_extra_keys_beside_one_frame_are_more_keys_of_dense_attention(masked):
    query, key, value = inputs_of(frames=1, size=6)
    extra_key, extra_value = extras_of()
    mask = torch.tensor([[True, False, True], [False, False, True]]) if masked else torch.ones(2, 3, dtype=bool)
    expected = dense(
        query,
        torch.cat([key, extra_key], 2),
        torch.cat([value, extra_value], 2),
        mask=torch.cat([torch.ones(2, 6, dtype=bool), mask], 1),
    )
    options = dict(extra_key=extra_key, extra_value=extra_value, extra_mask=mask if masked else None, return_lse=True)
    for dense_first_frame in (True, False):
        result = vmonarch_attention(query, key, value, 1, dense_first_frame=dense_first_frame, **options)
        for actual, wanted in zip(result, expected, strict=True):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dense_first_frame", [True, False])
def test_extra_keys_are_merged_by_log_sum_exp(dense_first_frame):
    query, key, value = inputs_of()
    extra_key, extra_value = extras_of()
    options = dict(dense_first_frame=dense_first_frame, return_lse=True)
    out, lse = vmonarch_attention(query, key, value, 3, extra_key=extra_key, extra_value=extra_value, **options)
    grid, grid_lse = vmonarch_attention(query, key, value, 3, **options)
    beside, beside_lse = dense(query, extra_key, extra_value)
    merged = torch.logaddexp(grid_lse, beside_lse)
    expected = grid * (grid_lse - merged).exp()[..., None] + beside * (beside_lse - merged).exp()[..., None]
    torch.testing.assert_close(lse, merged)
    torch.testing.assert_close(out, expected)


def test_masked_extra_keys_might_as_well_not_be_there():
    inputs = inputs_of(requires_grad=True)
    extras = extras_of(requires_grad=True)
    mask = torch.tensor([True, False, True]).expand(2, -1)
    for kept, names in ((mask, "some"), (torch.zeros_like(mask), "none"), (mask[:, :0], "no keys at all")):
        cut = [t[:, :, : kept.size(1)] for t in extras]
        left = [t[:, :, kept[0]] for t in cut]

        def run(pair, mask=None):
            result = vmonarch_attention(
                *inputs, 3, extra_key=pair[0], extra_value=pair[1], extra_mask=mask, return_lse=True
            )
            return [*result, *torch.autograd.grad([t.sin().sum() for t in result], [*inputs, *extras])]

        for actual, wanted in zip(run(cut, kept), run(left), strict=True):
            assert actual.isfinite().all(), names
            torch.testing.assert_close(actual, wanted)
    plain = vmonarch_attention(*inputs, 3, return_lse=True)
    masked = vmonarch_attention(
        *inputs, 3, extra_key=extras[0], extra_value=extras[1], extra_mask=torch.zeros_like(mask), return_lse=True
    )
    for actual, wanted in zip(masked, plain, strict=True):
        torch.testing.assert_close(actual, wanted)


# Gradients


@pytest.mark.parametrize("mass_floor", [TINY, 0.95])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_gradients_match_finite_differences(iterations, mass_floor):
    inputs = inputs_of(frames=3, size=2, d=3, batch=1, spread=2, requires_grad=True)
    extras = extras_of(count=2, d=3, batch=1, requires_grad=True)
    for step in range(1, iterations):
        mass = masses(*inputs[:2], 3, step, mass_floor=mass_floor)
        assert (mass > mass_floor).any() and ((mass - mass_floor).abs() > 1e-3).all()
        assert (mass < mass_floor).any() == (mass_floor > TINY)

    def run(query, key, value, *extras, dense_first_frame):
        options = dict(zip(("extra_key", "extra_value"), extras, strict=True)) if extras else {}
        options |= dict(dense_first_frame=dense_first_frame, return_lse=True)
        return vmonarch_attention(query, key, value, 3, iterations=iterations, mass_floor=mass_floor, **options)

    assert torch.autograd.gradcheck(lambda *t: run(*t, dense_first_frame=False), inputs)
    assert torch.autograd.gradcheck(lambda *t: run(*t, dense_first_frame=True), [*inputs, *extras])


def test_second_derivatives_and_function_transforms():
    inputs = inputs_of(frames=2, size=2, d=2, batch=1, heads=1, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda q, k, v: vmonarch_attention(q, k, v, 2), inputs)
    query, key, value = inputs_of(requires_grad=False)
    one_by_one = torch.func.vmap(lambda q, k, v: vmonarch_attention(q[None], k[None], v[None], 3)[0])
    torch.testing.assert_close(one_by_one(query, key, value), vmonarch_attention(query, key, value, 3))
    loss = lambda q: vmonarch_attention(q, key, value, 3).square().sum()  # noqa: E731
    step = randn(*query.shape, seed=6)
    _, slope = torch.func.jvp(loss, (query,), (step,))
    torch.testing.assert_close(slope, (torch.func.grad(loss)(query) * step).sum())


def test_the_entropy_switch_changes_gradients_but_not_values():
    inputs = inputs_of(requires_grad=True)

    def run(which, **options):
        result = vmonarch_attention(*inputs, 3, dense_first_frame=False, return_lse=True, **options)
        return result, torch.autograd.grad(result[which].sin().sum(), inputs[:2])

    for which in (0, 1):
        full, full_gradients = run(which)
        cut, cut_gradients = run(which, entropy_gradient=False)
        assert all(torch.equal(a, b) for a, b in zip(full, cut, strict=True))
        for a, b in zip(full_gradients, cut_gradients, strict=True):
            assert (a - b).abs().max() > 1e-3


def test_one_position_has_no_entropy_and_the_gradient_of_dense_attention_either_way():
    query, key, value = inputs_of(frames=4, size=1, requires_grad=True)
    for entropy_gradient in (True, False):
        lse = vmonarch_attention(
            query, key, value, 4, dense_first_frame=False, entropy_gradient=entropy_gradient, return_lse=True
        )[1]
        actual = torch.autograd.grad(lse.sin().sum(), (query, key))
        wanted = torch.autograd.grad(dense(query, key, value)[1].sin().sum(), (query, key))
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b)


def two_steps_by_hand(query, key, value, frames, mass_floor, scale, entropy_gradient, dense_first_frame, dout, dlse):
    """Gradients of query, key and value, written out for two iterations as the kernels compute them."""
    q, k, v, do, dl = (t.unflatten(2, (frames, -1)).clone() for t in (query, key, value, dout, dlse[..., None]))
    dl = dl.squeeze(-1)
    ein = torch.einsum
    if dense_first_frame:
        do0, dl0 = do[:, :, 0].clone(), dl[:, :, 0].clone()
        do[:, :, 0], dl[:, :, 0] = 0, 0

    def spatial(u):
        x = scale * ein("bhkjd,bhkid->bhkji", u, k)
        lse, r = x.logsumexp(-1), x.softmax(-1)
        a = scale * ein("bhkji,bhkid->bhkjd", r, k)
        return r, a, (u * a).sum(-1) - lse

    def temporal(a, c):
        return (ein("bhljd,bhkjd->bhjlk", q, a) - c.transpose(2, 3)[:, :, :, None]).softmax(-1)

    r1, a1, c1 = spatial(q)
    l1 = temporal(a1, c1)
    mass = l1.sum(-2).transpose(2, 3)  # [B, H, T, S]
    w = 1 / mass.clamp(min=mass_floor)
    u2 = w[..., None] * ein("bhjlk,bhljd->bhkjd", l1, q)
    r2, a2, c2 = spatial(u2)
    y = ein("bhkji,bhkid->bhkjd", r2, v)
    l2 = temporal(a2, c2)
    o = ein("bhjlk,bhkjd->bhljd", l2, y)

    # D: temporal, output
    delta = ((do * o).sum(-1) - dl).transpose(2, 3)  # [B, H, S, T]
    ds2 = l2 * (ein("bhljd,bhkjd->bhjlk", do, y) - delta[..., None])
    dy = ein("bhjlk,bhljd->bhkjd", l2, do)
    dq = ein("bhjlk,bhkjd->bhljd", ds2, a2)
    da2 = ein("bhjlk,bhljd->bhkjd", ds2, q)
    dc2 = -ds2.sum(-2).transpose(2, 3) * entropy_gradient
    # C: spatial, step 2
    g2 = da2 + dc2[..., None] * u2
    d2 = (dy * y).sum(-1) + (g2 * a2).sum(-1)
    dx = r2 * (ein("bhkjd,bhkid->bhkji", dy, v) + scale * ein("bhkjd,bhkid->bhkji", g2, k) - d2[..., None])
    dv = ein("bhkji,bhkjd->bhkid", r2, dy)
    dk = scale * (ein("bhkji,bhkjd->bhkid", r2, da2) + ein("bhkji,bhkjd->bhkid", dx, u2))
    du2 = scale * ein("bhkji,bhkid->bhkjd", dx, k)
    # B: temporal, update
    dar = w[..., None] * du2
    dcr = -w * (mass > mass_floor) * (u2 * du2).sum(-1)
    dp1 = ein("bhljd,bhkjd->bhjlk", q, dar) + dcr.transpose(2, 3)[:, :, :, None]
    ds1 = l1 * (dp1 - (l1 * dp1).sum(-1, keepdim=True))
    dq += ein("bhjlk,bhkjd->bhljd", l1, dar) + ein("bhjlk,bhkjd->bhljd", ds1, a1)
    da1 = ein("bhjlk,bhljd->bhkjd", ds1, q)
    dc1 = -ds1.sum(-2).transpose(2, 3) * entropy_gradient
    # A: spatial, step 1
    g1 = da1 + dc1[..., None] * q
    dx = r1 * (scale * ein("bhkjd,bhkid->bhkji", g1, k) - (g1 * a1).sum(-1)[..., None])
    dk += scale * (ein("bhkji,bhkjd->bhkid", r1, da1) + ein("bhkji,bhkjd->bhkid", dx, q))
    dq += scale * ein("bhkji,bhkid->bhkjd", dx, k)

    dq, dk, dv = (t.flatten(2, 3) for t in (dq, dk, dv))
    if dense_first_frame:
        q0, size = q[:, :, 0], q.size(3)
        p = (scale * q0 @ key.mT).softmax(-1)
        ds = p * (do0 @ value.mT - (do0 * (p @ value)).sum(-1, keepdim=True) + dl0[..., None])
        dq[:, :, :size] += scale * ds @ key
        dk += scale * ds.mT @ q0
        dv += p.mT @ do0
    return dq, dk, dv


@pytest.mark.parametrize("dense_first_frame", [True, False])
@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("mass_floor", [TINY, 0.95])
def test_the_hand_written_backward_of_two_steps_is_the_gradient(mass_floor, entropy_gradient, dense_first_frame):
    inputs = inputs_of(frames=5, size=4, spread=2, requires_grad=True)
    mass = masses(*inputs[:2], 5, step=1)
    assert (mass < mass_floor).any() == (mass_floor > TINY)
    options = dict(
        mass_floor=mass_floor, scale=0.6, entropy_gradient=entropy_gradient, dense_first_frame=dense_first_frame
    )
    result = vmonarch_attention(*inputs, 5, return_lse=True, **options)
    upstream = [randn(*t.shape, seed=20 + i) for i, t in enumerate(result)]
    expected = torch.autograd.grad(result, inputs, upstream)
    with torch.no_grad():
        by_hand = two_steps_by_hand(*inputs, 5, dout=upstream[0], dlse=upstream[1], **options)
    for actual, wanted in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


# Extremes


@pytest.mark.parametrize("mass_floor", [TINY, 0.1])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_large_logits_stay_finite(iterations, mass_floor):
    inputs = inputs_of(frames=5, size=7, dtype=torch.float32)
    logits = inputs[0] @ inputs[1].mT * 5**-0.5
    inputs = [(inputs[0] * (1e4 / logits.abs().max())).requires_grad_(), *(t.requires_grad_() for t in inputs[1:])]
    result = vmonarch_attention(*inputs, 5, iterations=iterations, mass_floor=mass_floor, return_lse=True)
    gradients = torch.autograd.grad([t.sum() for t in result], inputs)
    assert all(t.isfinite().all() for t in (*result, *gradients))


def test_constant_keys_average_values():
    query, key, value = inputs_of()
    out, lse = vmonarch_attention(query, torch.zeros_like(key), value, 3, return_lse=True)
    torch.testing.assert_close(out, value.mean(2, keepdim=True).expand_as(out))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(12)))


@pytest.mark.parametrize("batch, heads", [(0, 2), (2, 0)])
def test_empty(batch, heads):
    inputs = inputs_of(batch=batch, heads=heads, requires_grad=True)
    out, lse = vmonarch_attention(*inputs, 3, return_lse=True)
    assert (out.shape, lse.shape) == ((batch, heads, 12, 2), (batch, heads, 12))
    out.sum().backward()


def test_frames_must_divide_the_tokens():
    with pytest.raises(RuntimeError):
        vmonarch_attention(*inputs_of(), 5)
