"""Losses against float64 written out per element from the papers' formulas (DDPM, improved DDPM)."""

import math

import pytest
import torch

from frameattn.diffusion import GaussianDiffusion

BETAS = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
ALPHAS_BAR = [math.prod(1 - beta for beta in BETAS[: i + 1]) for i in range(1000)]


def clip_at(t, x, prediction, v, noise, predict_xstart=False):
    """(mse, vb) of one value at step t, from the definitions."""
    a, previous = ALPHAS_BAR[t], ALPHAS_BAR[t - 1] if t else 1.0
    x_t = math.sqrt(a) * x + math.sqrt(1 - a) * noise
    x_predicted = prediction if predict_xstart else (x_t - math.sqrt(1 - a) * prediction) / math.sqrt(a)

    def posterior_mean(x_start):
        return (
            math.sqrt(previous) * BETAS[t] / (1 - a) * x_start
            + math.sqrt(1 - BETAS[t]) * (1 - previous) / (1 - a) * x_t
        )

    at = max(t, 1)
    posterior_variance = BETAS[at] * (1 - ALPHAS_BAR[at - 1]) / (1 - ALPHAS_BAR[at])
    log_variance = (v + 1) / 2 * math.log(BETAS[t]) + (1 - v) / 2 * math.log(posterior_variance)
    mean, sigma = posterior_mean(x_predicted), math.exp(0.5 * log_variance)
    if t:
        q = torch.distributions.Normal(
            torch.tensor(posterior_mean(x), dtype=torch.float64), math.sqrt(posterior_variance)
        )
        p = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), sigma)
        nats = torch.distributions.kl_divergence(q, p).item()
    else:

        def cdf(z):
            return 0.5 * (1 + math.erf(z / math.sqrt(2)))

        upper = 1.0 if x > 0.999 else cdf((x + 1 / 255 - mean) / sigma)
        lower = 0.0 if x < -0.999 else cdf((x - 1 / 255 - mean) / sigma)
        nats = -math.log(max(upper - lower, 1e-12))
    target = x if predict_xstart else noise
    return (target - prediction) ** 2, nats / math.log(2)


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 3, 2, 2, 2, generator=generator, dtype=torch.float64) * 2 - 1
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1] = 1.0, -1.0  # the outer bins
    t = torch.tensor([0, 0, 1, 437, 999])
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    output = torch.randn(5, 3, 4, 2, 2, generator=generator, dtype=torch.float64) * 0.3
    return x, t, noise, output


@pytest.mark.parametrize("predict_xstart", [False, True])
def test_losses_match_definition(predict_xstart):
    x, t, noise, output = random_case()
    output[0, :, :2] = x[0] if predict_xstart else noise[0]  # a good prediction: the bins hold mass
    diffusion = GaussianDiffusion(predict_xstart=predict_xstart)
    losses = diffusion.training_losses(lambda x_t, t: output, x, t, noise=noise)
    for clip in range(5):
        prediction, v = output[clip].chunk(2, 1)
        values = zip(*(part.flatten().tolist() for part in (x[clip], prediction, v, noise[clip])), strict=True)
        terms = [clip_at(t[clip].item(), *value, predict_xstart) for value in values]
        mse, vb = (sum(term) / len(terms) for term in zip(*terms, strict=True))
        assert losses["mse"][clip].item() == pytest.approx(mse, rel=1e-9)
        assert losses["vb"][clip].item() == pytest.approx(vb, rel=1e-7)
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["vb"])


def test_add_noise_is_what_the_model_sees():
    x, t, noise, output = random_case()
    seen = []
    GaussianDiffusion().training_losses(lambda x_t, t: seen.append(x_t) or output, x, t, noise=noise)
    a = torch.tensor(ALPHAS_BAR, dtype=torch.float64)[t].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(seen[0], a.sqrt() * x + (1 - a).sqrt() * noise)


