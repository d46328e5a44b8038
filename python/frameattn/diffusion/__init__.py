"""Gaussian diffusion as FrameDiT trains and samples it: losses, samplers, classifier-free guidance."""

from frameattn.diffusion.gaussian import GaussianDiffusion
from frameattn.diffusion.guidance import classifier_free_guidance
from frameattn.diffusion.samplers import METHODS, sampling_timesteps

__all__ = ["METHODS", "GaussianDiffusion", "classifier_free_guidance", "sampling_timesteps"]
