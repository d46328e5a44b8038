"""Gaussian diffusion with 1000 steps: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, a_t = product of (1 - beta).

The loss and the variational bound are written here, because diffusers has neither; sampling steps are those of the
diffusers schedulers (samplers.py). Tables are float64 and are rounded to the dtype of the data once.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frameattn._optional import require
from frameattn.diffusion.samplers import create_scheduler, linear_betas

Model = Callable[..., Any]


class GaussianDiffusion:
    r"""The forward process $q(x_t | x_0)$ of DDPM and the losses and samplers of a network that reverses it.

    Args:
        learn_sigma: the network returns 2 C channels: its prediction, then v in -1..1 for the variance, which is
            interpolated between the smallest and the largest possible one: $\log\sigma^2 = \frac{v + 1}{2}
            \log\beta_t + \frac{1 - v}{2}\log\tilde\beta_t$ (arXiv 2102.09672, equation 15).
        predict_xstart: the network predicts x_0 instead of the noise.
        sigma_small: without learn_sigma, DDPM samples with the posterior variance instead of beta.
        max_snr_weight: weighs the squared error of x_0 in the loss by min(1 + SNR_t, max_snr_weight), SNR_t =
            a_t / (1 - a_t) (arXiv 2202.00512, section 4, with the bound of arXiv 2303.09556). Fine detail, which is
            decided at little noise, counts for little without it. None: no weight. With predict_xstart only.
        channel_dim: 2 for x [B, T, C, H, W] (FrameDiT-G and -H), 1 for x [B, C, T, H, W] (FrameDiT-H T2V).

    A model is called as ``model(x, t, **model_kwargs)`` with t [B] int64 and returns a tensor or an object with
    ``.sample``. x_0 is never clipped.
    """

    num_timesteps = 1000

    def __init__(
        self,
        learn_sigma: bool = True,
        predict_xstart: bool = False,
        sigma_small: bool = False,
        channel_dim: int = 2,
        max_snr_weight: float | None = None,
    ):
        if channel_dim not in (1, 2):
            raise ValueError(f"GaussianDiffusion: channel_dim must be 1 or 2, got {channel_dim}")
        if max_snr_weight is not None and not (predict_xstart and max_snr_weight > 0):
            raise ValueError(
                "GaussianDiffusion: max_snr_weight must be more than 0 and goes with predict_xstart, "
                f"got {max_snr_weight} and predict_xstart={predict_xstart}"
            )
        self.learn_sigma = learn_sigma
        self.predict_xstart = predict_xstart
        self.sigma_small = sigma_small
        self.channel_dim = channel_dim

        betas = linear_betas(self.num_timesteps)
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        posterior_variance = betas * (1 - previous) / (1 - alphas_cumprod)
        posterior_variance[0] = posterior_variance[1]  # 0 at step 0, and its logarithm is wanted
        self.tables = {
            "signal": alphas_cumprod.sqrt(),
            "noise": (1 - alphas_cumprod).sqrt(),
            "log_beta": betas.log(),
            "log_posterior_variance": posterior_variance.log(),
            "mean_x_start": betas * previous.sqrt() / (1 - alphas_cumprod),
        }
        if max_snr_weight is not None:
            self.tables["weight"] = (1 / (1 - alphas_cumprod)).clamp(max=max_snr_weight)  # 1 + SNR

    def add_noise(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for t [B], in the dtype of x_start."""
        return self._at("signal", t, x_start) * x_start + self._at("noise", t, x_start) * noise

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of every clip at its own step.

        Args:
            x_start: [B, ...] clean data; the losses are computed in its dtype.
            t: [B] int64 in 0..999.
            noise: like x_start; drawn if None.

        Returns:
            ``mse`` [B], the mean squared error of the noise (of x_0 with predict_xstart); with learn_sigma ``vb`` [B],
            the variational bound in bits per dimension, which trains the variance alone; ``loss`` [B], the sum of the
            (weighed) mse and vb.

        Raises:
            ValueError: t is not [B], or the model's output does not have C (with learn_sigma 2 C) channels.
        """
        if t.shape != x_start.shape[:1]:
            raise ValueError(f"GaussianDiffusion: t must be [B] = [{len(x_start)}], got {list(t.shape)}")
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.add_noise(x_start, t, noise)
        output = self._call(model, x_t, t, model_kwargs or {})
        prediction = output.narrow(self.channel_dim, 0, x_start.shape[self.channel_dim])
        target = x_start if self.predict_xstart else noise
        mse = (target - prediction).square().flatten(1).mean(1)
        loss = mse * self._at("weight", t, mse) if "weight" in self.tables else mse
        if not self.learn_sigma:
            return {"loss": loss, "mse": mse}
        variance = output.chunk(2, self.channel_dim)[1]
        vb = self._variational_bound(prediction.detach(), variance, x_start, x_t, t)
        return {"loss": loss + vb, "mse": mse, "vb": vb}

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        noise: Tensor,
        steps: int = 250,
        method: str = "ddpm",
        model_kwargs: dict[str, Any] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Runs the reverse process from noise [B, ...] to data of the same shape.

        Args:
            steps: 2 .. 1000 calls of the model, spread evenly (``sampling_timesteps``).
            method: ``ddpm`` (ancestral sampling), ``ddim`` (deterministic) or ``dpm`` (DPM-Solver++ 2M, deterministic,
                good from 15 steps on).
            generator: draws the noise of ddpm; the other methods draw nothing.
            progress: show a bar.

        Raises:
            ValueError: unknown method or impossible number of steps.
        """
        scheduler = create_scheduler(method, steps, self.learn_sigma, self.predict_xstart, self.sigma_small)
        timesteps = scheduler.timesteps.tolist()
        if progress:
            timesteps = require("tqdm").tqdm(timesteps, desc=method, unit="step")
        x = noise
        for step in timesteps:
            t = torch.full((len(x),), step, dtype=torch.int64, device=x.device)
            output = self._call(model, x, t, model_kwargs or {})
            if method != "ddpm":
                output = output.narrow(self.channel_dim, 0, x.shape[self.channel_dim])
            x = self._step(scheduler, output, step, x, generator if method == "ddpm" else None)
        return x

    def _step(self, scheduler: Any, output: Tensor, step: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # diffusers looks for the variance in dimension 1: frames are folded into the batch.
        fold = self.channel_dim - 1
        previous = scheduler.step(output.flatten(0, fold), step, x.flatten(0, fold), generator=generator).prev_sample
        return previous.reshape(x.shape).to(x.dtype)

    def _call(self, model: Model, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The model's output in the dtype of x: the prediction and, with learn_sigma, behind it v."""
        returned = model(x, t, **kwargs)
        sample: Any = getattr(returned, "sample", returned)
        output = sample.to(x.dtype)
        expected = list(x.shape)
        expected[self.channel_dim] *= 2 if self.learn_sigma else 1
        if list(output.shape) != expected:
            raise ValueError(
                f"GaussianDiffusion(learn_sigma={self.learn_sigma}, channel_dim={self.channel_dim}): "
                f"the model must return {expected}, got {list(output.shape)}"
            )
        return output

    def _variational_bound(
        self, prediction: Tensor, variance: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, -log p(x_0 | x_1) for t = 0, in bits a dimension."""
        fraction = (variance + 1) / 2
        true_log_variance = self._at("log_posterior_variance", t, x_t)
        log_variance = fraction * self._at("log_beta", t, x_t) + (1 - fraction) * true_log_variance

        # The posterior means differ by what the x_0 differ by: x_t enters both alike.
        x_start_error = x_start - prediction
        if not self.predict_xstart:
            x_start_error = x_start - (x_t - self._at("noise", t, x_t) * prediction) / self._at("signal", t, x_t)
        mean_error = self._at("mean_x_start", t, x_t) * x_start_error

        kl = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + torch.exp(true_log_variance - log_variance)
            + mean_error.square() * torch.exp(-log_variance)
        )
        # At t = 0 the mean of p is the predicted x_0 itself (mean_x_start = 1).
        likelihood = _discretised_gaussian_log_likelihood(x_start, mean_error, torch.exp(-0.5 * log_variance))
        nats = torch.where(t == 0, -likelihood.flatten(1).mean(1), kl.flatten(1).mean(1))
        return nats / math.log(2)

    def _at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """A table's entries for t [B], broadcastable to like [B, ...]."""
        values = self.tables[table].to(t.device)[t].to(like.dtype)
        return values.view(-1, *[1] * (like.dim() - 1))


def _discretised_gaussian_log_likelihood(x: Tensor, error: Tensor, inverse_sigma: Tensor) -> Tensor:
    """log of the Gaussian's mass in the bin around x: 256 bins from -1 to 1, the outer ones reach to infinity."""
    upper = torch.special.ndtr(inverse_sigma * (error + 1 / 255))
    lower = torch.special.ndtr(inverse_sigma * (error - 1 / 255))
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log()
