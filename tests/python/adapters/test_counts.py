"""handle.counts, report() and profile(): what the calls of a model ran."""

import copy
import itertools
import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import pytest
import torch
from adapters.tiny_models import CASES, LTX2_CASE, WAN_CASE, output
from torch.utils.checkpoint import checkpoint

from frameattn.adapters import apply
from frameattn.adapters.call import Call, Layout
from frameattn.adapters.counts import NONE_RAN, Counts
from frameattn.adapters.profile import Profile, Share

SKYREELS_CASE = next(case for case in CASES if case.model == "SkyReelsV2Transformer3DModel")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="frameattn.adapters")
        yield


def swapped(case=WAN_CASE, **options):
    model = case.build(torch.float32)
    return model, case.call(dtype=torch.float32), apply(model, **options)


def test_counts_what_ran():
    model, call, handle = swapped(dense_steps=1)
    assert not handle.counts and "calls of the model: none yet" in handle.report()
    for timestep in (900, 900, 800, 700, 900):
        output(model, {**call, "timestep": torch.full((2,), timestep)})
    assert handle.counts == Counts(vmonarch=2, dense={"in the first 1 steps of a video": 3})
    assert "calls of the model: 2 with VMonarch, 3 dense (in the first 1 steps of a video)" in handle.report()
    handle.reset()
    assert handle.counts == Counts()
    other = copy.deepcopy(model)
    output(other, call)
    assert handle.counts == Counts()


def test_a_model_whose_calls_all_fall_back_is_not_said_to_run_vmonarch():
    model, call, handle = swapped(grid=(5, 3, 5))
    output(model, call)
    ((reason, calls),) = handle.counts.dense.items()
    assert "the grid does not hold the tokens (grid 5 x 3 x 5, 60 video tokens)" in reason and calls == 1
    assert f"calls of the model: 1 dense ({reason})" in handle.report() and "with VMonarch" not in handle.report()


def test_counts_reasons_that_only_a_processor_sees():
    model, call, handle = swapped(SKYREELS_CASE)
    output(model, call)
    model._set_ar_attention(2)  # after apply(), which would have declined it
    output(model, call)
    assert handle.counts == Counts(vmonarch=1, dense={"attention_mask given": 1})


def test_counts_calls_that_are_dense_in_part():
    model, call, handle = swapped(LTX2_CASE)
    output(model, call)
    output(model, {**call, "spatio_temporal_guidance_blocks": [1]})
    assert handle.counts == Counts(vmonarch=2, partly={"perturbation_mask given": 1})
    assert "2 with VMonarch, 1 of these dense in part (perturbation_mask given)" in handle.report()


def test_counts_calls_that_ran_no_attention():
    model, call, handle = swapped()
    for block in model.blocks:
        block.forward = lambda hidden_states, *_: hidden_states
    output(model, call)
    assert handle.counts == Counts(dense={NONE_RAN: 1})


def test_counts_over_the_parts_of_a_pipeline():
    pipe = SimpleNamespace(transformer=WAN_CASE.build(torch.float32), transformer_2=WAN_CASE.build(torch.float32))
    handle = apply(pipe)
    for transformer in (pipe.transformer, pipe.transformer, pipe.transformer_2):
        output(transformer, WAN_CASE.call(dtype=torch.float32))
    assert handle.counts.vmonarch == 3 and "calls of the model: 2 with VMonarch" in handle.report()


def test_counts_of_compiled_blocks():
    model, call, handle = swapped(SKYREELS_CASE)
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    output(model, call)
    model._set_ar_attention(2)
    for _ in range(2):
        output(model, call)
    torch.compiler.reset()
    assert handle.counts == Counts(vmonarch=1, dense={"attention_mask given": 2})


def test_counts_of_code_that_cannot_say():
    """Under a compiled checkpoint: what all of the compiled code does is known, which part of it ran is not."""
    counts, call = Counts(), Call(Layout((4, 3, 5)), marked=False)
    counts.add(call, {None})
    assert counts == Counts(vmonarch=1)
    counts.add(call, {"masked"})
    assert counts == Counts(vmonarch=1, dense={"masked": 1})
    counts.add(call, {None, "masked"})
    assert counts == Counts(vmonarch=1, dense={"masked": 1}, unseen=1)
    assert str(counts) == "1 with VMonarch, 1 dense (masked), 1 compiled, dense or not"


