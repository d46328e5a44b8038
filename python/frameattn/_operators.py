"""The operators: ``torch.ops.frameattn``, or the namespace that the library was built with (docs/hub_kernel.md)."""

import torch

from frameattn import _load

operators = getattr(torch.ops, _load.operator_namespace())
