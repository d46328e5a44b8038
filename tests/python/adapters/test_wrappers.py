"""Models within wrappers, and subclasses of models: apply() finds the model, and a call says its grid."""

import functools
import warnings

import pytest
import torch
from adapters.test_models import relative_error
from adapters.tiny_models import WAN_CASE, output
from torch import nn

from frameattn.adapters import Handle, apply
from frameattn.adapters.forward import MISSING, Forward

diffusers = pytest.importorskip("diffusers")
NAMES = ["blocks.0.attn1", "blocks.1.attn1"]


@pytest.fixture(scope="module")
def expected():
    model = WAN_CASE.build(torch.float32)
    apply(model)
    with torch.no_grad():
        return output(model, WAN_CASE.call(dtype=torch.float32))


def plain(names):
    return [name.replace("_fsdp_wrapped_module.", "") for name in names]


def check(handle, wrapper, expected):
    """The hooks fire when the wrapper is called."""
    before = handle.counts.vmonarch
    with torch.no_grad():
        assert relative_error(output(wrapper, WAN_CASE.call(dtype=torch.float32)), expected) < 1e-6
    assert handle.counts.vmonarch == before + 1 == handle.counts.calls


# ---- Wrappers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def peft_model(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["to_q"]))


def peft_tuner(model):
    return peft_model(model).base_model


def data_parallel(model):
    return nn.DataParallel(model)


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def fully_sharded(model):
    fsdp = torch.distributed.fsdp
    policy = functools.partial(fsdp.wrap.lambda_auto_wrap_policy, lambda_fn=lambda m: "Block" in type(m).__name__)
    return fsdp.FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )


def fully_sharded_in_place(model):
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for block in model.blocks:
        torch.distributed.fsdp.fully_shard(block, mesh=mesh)
    return torch.distributed.fsdp.fully_shard(model, mesh=mesh)


WRAPPERS = [peft_model, peft_tuner, data_parallel, distributed, fully_sharded, fully_sharded_in_place]


