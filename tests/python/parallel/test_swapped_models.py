"""Swapped models of diffusers under context parallelism: against the same model in one process."""

import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
from adapters import tiny_models
from adapters.tiny_models import FRAMES, output

from frameattn.adapters import apply
from frameattn.adapters.diffusers.cogvideox import CogVideoXProcessor
from frameattn.adapters.processor import VMonarchProcessor
from oracle import randn

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "ContextParallelConfig"):
    pytest.skip(f"diffusers {diffusers.__version__} has no context parallelism", allow_module_level=True)

TOLERANCE = 1e-5  # of the largest element, in float32


def enable(model, group, config=None, **plan):
    """diffusers divides the rank by the number of accelerators, of which a CPU has none; and takes all processes."""
    config = config or diffusers.ContextParallelConfig(ulysses_degree=group.size())
    ranks = torch.arange(group.size()).view(config.ring_degree, config.ulysses_degree)
    config.mesh = torch.distributed.device_mesh.DeviceMesh("cpu", ranks, mesh_dim_names=("ring", "ulysses"))
    with mock.patch("torch.accelerator.device_count", return_value=group.size()):
        model.enable_parallelism(config=config, **plan)


def results(model, call, group=None):
    """Output, gradients of floating inputs and of weights; of processes that attend together: the sums."""
    inputs = {
        name: x.detach().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in call.items()
    }
    leaves = {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    leaves.update(model.named_parameters())
    out = output(model, inputs)
    grads = torch.autograd.grad(
        (out * randn(*out.shape, seed=7).to(out.dtype)).sum(), leaves.values(), allow_unused=True
    )
    found = {}
    for (name, x), grad in zip(leaves.items(), grads, strict=True):
        found[name] = torch.zeros_like(x) if grad is None else grad.contiguous()
        if group is not None:
            torch.distributed.all_reduce(found[name], group=group)
    return {"the output": out.detach(), **found}


def relative(actual, expected):
    return (actual - expected).abs().max() / expected.abs().max()


def check(actual, expected):
    largest = max(x.abs().max() for x in expected.values())
    for name, x in expected.items():
        # A bias of all keys has no gradient, but for rounding.
        error = (actual[name] - x).abs().max() / x.abs().max().clamp(min=1e-2 * largest)
        assert error < TOLERANCE, f"{name}: {error:.2g}"


def case_of(name):
    """A constant of tiny_models, or by the model's class."""
    return getattr(tiny_models, name, None) or next(case for case in tiny_models.CASES if case.model == name)


def model_and_call(name, frames=FRAMES):
    case = case_of(name)
    return case.build(torch.float32), case.call(frames, torch.float32)


def is_as_in_one_process(group, name, frames, options, gradients, anything):
    model, call = model_and_call(name, frames)
    call.update(options.pop("call", {}))
    handle = apply(model, **options)
    run = results if gradients else lambda model, call, group=None: {"the output": output(model, call).detach()}
    expected = run(model, call)
    enable(model, group, diffusers.ContextParallelConfig(ulysses_degree=group.size(), ulysses_anything=anything))
    handle.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(run(model, call, group), expected)
    assert handle.counts.vmonarch == 1 and not handle.counts.dense, handle.report()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["WAN_CASE", "HUNYUAN_CASE", "HUNYUAN15_CASE", "COGVIDEOX_CASE", "COGVIDEOX15_CASE"])
def test_is_as_in_one_process(processes, name, ranks):
    processes.run(is_as_in_one_process, name, FRAMES, {}, True, False, ranks=ranks)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["WAN_CASE", "HUNYUAN_CASE", "COGVIDEOX_CASE"])
def test_tokens_that_do_not_divide(processes, name, ranks):
    """45 of them. The gathering of diffusers fails on gloo, and its attention has no backward."""
    processes.run(is_as_in_one_process, name, 3, {}, True, True, ranks=ranks)


# The text of LTX-Video has to divide, and diffusers' cross-attention fails with a mask over it, and in backward.
LTX_TEXT = {"encoder_hidden_states": randn(2, 6, 16, seed=2, dtype=torch.float32), "encoder_attention_mask": None}


