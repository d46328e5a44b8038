"""A video, the part of it that a process has, and what one process finds for all of it."""

import torch
import torch.distributed as dist

import frameattn
from frameattn import parallel, reference
from oracle import assert_close, randn


def inputs_of(frames, positions=3, batch=2, heads=2, dim=8, value_dim=6, extra=0, dtype=torch.float64):
    """The whole query, key, value, and extra_key, extra_value where there are some."""
    tokens = frames * positions
    sizes = [(tokens, dim), (tokens, dim), (tokens, value_dim)] + [(extra, dim), (extra, value_dim)] * bool(extra)
    return [randn(batch, heads, *size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]


def own(x, counts, rank):
    """The part of x, [B, H, N, ...], that belongs to a rank with counts[rank] of N tokens, or of the frames."""
    size = x.size(2) // max(sum(counts), 1)
    return x.split([size * count for count in counts], dim=2)[rank]


def parts_of(tensors, counts, rank):
    """Own query, key and value, and extra keys: leaves that require a gradient."""
    parts = [own(x, counts, rank) for x in tensors[:3]] + tensors[3:]
    return [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in parts]


def bind(function, *args, **options):
    """function(query, key, value, *args, **options) of the tensors alone, extra keys among them."""

    def call(query, key, value, *extra):
        named = dict(zip(("extra_key", "extra_value"), extra, strict=False))
        return function(query, key, value, *args, **options, **named)

    return call


def both(results):
    return results if isinstance(results, tuple) else (results,)


def weights_of(results):
    """A gradient of each result, the same in all processes."""
    return [randn(*x.shape, dtype=x.dtype, seed=90 + i) for i, x in enumerate(results)]


def run(function, tensors, weights=None, through="both"):
    """Results of function(*tensors), and the gradient of each tensor."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    results = both(function(*tensors))
    weights = weights_of(results) if weights is None else weights
    sent = [(x, w) for name, x, w in zip(("out", "lse"), results, weights, strict=False) if through in ("both", name)]
    torch.autograd.backward(*zip(*sent, strict=True))
    return [x.detach() for x in results], [x.grad for x in tensors]


def is_equal_to_one_process(
    group,
    counts,
    *,
    given=True,
    check=False,
    mask=None,
    through="both",
    return_lse=True,
    dtype=torch.float64,
    storage=None,
    default_group=False,
    sizes=None,
    **options,
):
    """Results and all gradients of this process are those of one process that has all frames.

    counts: of frames, by rank. given: whether the processes know them. through: what backward starts from.
    storage: maps own tensors to others with the same numbers, such as views.
    """
    rank, frames = dist.get_rank(group), sum(counts)
    options = dict(options, return_lse=return_lse, extra_mask=None if mask is None else torch.tensor(mask))
    whole = inputs_of(frames, dtype=dtype, **(sizes or {}))
    parts = parts_of(whole, counts, rank)
    call = bind(
        parallel.vmonarch_attention,
        frames,
        group=None if default_group else group,
        frames_per_rank=counts if given else None,
        check=check,
        **options,
    )
    if dtype == torch.float64:
        exact = run(bind(frameattn.vmonarch_attention, frames, **options), whole, through=through)
        rounded = None
    else:
        rounded = run(bind(reference.vmonarch_attention, frames, **options), whole, through=through)
        doubles = [x.double() for x in whole]
        exact_call = bind(reference.vmonarch_attention, frames, **options)
        weights = [w.double() for w in weights_of(rounded[0])]  # rounded as the operator sees them
        exact = run(exact_call, doubles, weights, through)
    weights = [own(w, counts, rank) for w in weights_of(rounded[0] if rounded else exact[0])]
    results, grads = run(call, parts if storage is None else [storage(x) for x in parts], weights, through)

    names = ["out", "lse"][: len(results)]
    for i, name in enumerate(names):
        assert results[i].is_contiguous(), name
        assert type(results[i]) is torch.Tensor, name
        expected_dtype = torch.promote_types(dtype, torch.float32) if name == "lse" else dtype
        assert results[i].dtype == expected_dtype, name
    names += ["grad_" + name for name in ("query", "key", "value", "extra_key", "extra_value")][: len(grads)]
    for grad, part in zip(grads, parts, strict=True):
        assert (grad.shape, grad.dtype) == (part.shape, part.dtype)
    for i, (name, actual) in enumerate(zip(names, results + grads, strict=True)):
        wanted = (exact[0] + exact[1])[i]
        cut = (lambda x: x) if "extra" in name else (lambda x: own(x, counts, rank))
        assert actual.shape == cut(wanted).shape, name
        if actual.numel() == 0:
            continue
        if rounded is None:
            error, largest = (actual - cut(wanted)).abs().max(), wanted.abs().max()
            # A gradient that is nought but for rounding has no size of its own: then that of its inputs, 1.
            assert error <= 1e-10 * largest.clamp(min=1e-3), f"{name}: error {error:.3g} of {largest:.3g}"
        else:  # the rule is about the largest error anywhere: the other processes' rows are those of the reference
            others = (rounded[0] + rounded[1])[i]
            merged = others.to(actual.dtype).clone()
            cut(merged).copy_(actual)
            # float32: all weights of a row share the rounding of its log-sum-exp (as in test_vmonarch_attention.py)
            assert_close(merged, others, wanted, name, slack=2 if dtype == torch.float32 else 1)
