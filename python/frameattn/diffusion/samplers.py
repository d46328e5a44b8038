"""Which steps a sampler visits, and the diffusers scheduler that takes them.

diffusers computes the same algorithms as the official code of FrameDiT only with these settings: the timesteps are
passed (its own spacings round differently), the table of alphas is float64, and DDIM is DPM-Solver++ of order 1
(its DDIMScheduler assumes that the previous step is t - 1000 // steps).
"""

from typing import Any

import torch
from torch import Tensor

from frameattn._optional import require

METHODS = ("ddpm", "ddim", "dpm")


def linear_betas(count: int = 1000) -> Tensor:
    """beta_t from 1e-4 to 0.02, float64."""
    return torch.linspace(1e-4, 0.02, count, dtype=torch.float64)


def sampling_timesteps(steps: int, total: int = 1000) -> list[int]:
    """The timesteps of a sampler, descending from total - 1 to 0 and evenly spread.

    The stride is added up and each sum rounded half to even: the rounding that FrameDiT's checkpoints were evaluated
    with; ``round(i * stride)`` gives other timesteps for some counts.

    Examples:
        >>> sampling_timesteps(5)
        [999, 749, 500, 250, 0]
    """
    if not 2 <= steps <= total:
        raise ValueError(f"sampling_timesteps: steps must be in 2..{total}, got {steps}")
    stride = (total - 1) / (steps - 1)
    position, ascending = 0.0, []
    for _ in range(steps):
        ascending.append(round(position))
        position += stride
    return ascending[::-1]


def create_scheduler(method: str, steps: int, learn_sigma: bool, predict_xstart: bool, sigma_small: bool) -> Any:
    """The diffusers scheduler of a method ("ddpm", "ddim" or "dpm"), with its timesteps set."""
    if method not in METHODS:
        raise ValueError(f"GaussianDiffusion: method must be one of {', '.join(METHODS)}, got {method!r}")
    timesteps = sampling_timesteps(steps)
    diffusers = require("diffusers")
    options = {
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "sample" if predict_xstart else "epsilon",
    }
    if method == "ddpm":
        variance = "learned_range" if learn_sigma else "fixed_small" if sigma_small else "fixed_large"
        scheduler = diffusers.DDPMScheduler(variance_type=variance, clip_sample=False, **options)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            solver_order=1 if method == "ddim" else 2,
            algorithm_type="dpmsolver++",
            lower_order_final=True,
            final_sigmas_type="zero",
            **options,
        )
    scheduler.alphas_cumprod = torch.cumprod(1 - linear_betas(), 0)
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler
