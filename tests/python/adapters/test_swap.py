"""apply(), Handle, supported() and register(): what a user sees, and says wrong."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from adapters.tiny_models import (
    CASES,
    FRAMES,
    HEIGHT,
    HUNYUAN_CASE,
    WAN,
    WAN_CASE,
    WIDTH,
    Case,
    output,
    wan_inputs,
)
from torch import nn

import frameattn
from frameattn.adapters import Handle, VMonarchProcessor, apply, register, supported
from frameattn.adapters.registry import _ADAPTERS

CASE_OF = {str(case): case for case in CASES}


@torch.no_grad()
def run(model, case=WAN_CASE, **changes):
    return output(model, {**case.call(dtype=torch.float32), **changes})


def wan(**arguments):
    return Case("WanTransformer3DModel", {**WAN, **arguments}, wan_inputs).build(torch.float32)


def messages_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught if "frameattn.adapters" in str(warning.message)]


def test_import_is_lazy():
    code = (
        "import sys, frameattn\n"
        "assert 'frameattn.adapters' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        "frameattn.adapters.supported()\n"
        "assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'frameattn' has no attribute 'adapter'"):
        frameattn.adapter  # noqa: B018


# ---- apply and Handle ------------------------------------------------------------------------------------------------


def test_handle_says_what_was_done():
    model = wan(num_layers=3)
    handle = frameattn.adapters.apply(model, iterations=3, mass_floor=0.2, dense_layers=1, dense_steps=2)
    assert handle.swapped == ["blocks.1.attn1", "blocks.2.attn1"]
    assert handle.declined == {"blocks.0.attn1": "in the first 1 blocks"}
    report = handle.report()
    for words in ("2 of 3", "iterations=3", "mass_floor=0.2", "first 2 steps", "in the first 1 blocks: blocks.0.attn1"):
        assert words in report
    run(model)
    assert "token grid: 4 x 3 x 5" in handle.report()
    assert repr(handle) == "<Handle: 2 swapped, 1 declined>"


def test_handle_is_a_context_manager():
    model = wan()
    dense = run(model)
    with apply(model) as handle:
        assert handle.swapped and not torch.equal(run(model), dense)
    assert torch.equal(run(model), dense) and "removed" in handle.report()


def test_remove_leaves_the_processors_of_others():
    model = wan()
    handle, other = apply(model), type(model.blocks[0].attn2.processor)()
    model.blocks[0].attn1.processor = other
    assert handle.swapped == ["blocks.1.attn1"]
    handle.remove()
    assert model.blocks[0].attn1.processor is other


def test_lost_processors_are_noticed_once():
    model = wan()
    apply(model)
    model.blocks[0].attn1.processor = type(model.blocks[0].attn2.processor)()
    (message,) = messages_of(lambda: (run(model), run(model)))
    assert "1 of 2 swapped attention processors were replaced" in message


def test_removed_processor_that_comes_back_calls_its_original():
    model = wan()
    dense, handle = run(model), apply(model)
    ghosts = {name: module.processor for name, module in model.named_modules() if name in handle.swapped}
    handle.remove()
    for name, ghost in ghosts.items():
        model.get_submodule(name).processor = ghost
    assert not messages_of(lambda: run(model))
    assert torch.equal(run(model), dense)
    again = apply(model)  # and it is no obstacle
    assert not torch.equal(run(model), dense)
    again.remove()
    assert not any(isinstance(module.processor, VMonarchProcessor) for module in (b.attn1 for b in model.blocks))


def test_leaves_modules_with_unknown_processors():
    class Sparse:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    model = wan()
    model.blocks[1].attn1.processor = Sparse()
    assert apply(model).declined == {"blocks.1.attn1": "has a processor of another kind, Sparse"}


@pytest.mark.parametrize("second", ["transformer_2", "transformer_ref"])
def test_pipeline_swaps_both_transformers(second):
    pipe = SimpleNamespace(transformer=wan(), vae=nn.Linear(2, 2), **{second: wan()})
    dense = run(pipe.transformer)
    handle = apply(pipe)
    names = ["blocks.0.attn1", "blocks.1.attn1"]
    assert handle.swapped == [f"{part}.{name}" for part in ("transformer", second) for name in names]
    assert f"{second}.WanTransformer3DModel: 2 of 2" in handle.report()
    handle.remove()
    assert torch.equal(run(pipe.transformer), dense)


def test_pipeline_keeps_a_part_that_cannot_be_swapped():
    pipe = SimpleNamespace(transformer=wan(), transformer_2=nn.Linear(2, 2))
    handle = apply(pipe)
    assert list(handle.declined) == ["transformer_2"] and "no adapter" in handle.declined["transformer_2"]
    assert "transformer_2: dense, no adapter" in handle.report()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(method="monarch"), "method must be \"vmonarch\", got 'monarch'"),
        (dict(iterations=0), "iterations must be at least 1, got 0"),
        (dict(mass_floor=-0.1), "mass_floor must be at least 0, got -0.1"),
        (dict(dense_layers=-1), "dense_layers must be at least 0, got -1"),
        (dict(dense_steps=-1), "dense_steps must be at least 0, got -1"),
        (dict(grid=(4, 3)), r"grid must be three numbers \(T, H, W\) of tokens, got \(4, 3\)"),
        (dict(grid=(0, 3, 5)), "grid must be three numbers"),
        (dict(dense_layers=2), "nothing to swap. WanTransformer3DModel: in the first 2 blocks"),
    ],
)
def test_rejects_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        apply(wan(), **options)


def test_rejects_what_cannot_be_swapped():
    with pytest.raises(ValueError, match="nothing to swap. no adapter is registered for Linear: .*register"):
        apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs a model, or a pipeline with a transformer, got SimpleNamespace"):
        apply(SimpleNamespace(unet=nn.Linear(2, 2)))
    causal = Case("SkyReelsV2Transformer3DModel", {**WAN, "num_frame_per_block": 2}, wan_inputs).build()
    with pytest.raises(ValueError, match="num_frame_per_block=2 masks video keys, causally"):
        apply(causal)


def test_rejects_a_second_swap():
    model = wan()
    handle = apply(model)
    with pytest.raises(RuntimeError, match="WanTransformer3DModel is swapped already: remove"):
        apply(model)
    handle.remove()
    apply(model).remove()


@pytest.mark.parametrize(
    "model, words",
    [("LatteTransformer3DModel", "Matrix Attention"), ("SD3Transformer2DModel", "makes images")],
)
def test_declined_classes_say_why(model, words):
    kind = type(model, (nn.Module,), {"__module__": "diffusers.models"})
    with pytest.raises(ValueError, match=f"nothing to swap. {model}: .*{words}"):
        apply(kind())


# ---- Calls that stay dense -------------------------------------------------------------------------------------------


def test_masks_over_video_stay_dense():
    case = CASE_OF["SkyReelsV2Transformer3DModel"]
    model = case.build(torch.float32)
    apply(model)
    model._set_ar_attention(2)  # after apply(), which would have declined it
    (message,) = messages_of(lambda: run(model, case))
    assert "attention_mask given (grid 4 x 3 x 5, 60 video tokens)" in message


def test_masks_for_each_query_stay_dense():
    model = HUNYUAN_CASE.build(torch.float32)
    apply(model)
    attention = model.transformer_blocks[0].attn
    model.transformer_blocks[0].register_forward_pre_hook(lambda block, args: (*args[:3], square(args[3]), *args[4:]))

    def square(mask):
        return mask.expand(-1, -1, mask.size(3), -1).contiguous()

    (message,) = messages_of(lambda: run(model, HUNYUAN_CASE))
    assert "attention_mask given" in message and isinstance(attention.processor, VMonarchProcessor)


def test_given_grid_is_taken():
    case = CASE_OF["LTXVideoTransformer3DModel"]
    model, other = case.build(torch.float32), case.build(torch.float32)
    apply(model)
    apply(other, grid=(FRAMES, HEIGHT, WIDTH))
    assert torch.equal(run(model, case), run(other, case))


def test_grid_of_every_call_is_read():
    model, other = wan(), wan()
    apply(model)
    apply(other)
    run(model)
    changed = WAN_CASE.call(2, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(output(model, changed), output(other, changed))


def test_positional_arguments():
    model = wan()
    handle, call = apply(model), WAN_CASE.call(dtype=torch.float32)
    with torch.no_grad():
        model(call["hidden_states"], call["timestep"], call["encoder_hidden_states"])
    assert "token grid: 4 x 3 x 5" in handle.report()


def test_missing_argument_is_reported_by_the_model():
    model = wan()
    apply(model)
    with pytest.raises(TypeError, match="hidden_states"):
        model(timestep=torch.zeros(1))


# ---- dense_layers and dense_steps ------------------------------------------------------------------------------------


def test_dense_layers_of_vace_count_the_layers_of_the_control_branch():
    case = CASE_OF["WanVACETransformer3DModel"]
    case = Case(case.model, {**case.arguments, "num_layers": 3, "vace_layers": [0, 2]}, case.inputs)
    swapped = apply(case.build(), dense_layers=1).swapped
    assert swapped == ["blocks.1.attn1", "blocks.2.attn1", "vace_blocks.1.attn1"]


def test_dense_layers_go_from_two_stream_to_single_stream_blocks():
    assert apply(HUNYUAN_CASE.build(), dense_layers=1).swapped == ["single_transformer_blocks.0.attn"]


def test_dense_steps_take_the_largest_timestep_of_the_tokens():
    case = CASE_OF["Wan-TI2V"]
    model, untouched = case.build(torch.float32), case.build(torch.float32)
    apply(model, dense_steps=1)
    assert torch.equal(run(model, case), run(untouched, case))


# ---- supported and register ------------------------------------------------------------------------------------------


def test_supported_lists_each_model_once():
    table = supported()
    assert len({support.model for support in table}) == len(table)
    assert all(support.notes and support.verdict in ("swap", "decline") for support in table)


def test_supported_decides_about_every_model():
    diffusers = pytest.importorskip("diffusers")
    if tuple(map(int, diffusers.__version__.split(".")[:2])) > (0, 42):
        pytest.skip(f"supported() was last compared with diffusers 0.42, this is {diffusers.__version__}")
    known = {support.model.removeprefix("diffusers.") for support in supported()}
    models = {name for name in dir(diffusers) if name.endswith(("Transformer3DModel", "Transformer2DModel"))}
    assert not models - known


class Attention(nn.Module):
    """What a user wrote: one projection, no norm, a mask of booleans."""

    def __init__(self):
        super().__init__()
        self.heads = 2
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.norm_q = self.norm_k = None
        self.processor = PlainProcessor()

    def forward(self, hidden_states):
        return self.processor(self, hidden_states)


class PlainProcessor:
    def __call__(self, attn, hidden_states):
        query, key, value = (
            layer(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class UserTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, clip):  # [B, T, H, W, 8]
        x = clip.flatten(1, 3)
        for layer in self.layers:
            x = x + layer(x)
        return x


class UserProcessor(VMonarchProcessor):
    models = (UserTransformer,)
    modules = r"layers\.\d+"
    processors = ("PlainProcessor",)
    notes = "of a test"

    @staticmethod
    def grid(model, arguments):
        return tuple(arguments["clip"].shape[1:4])

    def __call__(self, attn, hidden_states):
        if not self.swaps(hidden_states.size(1)):
            return self.original(attn, hidden_states)
        return self.attend(*frameattn.adapters.project_heads(attn, hidden_states))


@pytest.fixture
def registered():
    before = list(_ADAPTERS)
    register(UserProcessor)
    yield
    _ADAPTERS[:] = before


def test_register_a_model(registered):
    torch.manual_seed(0)
    model, clip = UserTransformer(), 3 * torch.randn(2, 4, 3, 5, 8)
    with torch.no_grad():
        dense = model(clip)
        with apply(model) as handle:
            assert handle.swapped == ["layers.0", "layers.1"]
            assert not torch.allclose(model(clip), dense, atol=1e-3)
            one_frame = model(clip[:, :1])
            with pytest.warns(UserWarning, match="called outside of a call of the model"):
                torch.testing.assert_close(one_frame, UserTransformer.forward(model, clip[:, :1]))  # dense
        assert torch.equal(model(clip), dense)
    assert [support.notes for support in supported() if support.model.endswith(".UserTransformer")] == ["of a test"]


def test_register_by_name_wins_over_what_was_there(registered):
    @register
    class Other(UserProcessor):
        models = (f"{UserTransformer.__module__.partition('.')[0]}.UserTransformer",)

    model = UserTransformer()
    apply(model)
    assert type(model.layers[0].processor) is Other


def test_register_rejects_what_is_no_adapter():
    with pytest.raises(TypeError, match="needs a subclass of VMonarchProcessor"):
        register(PlainProcessor)
    with pytest.raises(TypeError, match=r"Unfinished.processors must be a tuple of names, got \(\)"):
        register(type("Unfinished", (VMonarchProcessor,), dict(models=("a.B",), modules="x")))
    with pytest.raises(TypeError, match=r"Unfinished.models must be a tuple of names, got 'a.B'"):
        register(type("Unfinished", (VMonarchProcessor,), dict(models="a.B", modules="x", processors=("C",))))


def test_handle_of_what_is_not_swapped():
    with pytest.raises(ValueError, match="Linear is not swapped"):
        Handle.of(nn.Linear(2, 2))
