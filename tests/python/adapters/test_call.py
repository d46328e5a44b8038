"""What belongs to a call of the model stays with it: in compiled blocks, in backward, in threads, after an error."""

import gc
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from adapters.test_models import relative_error
from adapters.tiny_models import BATCH, COGVIDEOX_CASE, HUNYUAN_CASE, MOCHI_CASE, WAN, WAN_CASE, output
from torch import nn
from torch.utils.checkpoint import checkpoint

from frameattn.adapters import VMonarchProcessor, apply
from frameattn.adapters.call import running
from oracle import randn

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    assert running.call is None


def wan_call(grid, dtype=torch.float64, seed=1, **changes):
    """Of a tiny Wan, for T x H x W tokens."""
    t, h, w = grid
    latent = randn(BATCH, 4, t, 2 * h, 2 * w, seed=seed).to(dtype)
    return {**WAN_CASE.call(dtype=dtype), "hidden_states": latent, **changes}


# ---- Compiled --------------------------------------------------------------------------------------------------------

GRIDS = [(4, 3, 5), (6, 2, 5), (5, 4, 3), (3, 4, 5), (2, 5, 6)]  # of 60 tokens
GRIDS += [(7, 2, 2), (2, 7, 2), (8, 2, 3), (9, 2, 3), (3, 6, 3), (10, 2, 3), (11, 3, 2)]
SMALL_CASE = replace(WAN_CASE, arguments={**WAN, "num_layers": 1})


@pytest.fixture
def counter():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()


