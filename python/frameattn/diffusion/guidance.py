"""Classifier-free guidance: uncond + scale (cond - uncond), from one call of the model on the doubled batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def classifier_free_guidance(
    model: Callable[..., Any], labels: Tensor, null_label: int, scale: float, channel_dim: int = 2
) -> Callable[..., Tensor]:
    """A model without conditions for ``GaussianDiffusion.sample``: it is guided to labels.

    Args:
        model: called as ``model(x, t, y=...)``.
        labels: [B] int64.
        null_label: the class that stands for no condition (num_classes in FrameDiT).
        scale: 1 returns the conditional model, with half the work.

    The prediction (as many channels as x has) is guided; a learned variance behind it is the conditional one. For four
    latent channels this is ``forward_with_cfg`` of FrameDiT without its second, identical half.
    """
    if scale == 1:
        return lambda x, t: model(x, t, y=labels)
    both_labels = torch.cat([labels, torch.full_like(labels, null_label)])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        output = model(torch.cat([x, x]), torch.cat([t, t]), y=both_labels)
        conditional, unconditional = getattr(output, "sample", output).chunk(2)
        channels = x.shape[channel_dim]
        prediction = conditional.narrow(channel_dim, 0, channels)
        null_prediction = unconditional.narrow(channel_dim, 0, channels)
        variance = conditional.narrow(channel_dim, channels, conditional.shape[channel_dim] - channels)
        return torch.cat([null_prediction + scale * (prediction - null_prediction), variance], channel_dim)

    return guided
