"""A swapped Wan beside everything else that people do to a model of diffusers.

What is expected of each is what diffusers does to the untouched model, with the attention of the reference in it.
"""

import copy
import io
import pickle
import warnings
from unittest import mock

import pytest
import torch
from adapters.test_models import relative_error, value_and_gradients
from adapters.tiny_models import CASES, HUNYUAN_CASE, WAN_CASE, output, reference_attention

from frameattn.adapters import Handle, apply
from frameattn.adapters.diffusers.wan import WanProcessor

diffusers = pytest.importorskip("diffusers")

FLOAT32 = 2e-6
EVERY_MODEL = pytest.mark.parametrize("case", {case.model: case for case in reversed(CASES)}.values(), ids=str)


def model_and_call(case=WAN_CASE, dtype=torch.float32):
    return case.build(dtype), case.call(dtype=dtype)


def expected_of(model, call, case=WAN_CASE):
    """Of a model that is not swapped."""
    with reference_attention(case) as calls, torch.no_grad():
        result = output(model, call)
    assert calls
    return result


def check(model, call, expected, tolerance=FLOAT32):
    with torch.no_grad():
        assert relative_error(output(model, call).double(), expected.double()) < tolerance


# ---- Copies ----------------------------------------------------------------------------------------------------------


def test_deepcopy():
    model, call = model_and_call()
    dense = output(model, call)
    handle = apply(model)
    swapped = output(model, call)
    other = copy.deepcopy(model)
    handle.remove()
    assert torch.equal(output(model, call), dense)
    assert torch.equal(output(other, call), swapped)  # a copy is a swap of its own
    own = Handle.of(other)
    assert own.swapped == ["blocks.0.attn1", "blocks.1.attn1"]
    output(other, WAN_CASE.call(2, dtype=torch.float32))
    assert "2 x 3 x 5" in own.report() and "4 x 3 x 5" in handle.report()
    own.remove()
    assert torch.equal(output(other, call), dense) and not other._forward_pre_hooks


def test_handle_and_model_copied_together():
    model, call = model_and_call()
    dense = output(model, call)
    other, handle = copy.deepcopy((model, apply(model)))
    handle.remove()
    assert torch.equal(output(other, call), dense) and not torch.equal(output(model, call), dense)


@pytest.mark.parametrize("dense_steps", [0, 1])
def test_pickle(dense_steps):
    model, call = model_and_call()
    dense = output(model, call)
    apply(model, dense_steps=dense_steps)
    steps = [call, {**call, "timestep": call["timestep"] - 100}]
    expected = [output(model, step) for step in steps]
    assert torch.equal(expected[0], dense) == bool(dense_steps)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert all(torch.equal(output(other, step), theirs) for step, theirs in zip(steps, expected, strict=True))
        Handle.of(other).remove()
        assert torch.equal(output(other, call), dense)


def test_state_dict():
    model, call = model_and_call()
    other, _ = model_and_call()
    weights = {name: 1.01 * weight for name, weight in model.state_dict().items()}
    other.load_state_dict(weights)
    expected = expected_of(other, call)
    apply(model)
    model.load_state_dict(weights)
    check(model, call, expected)


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_whole(model, **options):
    return torch.compile(model, **options)


def compile_in_place(model, **options):
    model.compile(**options)
    return model


def compile_blocks(model, **options):
    if not hasattr(model, "compile_repeated_blocks"):
        pytest.skip(f"diffusers {diffusers.__version__} compiles no repeated blocks")
    model.compile_repeated_blocks(**options)
    return model


HOW = pytest.mark.parametrize("how", [compile_whole, compile_in_place, compile_blocks])
EAGER = dict(backend="aot_eager", fullgraph=True)


@HOW
@pytest.mark.parametrize("case", [WAN_CASE, HUNYUAN_CASE], ids=str)
def test_compile_after_apply(how, case):
    model, call = model_and_call(case)
    expected = expected_of(model, call, case)
    apply(model)
    check(how(model, **EAGER), call, expected)


@EVERY_MODEL
def test_every_swapped_attention_compiles_without_a_graph_break(case):
    model, call = model_and_call(case)
    expected = expected_of(model, call, case)
    for name in apply(model).swapped[:1]:
        model.get_submodule(name).compile(**EAGER)
    check(model, call, expected)


@HOW
def test_compile_before_apply(how):
    model, call = model_and_call()
    dense, expected = output(model, call), expected_of(model, call)
    compiled = how(model, **EAGER)
    check(compiled, call, dense)
    handle = apply(compiled)
    check(compiled, call, expected)
    handle.remove()
    check(compiled, call, dense)


@HOW
def test_compiled_grids_and_fallback(how):
    model, call = model_and_call()
    dense, few = output(model, call), WAN_CASE.call(2, dtype=torch.float32)
    with reference_attention(WAN_CASE, 2):
        expected_of_few = output(model, few)
    expected = expected_of(model, call)
    handle = apply(model)
    compiled = how(model, **EAGER)
    check(compiled, call, expected)
    check(compiled, few, expected_of_few)
    handle.remove()
    apply(model, grid=(5, 3, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            check(compiled, call, dense)
    assert ["grid 5 x 3 x 5, 60 video tokens" in str(warning.message) for warning in caught].count(True) == 1


def test_compile_with_dense_steps():
    model, call = model_and_call()
    dense, later = output(model, call), {**call, "timestep": call["timestep"] - 100}
    expected = expected_of(model, later)
    apply(model, dense_steps=1)
    compiled = torch.compile(model, **EAGER)
    for _ in range(2):
        check(compiled, call, dense)
        check(compiled, later, expected)


def test_compiled_gradients():
    model, call = WAN_CASE.build(), WAN_CASE.call()
    apply(model)
    _, expected = value_and_gradients(model, call)
    _, gradients = value_and_gradients(torch.compile(model, **EAGER), WAN_CASE.call())
    for ours, theirs in zip(gradients, expected, strict=True):
        assert theirs is None or torch.allclose(ours, theirs, rtol=1e-5, atol=1e-9)


def test_inductor():
    model, call = model_and_call()
    expected = expected_of(model, call)
    apply(model)
    check(compile_blocks(model, fullgraph=True), call, expected)


# ---- What diffusers, peft and accelerate do to a model ---------------------------------------------------------------


def with_lora(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def test_lora_loaded_after_apply():
    model, call = model_and_call()
    other, _ = model_and_call()
    expected = expected_of(with_lora(other), call)
    assert relative_error(expected, expected_of(WAN_CASE.build(torch.float32), call)) > 0.01
    apply(model)
    check(with_lora(model), call, expected)


@pytest.mark.parametrize("first", ["apply", "lora", "cast"])
def test_lora_and_then_layerwise_casting(first):
    """To 8 bits, in which no LoRA can begin: cast last, ahead of apply() or behind it."""

    def cast(model):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        return model

    model, call = model_and_call()
    other, _ = model_and_call()
    expected = expected_of(cast(with_lora(other)), call)
    if first == "apply":
        apply(model)
    with_lora(model)
    if first == "lora":
        apply(model)
    cast(model)
    if first == "cast":
        apply(model)
    check(model, call, expected)


def test_fused_projections():
    model, call = model_and_call()
    expected = expected_of(model, call)
    handle = apply(model)
    model.fuse_qkv_projections()
    with mock.patch.object(model.blocks[0].attn1.to_q, "forward", side_effect=AssertionError("not fused")):
        check(model, call, expected)
    model.unfuse_qkv_projections()
    check(model, call, expected)
    assert len(handle.swapped) == 2


def test_gradient_checkpointing():
    model = WAN_CASE.build().train()
    apply(model)
    _, expected = value_and_gradients(model, WAN_CASE.call())
    model.enable_gradient_checkpointing()
    with mock.patch.object(WanProcessor, "attend", autospec=True, side_effect=WanProcessor.attend) as attend:
        _, gradients = value_and_gradients(model, WAN_CASE.call())
    assert attend.call_count == 4  # both blocks, again in backward
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None) and (theirs is None or torch.allclose(ours, theirs))


@EVERY_MODEL
def test_bfloat16(case):
    exact = expected_of(*model_and_call(case, torch.float64), case)
    model, call = model_and_call(case, torch.bfloat16)
    allowed = 2 * relative_error(expected_of(model, call, case).double(), exact)
    apply(model)
    check(model, call, exact, tolerance=allowed)


def test_autocast():
    model, call = model_and_call()
    with torch.autocast("cpu", torch.bfloat16):
        expected = expected_of(model, call)
        apply(model)
        check(model, call, expected, tolerance=0.02)


def test_group_offload():
    hooks = pytest.importorskip("diffusers.hooks")
    device = torch.device("cpu")

    def offload(model):
        hooks.apply_group_offloading(model, device, device, offload_type="block_level", num_blocks_per_group=1)
        return model

    model, call = model_and_call()
    other, _ = model_and_call()
    try:
        expected = expected_of(offload(other), call)
    except AttributeError:  # of a device that is None
        pytest.skip(f"diffusers {diffusers.__version__} offloads no groups where there is no accelerator")
    handle = apply(model)
    check(offload(model), call, expected)
    assert not handle._states[""].warnings.messages


@pytest.mark.parametrize("before", [True, False])
def test_model_offload(before):
    accelerate = pytest.importorskip("accelerate")
    model, call = model_and_call()
    expected = expected_of(model, call)
    if before:
        accelerate.cpu_offload(model, execution_device="cpu")
    handle = apply(model)
    if not before:
        accelerate.cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta
    check(model, call, expected)
    assert not handle._states[""].warnings.messages


def test_layerwise_casting():
    def cast(model):
        model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        return model

    model, call = model_and_call()
    other, _ = model_and_call()
    expected = expected_of(cast(other), call)
    apply(model)
    check(cast(model), call, expected)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def caches():
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: 500,
    )
    yield "PyramidAttentionBroadcast", config
    if hasattr(diffusers, "FirstBlockCacheConfig"):
        yield "FirstBlockCache", diffusers.FirstBlockCacheConfig(threshold=0.5)


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in caches()])
def test_caching_hooks(config):
    def three_steps(model):
        model.enable_cache(config)
        results = []
        for step in range(3):
            with model.cache_context("test") if hasattr(model, "cache_context") else mock.MagicMock():
                results.append(output(model, {**call, "timestep": call["timestep"] - 10 * step}))
        return results

    model, call = model_and_call()
    other, _ = model_and_call()
    with reference_attention(WAN_CASE) as calls, torch.no_grad():
        expected = three_steps(other)
    assert 0 < len(calls) < 6  # the cache is used
    apply(model)
    with torch.no_grad():
        for actual, theirs in zip(three_steps(model), expected, strict=True):
            assert relative_error(actual, theirs) < FLOAT32


def test_set_attention_backend():
    model, call = model_and_call()
    if not hasattr(model, "set_attention_backend"):
        pytest.skip(f"diffusers {diffusers.__version__} has no attention backends")
    expected = expected_of(model, call)
    handle = apply(model)
    originals = [block.attn1.processor.original for block in model.blocks]
    try:
        model.set_attention_backend("_native_math")
        assert {original._attention_backend.value for original in originals} == {"_native_math"}
        check(model, call, expected)
        handle.remove()
        assert [block.attn1.processor for block in model.blocks] == originals
        assert model.blocks[0].attn1.processor._attention_backend.value == "_native_math"
    finally:
        model.set_attention_backend("native")  # diffusers keeps the last one for all models
