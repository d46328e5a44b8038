"""Every model that can be swapped, against the reference in its own forward (tiny_models.py)."""

import warnings

import pytest
import torch
from adapters.tiny_models import CASES, FRAMES, HEIGHT, WIDTH, output, reference_attention

import frameattn
from frameattn.adapters import apply

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)

# Several models round to float32 inside (normalisation, rotary embedding), also when they are float64.
TOLERANCE = 1e-6


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def differentiable(call):
    """The call with its continuous inputs as leaves, and these leaves."""
    call = {
        name: x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() and "mask" not in name else x
        for name, x in call.items()
    }
    return call, [x for x in call.values() if isinstance(x, torch.Tensor) and x.requires_grad]


def value_and_gradients(model, call):
    call, leaves = differentiable(call)
    leaves = [*leaves, *model.parameters()]
    out = output(model, call)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)


@EVERY_CASE
def test_matches_reference(case):
    model = case.build()
    with torch.no_grad():
        dense = output(model, case.call())
    with reference_attention(case) as calls:
        expected, expected_gradients = value_and_gradients(model, case.call())
    assert len(calls) == case.modules * case.calls

    handle = apply(model)
    assert len(handle.swapped) == case.modules and not handle.declined
    actual, gradients = value_and_gradients(model, case.call())

    assert relative_error(actual, expected) < TOLERANCE
    assert relative_error(dense, expected) > 0.01  # the test sees what runs
    total = sum(gradient.norm() for gradient in expected_gradients if gradient is not None)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        if ours is None or theirs is None:  # a path may lead to nothing but padding in one of them
            assert all(gradient is None or not gradient.any() for gradient in (ours, theirs))
        else:
            assert (ours - theirs).norm() < 1e-5 * (theirs.norm() + 1e-3 * total)


@EVERY_CASE
def test_passes_options_on(case):
    model, options = case.build(), dict(iterations=3, mass_floor=0.7)
    with torch.no_grad():
        with reference_attention(case, **options):
            expected = output(model, case.call())
        apply(model, **options)
        assert relative_error(output(model, case.call()), expected) < TOLERANCE


@EVERY_CASE
def test_one_frame_is_dense(case):
    if not case.one_frame:
        pytest.skip(f"{case} takes no single frame")
    model, call = case.build(), case.call(1)
    with torch.no_grad():
        dense = output(model, call)
        apply(model)
        assert relative_error(output(model, call), dense) < TOLERANCE


@EVERY_CASE
def test_remove_restores_every_bit(case):
    model, call = case.build(torch.float32), case.call(dtype=torch.float32)
    keys = list(model.state_dict())
    processors = {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}
    with torch.no_grad():
        dense = output(model, call)
        handle = apply(model)
        assert list(model.state_dict()) == keys
        assert not torch.equal(output(model, call), dense)
        handle.remove()
        handle.remove()
        assert torch.equal(output(model, call), dense)
    assert all(model.get_submodule(name).processor is processor for name, processor in processors.items())
    assert not handle.swapped and not model._forward_pre_hooks


@EVERY_CASE
def test_wrong_grid_stays_dense_and_warns_once(case):
    model, call = case.build(torch.float32), case.call(dtype=torch.float32)
    with torch.no_grad():
        dense = output(model, call)
        apply(model, grid=(FRAMES + 1, HEIGHT, WIDTH))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert all(torch.equal(output(model, call), dense) for _ in range(2))
    messages = [str(warning.message) for warning in caught if "frameattn" in str(warning.message)]
    assert len(messages) == 1
    assert "(grid 5 x 3 x 5, 60 video tokens)" in messages[0]


def test_every_adapter_has_a_case():
    swapped = {
        s.model for s in frameattn.adapters.supported() if s.verdict == "swap" and s.model.startswith("diffusers.")
    }
    assert swapped == {f"diffusers.{case.model}" for case in CASES}