def test_counts_of_compiled_blocks_that_did_not_run():
    """As under a cache: what they would have run is no guess where they say what they ran."""
    model, call, handle = swapped()
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    output(model, call)
    for block in model.blocks:
        block._compiled_call_impl, block.forward = None, lambda hidden_states, *_: hidden_states
    output(model, call)
    torch.compiler.reset()
    assert handle.counts == Counts(vmonarch=1, dense={NONE_RAN: 1})


def test_counting_reads_nothing_from_the_device():
    model, call, handle = swapped()
    reads = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy")
    with mock.patch.multiple(torch.Tensor, **{name: mock.Mock(side_effect=AssertionError(name)) for name in reads}):
        output(model, call)
    assert handle.counts.vmonarch == 1


# ---- profile ---------------------------------------------------------------------------------------------------------


def test_profile():
    model, call, handle = swapped(dense_steps=1)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with handle.profile() as profile:
        for timestep in (900, 800, 700):
            output(model, {**call, "timestep": torch.full((2,), timestep)})
    output(model, call)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert (profile.dense.calls, profile.swapped.calls) == (1, 2)
    for share in (profile.dense, profile.swapped):
        assert 0 < share.attention < share.model
    assert "attention, dense: " in str(profile) and " ms in 2 calls" in str(profile)


def test_profile_leaves_backward_out():
    """Which runs the modules again."""
    model, call, handle = swapped()
    model.train().enable_gradient_checkpointing()
    with handle.profile() as profile, torch.enable_grad():
        result = output(model, call).sum()
        with mock.patch("frameattn.adapters.profile._now", side_effect=AssertionError("in backward")):
            result.backward()
    assert profile.swapped.calls == 1


def test_profile_of_no_calls_and_of_compiled_code():
    model, _, handle = swapped()
    with handle.profile() as profile:
        pass
    assert str(profile) == "no calls"
    assert str(Profile(swapped=Share(2, 0.5))).startswith("attention, swapped: not seen in 2 calls")
    model.blocks[0].compile(backend="eager")
    with pytest.raises(RuntimeError, match="profile before compiling"), handle.profile():
        pass


class Event:
    """Of CUDA; its time is its number."""

    events: ClassVar[list] = []

    def __init__(self, enable_timing):
        assert enable_timing
        self.events.append(self)
        self.waited = False

    def record(self, stream):
        self.at = len(self.events)

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, stop):
        assert stop.waited
        return 1e3 * (stop.at - self.at)


@contextmanager
def profile_with_cuda(handle, devices):
    """A profile where CUDA is in use and the parameters are on these devices, one after the other."""
    Event.events.clear()
    parameters = [SimpleNamespace(device=torch.device(device)) for device in devices]
    with (
        mock.patch.multiple("torch.cuda", Event=Event, is_initialized=lambda: True, current_device=lambda: 0),
        mock.patch("torch.cuda.current_stream"),
        mock.patch("frameattn.adapters.profile._parameter", side_effect=itertools.cycle(parameters)),
        handle.profile() as profile,
    ):
        yield profile


# Offload of the model brings it within its call, that by group or by layer for the layers alone.
@pytest.mark.parametrize("devices", [["cuda:0"], ["cpu", *5 * ["cuda:0"]], ["cpu"]], ids=["", "model", "group"])
def test_profile_takes_events_of_cuda(devices):
    """Recorded around the modules, waited for at the end alone."""
    model, call, handle = swapped()
    with profile_with_cuda(handle, devices) as profile:
        output(model, call)
        assert len(Event.events) == 6 and not any(event.waited for event in Event.events)
    assert profile.swapped.model == 5 and profile.swapped.attention == 2


def test_profile_of_modules_that_change_the_device():
    """No events measure from one to another."""
    model, call, handle = swapped()
    with profile_with_cuda(handle, ["cuda:0", *5 * ["cuda:1"]]) as profile:
        output(model, call)
    assert 0 < profile.swapped.model < 5 and profile.swapped.attention == 2


def test_profile_leaves_models_out_that_backward_runs_again():
    model, call, handle = swapped()
    latent = call.pop("hidden_states").requires_grad_()
    with handle.profile() as profile, torch.enable_grad():
        checkpoint(lambda x: output(model, {**call, "hidden_states": x}), latent, use_reentrant=False).sum().backward()
    assert profile.swapped.calls == 1 == handle.counts.calls