@pytest.mark.parametrize("name", ["LTX_CASE", "LTX_CONDITION_CASE", "MINIMAX_H3_CASE", "ChronoEditTransformer3DModel"])
def test_others_with_a_plan_of_diffusers(processes, name):
    case_of(name).build()  # skips where diffusers is too old for it
    changes = LTX_TEXT if name.startswith("LTX") else {}
    processes.run(is_as_in_one_process, name, FRAMES, {"call": changes}, name == "MINIMAX_H3_CASE", False, ranks=2)


def with_three_heads(group):
    case = replace(tiny_models.WAN_CASE, arguments={**tiny_models.WAN_CASE.arguments, "num_attention_heads": 3})
    model, call = case.build(torch.float32), case.call(dtype=torch.float32)
    apply(model)
    expected = results(model, call)
    enable(model, group)
    check(results(model, call, group), expected)


def test_heads_that_do_not_divide(processes):
    processes.run(with_three_heads)


def two_steps(group, name, options, gradients):
    model, call = model_and_call(name)
    handle = apply(model, **options)
    calls = [{**call, "timestep": torch.full_like(call["timestep"], at)} for at in (500, 400)]
    expected = [results(model, one) for one in calls]
    assert (handle.counts.vmonarch, sum(handle.counts.dense.values())) == (1, 1)
    enable(model, group)
    handle.reset()
    handle.new_video()
    for one, wanted in zip(calls, expected, strict=True):
        check(results(model, one, group), wanted)
    assert (handle.counts.vmonarch, sum(handle.counts.dense.values())) == (1, 1)
    assert f"processes of {group.size()} (Ulysses)" in handle.report()


@pytest.mark.parametrize("name", ["WAN_CASE", "HUNYUAN_CASE", "COGVIDEOX_CASE"])
def test_dense_steps_and_layers(processes, name):
    """Dense attention is diffusers' own, but where the plan is not."""
    processes.run(two_steps, name, dict(dense_steps=1, dense_layers=1), True)


def is_removed(group, name):
    model, call = model_and_call(name)
    expected = results(model, call)
    handle = apply(model)
    own_plan = "_cp_plan" in vars(model)
    enable(model, group)
    with torch.no_grad():
        output(model, call)
    handle.remove()
    check(results(model, call, group), expected)
    if own_plan:
        with torch.no_grad():
            dense, handle = output(model, call), apply(model)
            assert not torch.equal(output(model, call), dense) and handle.counts.vmonarch == 1


@pytest.mark.parametrize("name", ["WAN_CASE", "COGVIDEOX_CASE"])
def test_remove(processes, name):
    """Dense and over all processes, also where diffusers could not attend so by itself."""
    processes.run(is_removed, name)


def is_enabled_first(group):
    model, call = model_and_call("WAN_CASE")
    other, _ = model_and_call("WAN_CASE")
    apply(other)
    expected = results(other, call)
    enable(model, group)
    apply(model)
    check(results(model, call, group), expected)


def test_apply_to_a_model_that_is_parallel(processes):
    processes.run(is_enabled_first)


def is_checkpointed(group, name):
    model, call = model_and_call(name)
    apply(model)
    expected = results(model, call)
    enable(model, group)
    model.enable_gradient_checkpointing()
    check(results(model.train(), call, group), expected)


@pytest.mark.parametrize("name", ["WAN_CASE", "COGVIDEOX_CASE"])
def test_gradient_checkpointing(processes, name):
    processes.run(is_checkpointed, name)


def is_compiled(group):
    model, call = model_and_call("WAN_CASE")
    handle = apply(model)
    expected = output(model, call).detach()
    enable(model, group)
    handle.reset()
    model.compile_repeated_blocks(backend="aot_eager")
    with torch.no_grad():
        check({"the output": output(model, call)}, {"the output": expected})
    assert handle.counts.vmonarch == 1


def test_compiled_blocks(processes):
    processes.run(is_compiled)


def warns_of_ring(group):
    """On CPU diffusers' own fails: an original is put in that does not attend."""
    model, call = model_and_call("WAN_CASE")
    handle = apply(model)
    enable(model, group, diffusers.ContextParallelConfig(ring_degree=group.size()))
    for block in model.blocks:
        original = block.attn1.processor.original
        block.attn1.processor.original = mock.Mock(
            side_effect=lambda attn, x, *rest: x, _parallel_config=original._parallel_config
        )
    with pytest.warns(UserWarning, match="ring attention gives no process all tokens"), torch.no_grad():
        output(model, call)
    assert not handle.counts.vmonarch and sum(handle.counts.dense.values()) == 1
    assert all(block.attn1.processor.original.call_count == 1 for block in model.blocks)


def refuses_ring(group):
    model, call = model_and_call("HUNYUAN_CASE")
    apply(model)
    enable(model, group, diffusers.ContextParallelConfig(ring_degree=group.size()))
    with pytest.raises(
        RuntimeError, match="HunyuanVideoTransformer3DModel: ring attention.* has no plan for this model"
    ):
        output(model, call)


def test_ring_stays_dense(processes):
    processes.run(warns_of_ring)
    processes.run(refuses_ring)


def test_models_without_a_plan():
    model, _ = model_and_call("MOTIF_CASE")
    handle = apply(model)
    assert model._cp_plan is None
    handle.remove()
    model, _ = model_and_call("COGVIDEOX_CASE")
    handle = apply(model, dense_layers=1)
    assert model._cp_plan is not None and handle.swapped == ["transformer_blocks.1.attn1"]
    handle.remove()
    assert model._cp_plan is None and not any(isinstance(p, VMonarchProcessor) for p in model.attn_processors.values())


# ---- Where a processor of others would attend within a part of the tokens --------------------------------------------


def is_removed_before_a_call(group):
    model, call = model_and_call("COGVIDEOX_CASE")
    expected = results(model, call)
    handle = apply(model)
    enable(model, group)
    handle.remove()
    check(results(model, call, group), expected)


def refuses_replaced_processors(group):
    model, call = model_and_call("COGVIDEOX_CASE")
    apply(model)
    model.fuse_qkv_projections()
    enable(model, group)
    with pytest.raises(RuntimeError, match="2 video attention modules are not swapped, or not any more; each of these"):
        output(model, call)


def has_no_plan_beside_other_processors(group):
    model, _ = model_and_call("COGVIDEOX_CASE")

    class Other(type(model.transformer_blocks[1].attn1.processor)):
        pass

    model.transformer_blocks[1].attn1.processor = Other()
    handle = apply(model)
    assert len(handle.swapped) == 1 and model._cp_plan is None
    with pytest.raises(ValueError, match="cp_plan"):
        enable(model, group)
    with torch.no_grad():  # every process for itself
        output(model, model_and_call("COGVIDEOX_CASE")[1])
    assert handle.counts.vmonarch == 1


def takes_a_plan_of_the_user(group):
    model, call = model_and_call("COGVIDEOX_CASE")
    plan = CogVideoXProcessor.parallel_plan(model)
    with mock.patch.object(CogVideoXProcessor, "parallel_plan", return_value=None):
        dense = results(model, call)
        handle = apply(model, dense_layers=1)
        expected = results(model, call)
        enable(model, group, cp_plan=plan)
        check(results(model, call, group), expected)
        handle.remove()
        check(results(model, call, group), dense)


@pytest.mark.parametrize(
    "case",
    [
        is_removed_before_a_call,
        refuses_replaced_processors,
        has_no_plan_beside_other_processors,
        takes_a_plan_of_the_user,
    ],
)
def test_nobody_attends_within_a_part(processes, case):
    processes.run(case)


def is_alike_under_autocast(group, name):
    model, call = model_and_call(name)
    apply(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = output(model, call)
        enable(model, group)
        assert relative(output(model, call), expected) < 1e-3


@pytest.mark.parametrize("name", ["WAN_CASE", "HUNYUAN_CASE"])
def test_autocast(processes, name):
    """Some norms give float32 there, and queries come beside values of 16 bits."""
    processes.run(is_alike_under_autocast, name)
