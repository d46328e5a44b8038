"""torch's tensor parallelism of modules.Linear, where x and parameters are DTensors."""

import copy
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from frameattn.models.framedit import Mlp
from frameattn.modules import linear
from oracle import randn


def is_the_layer_of_one_process(group, compiled):
    torch.manual_seed(0)
    whole = Mlp(6, 8).double()
    expected = nn.Sequential(nn.Linear(6, 8), nn.GELU("tanh"), nn.Linear(8, 6)).double()
    expected.load_state_dict(dict(zip(expected.state_dict(), whole.state_dict().values(), strict=True)))
    mesh = DeviceMesh.from_group(group, "cpu")
    sharded = parallelize_module(copy.deepcopy(whole), mesh, {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
    assert isinstance(sharded.fc1.weight, DTensor) and sharded.fc1.weight.placements == (Shard(0),)

    x, weights = randn(2, 3, 6), randn(2, 3, 6, seed=1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with patch.object(linear, "_SLOW", frozenset({torch.float64})):
        call = torch.compile(sharded, backend="aot_eager", fullgraph=True) if compiled else sharded
        out = call(ours)
        (out * weights).sum().backward()
    reference = expected(theirs)
    (reference * weights).sum().backward()
    torch.testing.assert_close(out, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for parameter, wanted in zip(sharded.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), wanted.grad)
    assert dist.get_world_size(group) == 2


@pytest.mark.parametrize("compiled", [False, True])
def test_columns_then_rows(processes, compiled):
    processes.run(is_the_layer_of_one_process, compiled)