@pytest.mark.parametrize("first", ["wrap", "apply"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped(wrap, first, process_group, expected):
    model = WAN_CASE.build(torch.float32)
    if first == "apply":
        apply(model)
        wrapper = wrap(model)
        handle = Handle.of(wrapper)
    else:
        wrapper = wrap(model)
        handle = apply(wrapper)
    assert plain(handle.swapped) == NAMES
    check(handle, wrapper, expected)
    assert Handle.of(wrapper).swapped == Handle.of(model).swapped == handle.swapped
    with pytest.raises(RuntimeError, match="is swapped already"):
        apply(wrapper)
    handle.remove()
    assert not handle.swapped


@pytest.mark.parametrize("wrap", [peft_model, distributed, fully_sharded])
def test_compiled_wrapper(wrap, process_group, expected):
    torch.compiler.reset()
    compiled = torch.compile(wrap(WAN_CASE.build(torch.float32)), backend="eager")
    handle = apply(compiled)
    assert plain(handle.swapped) == NAMES and Handle.of(compiled).swapped == handle.swapped
    with torch.no_grad():
        assert relative_error(output(compiled, WAN_CASE.call(dtype=torch.float32)), expected) < 1e-6
    torch.compiler.reset()


# ---- Subclasses ------------------------------------------------------------------------------------------------------


def passes_on(self, *args, **kwargs):
    return diffusers.WanTransformer3DModel.forward(self, *args, **kwargs)


def names_some(self, hidden_states, timestep, **kwargs):
    return diffusers.WanTransformer3DModel.forward(self, hidden_states, timestep, **kwargs)


def names_the_first(self, hidden_states, *args, scale=1.0, **kwargs):
    return diffusers.WanTransformer3DModel.forward(self, scale * hidden_states, *args, **kwargs)


def names_another(self, *, control=None, **kwargs):
    return diffusers.WanTransformer3DModel.forward(self, **kwargs)


@pytest.mark.parametrize("dense_steps", [0, 1])
@pytest.mark.parametrize("forward", [passes_on, names_some, names_the_first, names_another])
def test_subclass(forward, dense_steps, expected):
    model = WAN_CASE.build(torch.float32)
    model.__class__ = type("Subclass", (type(model),), {"forward": forward})
    handle = apply(model, dense_steps=dense_steps)
    call = WAN_CASE.call(dtype=torch.float32)
    if dense_steps:
        output(model, {**call, "timestep": call["timestep"] + 1})
        assert handle.counts.dense == {"in the first 1 steps of a video": 1}
        handle.reset()
    check(handle, model, expected)
    if forward is not names_another:  # by position
        model(call["hidden_states"], call["timestep"], encoder_hidden_states=call["encoder_hidden_states"])
        assert handle.counts.vmonarch == 2


class Base(nn.Module):
    def forward(self, x, t, *, size=None, flag=False):
        return x


def subclass_of(base, forward):
    return type("Subclass", (base,), {"forward": forward})


@pytest.mark.parametrize(
    "forward, args, kwargs, found",
    [
        (lambda self, *args, **kwargs: None, (1, 2), dict(size=3), dict(x=1, t=2, size=3, flag=False)),
        (lambda self, x, *args, **kwargs: None, (1, 2), {}, dict(x=1, t=2, size=None, flag=False)),
        (lambda self, x, own=5, **kwargs: None, (1,), dict(t=2), dict(x=1, own=5, t=2, size=None, flag=False)),
        (lambda self, x, flag=True, **kwargs: None, (), dict(x=1, t=2), dict(x=1, t=2, size=None, flag=True)),
        (lambda self, own, *args, **kwargs: None, (0, 1), {}, dict(own=0, x=MISSING, t=MISSING, size=None, flag=False)),
        (lambda self, x: None, (1,), {}, dict(x=1)),
    ],
)
def test_arguments_are_bound_by_the_class_that_names_them(forward, args, kwargs, found):
    signature = Forward(subclass_of(Base, forward)())
    assert signature.bind(args, kwargs) == found
    assert all(name in signature for name in found) and "other" not in signature
    below = Forward(subclass_of(subclass_of(Base, forward), lambda self, *args, **kwargs: None)())
    assert below.bind(args, kwargs) == found


def test_arguments_that_nothing_names_are_said_to_be_the_reason():
    model = WAN_CASE.build(torch.float32)

    def renamed(self, latent, *args, **kwargs):
        return diffusers.WanTransformer3DModel.forward(self, latent, *args, **kwargs)

    model.__class__ = type("Subclass", (type(model),), {"forward": renamed})
    handle, call = apply(model), WAN_CASE.call(dtype=torch.float32)
    latent = call.pop("hidden_states")
    with pytest.warns(UserWarning, match="passes on arguments that it does not name"), torch.no_grad():
        model(latent, **call)
    assert list(handle.counts.dense.values()) == [1]


class Renamed(diffusers.WanTransformer3DModel):
    def forward(self, latents, timestep, text):
        return super().forward(latents, timestep, text)


@pytest.mark.parametrize("compiled", [False, True])
def test_arguments_of_other_names_are_said_to_be_the_reason(compiled, expected):
    """A given grid takes their place."""
    model, untouched = (WAN_CASE.build(torch.float32) for _ in range(2))
    model.__class__ = Renamed
    torch.compiler.reset()
    caller = torch.compile(lambda *args: model(*args), backend="eager", fullgraph=True) if compiled else model
    call = WAN_CASE.call(dtype=torch.float32)
    args = call["hidden_states"], call["timestep"], call["encoder_hidden_states"]
    handle = apply(model)
    with pytest.warns(UserWarning, match="has no argument named hidden_states"), torch.no_grad():
        assert relative_error(caller(*args)[0], output(untouched, call)) < 1e-6
    assert compiled or list(handle.counts.dense.values()) == [1]
    handle.remove()
    torch.compiler.reset()
    with torch.no_grad():
        for grid, result in ((4, 3, 5), expected), ((5, 3, 5), output(untouched, call)):
            with warnings.catch_warnings(record=True) as caught, apply(model, grid=grid):
                warnings.simplefilter("always")
                assert relative_error(caller(*args)[0], result) < 1e-6
            assert any("the grid does not hold the tokens" in str(one.message) for one in caught) == (grid[0] == 5)
    torch.compiler.reset()