def compiled_as_needed(how, counter, grids, swap=True):
    """The handle of a swapped model that, compiled in some way, gives eager's values for all grids."""
    eager, model = SMALL_CASE.build(torch.float32), SMALL_CASE.build(torch.float32)
    handle = [apply(each) for each in (eager, model)][1] if swap else None
    compiled = how(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for grid in grids:
            call = wan_call(grid, torch.float32)
            assert relative_error(output(compiled, call), output(eager, call)) < 1e-6
    return handle


def blocks(model, **options):
    if not hasattr(model, "compile_repeated_blocks"):
        pytest.skip(f"diffusers {diffusers.__version__} compiles no repeated blocks")
    model.compile_repeated_blocks(**options)
    return model


class Caller(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **arguments):
        return self.model(**arguments)


def within_another(model, **options):
    return torch.compile(Caller(model), **options)


def test_compiled_blocks_hold_for_all_grids(counter):
    compiled_as_needed(blocks, counter, GRIDS[4:7], swap=False)
    assert counter.frame_count == 2
    torch.compiler.reset()
    counter.clear()
    handle = compiled_as_needed(blocks, counter, GRIDS)
    assert counter.frame_count == 2
    assert handle.counts.vmonarch == len(GRIDS) == handle.counts.calls


def test_compiled_model_holds_for_all_grids(counter):
    handle = compiled_as_needed(torch.compile, counter, GRIDS[:4])
    assert counter.frame_count <= 3  # as unswapped: sizes that change one after the other
    assert handle.counts.vmonarch == 4  # the hooks of a model that is compiled by itself run as ever


def test_compiled_within_another_function(counter):
    handle = compiled_as_needed(within_another, counter, GRIDS[:3])
    assert counter.frame_count <= 3
    assert not handle.counts
    assert "calls of the model: not counted in the compiled function" in handle.report()
    assert "a part of, which runs VMonarch\n" in handle.report() + "\n"


def test_compiled_blocks_in_two_threads(counter):
    model = WAN_CASE.build(torch.float32)
    apply(model)
    calls = [wan_call(grid, torch.float32) for grid in GRIDS[:2]]
    with torch.no_grad():
        expected = [output(model, call) for call in calls]
        blocks(model, backend=counter, fullgraph=True)
        for (result, _), theirs in zip(in_two_threads(model, calls, model.patch_embedding), expected, strict=True):
            assert relative_error(result, theirs) < 1e-6


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(strict):
    model = SMALL_CASE.build(torch.float32)
    apply(model)
    t, h, w = (torch.export.Dim(name, min=2, max=16) for name in "thw")
    call = wan_call((4, 3, 5), torch.float32)
    dynamic = dict.fromkeys(call)
    dynamic["hidden_states"] = {2: t, 3: 2 * h, 4: 2 * w}
    with torch.no_grad():
        program = torch.export.export(model, (), call, dynamic_shapes=dynamic, strict=strict).module()
        for grid in GRIDS[1:4]:
            call = wan_call(grid, torch.float32)
            assert relative_error(output(program, call), output(model, call)) < 1e-6


# ---- Run again by backward -------------------------------------------------------------------------------------------

THREE = [(6, 2, 2), (2, 4, 3), (1, 3, 4)]  # the first two have 24 tokens; an image


def gradients(models, calls, between=lambda: None):
    """Of one loss over a call of each model."""
    calls = [{**call, "hidden_states": call["hidden_states"].detach().requires_grad_()} for call in calls]
    loss = sum(
        (output(model, call) * randn(*call["hidden_states"].shape, seed=9)).sum()
        for model, call in zip(models, calls, strict=True)
    )
    between()
    leaves = [p for model in dict.fromkeys(models) for p in model.parameters()]
    leaves += [call["hidden_states"] for call in calls]
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [leaf.grad for leaf in leaves]


def assert_equal(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours - theirs).norm() <= 1e-12 * theirs.norm() + 1e-300


def by_diffusers(use_reentrant, model):
    def again(module, *args):
        return checkpoint(module.__call__, *args, use_reentrant=use_reentrant)

    model.enable_gradient_checkpointing(again)


def by_wrappers(model):
    wrappers = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    model.blocks = nn.ModuleList(wrappers.checkpoint_wrapper(block) for block in model.blocks)


EVERY_WAY = pytest.mark.parametrize(
    "enable", [partial(by_diffusers, False), partial(by_diffusers, True), by_wrappers], ids=["", "reentrant", "wrapper"]
)


def trained(case=WAN_CASE, **options):
    model = case.build().train()
    return model, apply(model, **options)


@EVERY_WAY
def test_checkpointing_with_three_sizes_in_one_loss(enable):
    calls = [wan_call(grid) for grid in THREE]
    expected = gradients([trained()[0]] * 3, calls)
    model, _ = trained()
    enable(model)
    for _ in range(2):
        assert_equal(gradients([model] * 3, calls), expected)


@EVERY_WAY
def test_checkpointing_with_dense_steps(enable):
    calls = [wan_call(grid, timestep=torch.full((BATCH,), at)) for grid, at in zip(THREE, (900, 700, 500), strict=True)]
    calls[1]["hidden_states"] = wan_call(THREE[0], seed=2)["hidden_states"]  # the same video
    expected = gradients([trained(dense_steps=1)[0]] * 3, calls)
    model, handle = trained(dense_steps=1)
    enable(model)
    assert_equal(gradients([model] * 3, calls), expected)
    assert handle.counts.vmonarch == 1 and handle.counts.dense == {"in the first 1 steps of a video": 2}


@EVERY_WAY
def test_checkpointing_with_remove_ahead_of_backward(enable):
    calls = [wan_call(grid) for grid in THREE]
    expected = gradients([trained()[0]] * 3, calls)
    model, handle = trained()
    originals = {name: model.get_submodule(name).processor.original for name in handle.swapped}
    dense = WAN_CASE.build()
    enable(model)

    def between():
        handle.remove()
        assert not handle.swapped and not model._forward_pre_hooks
        with torch.no_grad():
            assert torch.equal(output(model, calls[0]), output(dense, calls[0]))
        with pytest.raises(RuntimeError, match="backward has yet to run blocks again"):
            apply(model)

    assert_equal(gradients([model] * 3, calls, between), expected)
    gc.collect()
    modules = {name.replace("_checkpoint_wrapped_module.", ""): module for name, module in model.named_modules()}
    assert all(modules[name].processor is original for name, original in originals.items())
    apply(model).remove()


def test_checkpointing_over_two_transformers():
    """As in Wan 2.2, in one loss."""
    calls = [wan_call(grid) for grid in THREE[:2]]
    expected = gradients([trained()[0], trained()[0]], calls)
    models = [trained()[0], trained()[0]]
    for model in models:
        model.enable_gradient_checkpointing()
    assert_equal(gradients(models, calls), expected)


@pytest.mark.parametrize("case", [HUNYUAN_CASE, COGVIDEOX_CASE, MOCHI_CASE], ids=str)
def test_checkpointing_beside_text(case):
    def run(model):
        calls = [case.call(frames) for frames in (4, 2)]
        return torch.autograd.grad(
            sum(output(model, call).sum() for call in calls), model.parameters(), allow_unused=True
        )

    expected = run(trained(case)[0])
    model, _ = trained(case)
    model.enable_gradient_checkpointing()
    assert_equal(run(model), expected)


@pytest.mark.parametrize("how", [blocks, torch.compile])
def test_checkpointing_compiled(how, counter):
    calls = [wan_call(grid) for grid in THREE[:2]]
    expected = gradients([trained(SMALL_CASE)[0]] * 2, calls)
    model, handle = trained(SMALL_CASE)
    model.enable_gradient_checkpointing()
    compiled = how(model, backend=counter, fullgraph=True)
    actual = gradients([compiled] * 2, calls)
    for ours, theirs in zip(actual, expected, strict=True):
        assert theirs is None or torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    assert handle.counts.vmonarch == 2 == handle.counts.calls


def test_unknown_checkpointing_is_an_error():
    """Not a wrong gradient."""
    model, _ = trained()

    def forward(block, *args):
        return checkpoint(type(block).forward, block, *args, use_reentrant=False)

    for block in model.blocks:
        block.forward = partial(forward, block)
    with pytest.raises(RuntimeError, match="so that its token grid is lost"):
        gradients([model], [wan_call(THREE[0])])


@pytest.mark.parametrize("dense_steps", [0, 1])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_whole_model_checkpointed(use_reentrant, dense_steps):
    """Its repetition is no other call. What step it was is lost, and an error is better than another gradient."""
    model, handle = trained(dense_steps=dense_steps)
    calls = [wan_call(grid) for grid in THREE]
    expected = gradients([trained()[0]] * 3, calls)

    def again(latent, call):
        return model(**{**call, "hidden_states": latent})

    class Again(nn.Module):
        def forward(self, hidden_states, **call):
            return checkpoint(again, hidden_states, call, use_reentrant=use_reentrant)

        parameters = model.parameters

    if dense_steps:
        with pytest.raises(RuntimeError, match="With dense_steps, checkpoint the blocks"):
            gradients([Again()] * 3, calls)
    else:
        assert_equal(gradients([Again()] * 3, calls), expected)
    assert handle.counts.calls == 3


def test_originals_are_back_at_once_where_nothing_is_run_again():
    model, handle = trained()
    results = output(model, wan_call(THREE[0]))
    handle.remove()
    assert not any(isinstance(block.attn1.processor, VMonarchProcessor) for block in model.blocks)
    results.sum().backward()


# ---- Threads and errors ----------------------------------------------------------------------------------------------


def in_two_threads(model, calls, where):
    """The results of two calls, of which the first waits behind the module ``where`` while the second runs; and what
    either thread was left with."""
    paused, done = threading.Event(), threading.Event()
    results = [None, None]

    def pause(*_):
        if threading.current_thread() is threads[0]:
            paused.set()
            assert done.wait(60)

    @torch.no_grad()
    def run(index):
        if index == 1:
            assert paused.wait(60)
        results[index] = output(model, calls[index]), running.call
        if index == 1:
            done.set()

    hook = where.register_forward_hook(pause)
    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    return results


@pytest.mark.parametrize("dense_steps", [0, 1])
def test_two_threads_share_a_model(dense_steps):
    calls = [wan_call(grid) for grid in GRIDS[:2]]
    model = WAN_CASE.build()
    handle = apply(model, dense_steps=dense_steps)
    with torch.no_grad():
        expected = []
        for call in calls:
            handle.new_video()
            expected.append(output(model, call))
    for (result, left), theirs in zip(in_two_threads(model, calls, model.blocks[0]), expected, strict=True):
        assert torch.equal(result, theirs) and left is None
    assert handle.counts.calls == 4


def test_a_call_that_dies_leaves_nothing_behind():
    model = WAN_CASE.build()
    handle = apply(model)
    with torch.no_grad():
        expected = output(model, wan_call(GRIDS[1]))

        def die(*_):
            raise ValueError("half-way")

        hook = model.blocks[0].register_forward_hook(die)
        with pytest.raises(ValueError, match="half-way"):
            output(model, wan_call(GRIDS[0]))
        assert running.call is None
        hook.remove()
        assert torch.equal(output(model, wan_call(GRIDS[1])), expected)
    assert handle.counts.calls == 2


def test_a_call_that_never_began_ends_no_other():
    """Of a model within another one."""
    inner, outer = WAN_CASE.build(), WAN_CASE.build()
    apply(inner)
    apply(outer)

    def fail(*_):
        with pytest.raises(ValueError, match="zip"):  # in the hook, which reads the grid
            inner(**{**wan_call(GRIDS[0]), "hidden_states": torch.zeros(BATCH, 4)})

    with torch.no_grad():
        expected = output(outer, wan_call(GRIDS[0]))
        hook = outer.blocks[0].register_forward_hook(fail)
        assert torch.equal(output(outer, wan_call(GRIDS[0])), expected)
        hook.remove()


def test_an_interrupted_call_is_forgotten_at_the_next():
    model = WAN_CASE.build()
    apply(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    with torch.no_grad():
        expected = output(model, wan_call(GRIDS[1]))
        hook = model.blocks[0].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            output(model, wan_call(GRIDS[0]))
        hook.remove()
        assert torch.equal(output(model, wan_call(GRIDS[1])), expected)
    assert running.call is None


@pytest.mark.parametrize("own_thread", [False, True])
def test_an_interrupted_call_does_not_outlive_remove(own_thread):
    """What was checkpointed in it may, in the traceback that a notebook keeps; also where another thread removes."""
    model, handle = trained()
    model.enable_gradient_checkpointing()
    dense, call = output(WAN_CASE.build(), wan_call(GRIDS[0])), wan_call(GRIDS[0])
    kept = []

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.norm_out.register_forward_pre_hook(interrupt)
    try:
        output(model, call)
    except KeyboardInterrupt as error:
        kept.append(error)
    hook.remove()
    if own_thread:
        handle.remove()
        assert running.call is None
    else:
        remover = threading.Thread(target=handle.remove)
        remover.start()
        remover.join()
    assert torch.equal(output(model.eval(), call), dense)
    running.call = None


def test_remove_within_a_call_leaves_nothing_behind():
    model = WAN_CASE.build()
    handle = apply(model)
    hook = model.blocks[0].register_forward_hook(lambda *_: handle.remove())
    with torch.no_grad():
        output(model, wan_call(GRIDS[0]))
        assert running.call is None
        hook.remove()
        assert torch.equal(output(model, wan_call(GRIDS[0])), output(WAN_CASE.build(), wan_call(GRIDS[0])))


def test_a_call_within_a_call():
    """Of another swapped model: each has its own."""
    inner, outer = WAN_CASE.build(), WAN_CASE.build()
    apply(inner, iterations=3)
    apply(outer)
    with torch.no_grad():
        expected = output(outer, wan_call(GRIDS[0]))
        hook = outer.blocks[0].register_forward_hook(lambda *_: inner(**wan_call(GRIDS[5])) and None)
        assert torch.equal(output(outer, wan_call(GRIDS[0])), expected)
        hook.remove()