def test_vb_is_zero_for_the_true_posterior():
    x, _, noise, output = random_case()
    t = torch.tensor([1, 10, 100, 500, 999])
    output[:, :, :2], output[:, :, 2:] = noise, -1.0  # v = -1: the posterior's variance
    vb = GaussianDiffusion().training_losses(lambda x_t, t: output, x, t, noise=noise)["vb"]
    torch.testing.assert_close(vb, torch.zeros_like(vb), atol=1e-12, rtol=0)


def test_vb_trains_the_variance_alone():
    x, t, noise, output = random_case()
    output.requires_grad_()
    losses = GaussianDiffusion().training_losses(lambda x_t, t: output, x, t, noise=noise)
    (gradient,) = torch.autograd.grad(losses["vb"].sum(), output)
    assert gradient[:, :, :2].abs().max() == 0
    assert gradient[2:, :, 2:].abs().min() > 0


def test_channel_dim_1_is_the_same_loss():
    x, t, noise, output = random_case()
    frames_first = GaussianDiffusion().training_losses(lambda x_t, t: output, x, t, noise=noise)
    channels_first = GaussianDiffusion(channel_dim=1).training_losses(
        lambda x_t, t: output.transpose(1, 2), x.transpose(1, 2), t, noise=noise.transpose(1, 2)
    )
    for name, value in frames_first.items():
        torch.testing.assert_close(channels_first[name], value)


def test_without_sigma_only_mse_in_the_dtype_of_x():
    x, t, noise, output = random_case()
    diffusion = GaussianDiffusion(learn_sigma=False)
    losses = diffusion.training_losses(lambda x_t, t: output[:, :, :2].bfloat16(), x.float(), t, noise=noise.float())
    assert set(losses) == {"loss", "mse"}
    assert losses["loss"].shape == (5,) and losses["loss"].dtype == torch.float32


def test_model_kwargs_and_sample_attribute():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    x, t, noise, output = random_case()
    plain = GaussianDiffusion().training_losses(lambda x_t, t: output * 2, x, t, noise=noise)
    wrapped = GaussianDiffusion().training_losses(
        lambda x_t, t, factor: Output(output * factor), x, t, {"factor": 2}, noise
    )
    torch.testing.assert_close(plain["loss"], wrapped["loss"])


def test_snr_weight_is_bounded_and_in_the_loss_alone():
    x, t, noise, output = random_case()
    plain, weighed = (
        GaussianDiffusion(predict_xstart=True, max_snr_weight=weight).training_losses(
            lambda x_t, t: output, x, t, noise=noise
        )
        for weight in (None, 5.0)
    )
    weights = torch.tensor([min(1 / (1 - ALPHAS_BAR[i]), 5.0) for i in t.tolist()], dtype=torch.float64)  # 1 + SNR
    assert weights[0] == 5 and 1 < weights[3] < 5
    torch.testing.assert_close(weighed["mse"], plain["mse"])
    torch.testing.assert_close(weighed["loss"], weights * plain["mse"] + plain["vb"])


def test_rejects_bad_inputs():
    x, t, _, output = random_case()
    with pytest.raises(ValueError, match=r"t must be \[B\] = \[5\], got \[4\]"):
        GaussianDiffusion().training_losses(lambda x_t, t: output, x, t[:4])
    with pytest.raises(ValueError, match=r"must return \[5, 3, 2, 2, 2\], got \[5, 3, 4, 2, 2\]"):
        GaussianDiffusion(learn_sigma=False).training_losses(lambda x_t, t: output, x, t)
    with pytest.raises(ValueError, match="channel_dim must be 1 or 2, got 3"):
        GaussianDiffusion(channel_dim=3)
    for options in (dict(max_snr_weight=5.0), dict(max_snr_weight=0.0, predict_xstart=True)):
        with pytest.raises(ValueError, match="max_snr_weight must be more than 0 and goes with predict_xstart, got"):
            GaussianDiffusion(**options)
