"""Swapped models of diffusers under context parallelism: against the same model in one process."""

import warnings
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from adapters import tiny_models
from adapters.tiny_models import FRAMES, output

from frameattn.adapters import apply
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
    grads = torch.autograd.grad((out * randn(*out.shape, seed=7).to(out.dtype)).sum(), leaves.values(), allow_unused=True)
    found = {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in zip(leaves.items(), grads)}
    if group is not None:
        for grad in found.values():
            grad.copy_(grad.contiguous())
            torch.distributed.all_reduce(grad, group=group)
    return {"the output": out.detach(), **found}


def check(actual, expected):
    largest = max(x.abs().max() for x in expected.values())
    for name, x in expected.items():
        # A bias of all keys has no gradient, but for rounding.
        error = (actual[name] - x).abs().max() / x.abs().max().clamp(min=1e-2 * largest)
        assert error < TOLERANCE, f"{name}: {error:.2g}"


def model_and_call(name, frames=FRAMES):
    case = getattr(tiny_models, name)
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
