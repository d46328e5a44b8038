"""Samplers against float64 loops of DDPM (arXiv 2006.11239), DDIM (2010.02502) and DPM-Solver++ 2M (2211.01095)."""

import pytest
import torch

from frameattn.diffusion import GaussianDiffusion, classifier_free_guidance, sampling_timesteps

ALPHAS_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SHAPE = (2, 3, 2, 4, 4)


def denoiser(x, t):
    """A stand-in for a network: the noise of data with variance 0.36, bent a little, and a variance."""
    a = ALPHAS_BAR.to(x.dtype)[t].view(-1, 1, 1, 1, 1)
    eps = x * (1 - a).sqrt() / (0.36 * a + 1 - a) + 0.02 * torch.sin(3 * x)
    return torch.cat([eps, torch.tanh(2 * x)], 2)


def x0_denoiser(x, t):
    a = ALPHAS_BAR.to(x.dtype)[t].view(-1, 1, 1, 1, 1)
    return torch.cat([(x - (1 - a).sqrt() * denoiser(x, t)[:, :, :2]) / a.sqrt(), torch.tanh(2 * x)], 2)


def steps_with_previous(steps):
    timesteps = sampling_timesteps(steps)
    return [(t, ALPHAS_BAR[t], ALPHAS_BAR[s] if s is not None else torch.tensor(1.0, dtype=torch.float64))
            for t, s in zip(timesteps, [*timesteps[1:], None], strict=True)]  # fmt: skip


def split(x, t):
    output = denoiser(x, torch.full((len(x),), t))
    a = ALPHAS_BAR[t]
    eps, v = output.chunk(2, 2)
    return (x - (1 - a).sqrt() * eps) / a.sqrt(), eps, v


def ddpm(x, steps, noises, variance_type):
    for t, a, previous in steps_with_previous(steps):
        x_start, _, v = split(x, t)
        beta = 1 - a / previous
        mean = (previous.sqrt() * beta * x_start + (a / previous).sqrt() * (1 - previous) * x) / (1 - a)
        if t == 0:
            return mean
        posterior = beta * (1 - previous) / (1 - a)
        variance = {
            "learned": torch.exp((v + 1) / 2 * beta.log() + (1 - v) / 2 * posterior.log()),
            "large": beta,
            "small": posterior,
        }[variance_type]
        x = mean + variance.sqrt() * next(noises)


def ddim(x, steps):
    for t, _, previous in steps_with_previous(steps):
        x_start, eps, _ = split(x, t)
        x = previous.sqrt() * x_start + (1 - previous).sqrt() * eps
    return x


def dpm(x, steps):
    last = None
    for t, a, previous in steps_with_previous(steps):
        x_start, _, _ = split(x, t)
        if t == 0:
            return x_start
        h = 0.5 * (previous / (1 - previous)).log() - 0.5 * (a / (1 - a)).log()
        data = x_start
        if last is not None:
            data = x_start + h / last[1] / 2 * (x_start - last[0])
        x = ((1 - previous) / (1 - a)).sqrt() * x - previous.sqrt() * torch.expm1(-h) * data
        last = x_start, h


def noise_and_rest(steps):
    """The first x, what the sampler's generator will draw after it, and that generator."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    noises = iter([torch.randn(SHAPE, generator=generator).double() for _ in range(steps)])
    return x, noises, torch.Generator().manual_seed(2)


def error(sampled, truth):
    assert sampled.dtype == torch.float32 and sampled.shape == truth.shape
    return (sampled - truth).abs().max().item()


@pytest.mark.parametrize("steps", [10, 21, 250])
@pytest.mark.parametrize("variance_type", ["learned", "large", "small"])
def test_ddpm_matches_float64(steps, variance_type):
    x, noises, generator = noise_and_rest(steps)
    learned = variance_type == "learned"
    diffusion = GaussianDiffusion(learn_sigma=learned, sigma_small=variance_type == "small")
    model = denoiser if learned else lambda x, t: denoiser(x, t)[:, :, :2]
    sampled = diffusion.sample(model, x, steps, "ddpm", generator=generator, progress=False)
    assert error(sampled, ddpm(x.double(), steps, noises, variance_type)) < 1e-5


@pytest.mark.parametrize("steps", [10, 21, 250])
@pytest.mark.parametrize("method", ["ddim", "dpm"])
def test_ddim_and_dpm_match_float64(method, steps):
    x, *_ = noise_and_rest(0)
    sampled = GaussianDiffusion().sample(denoiser, x, steps, method, progress=False)
    assert error(sampled, {"ddim": ddim, "dpm": dpm}[method](x.double(), steps)) < 2e-5


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_predict_xstart_is_the_same_process(method):
    x, *_ = noise_and_rest(0)
    eps, xstart = (
        GaussianDiffusion(predict_xstart=predict_xstart).sample(
            model, x, 20, method, generator=torch.Generator().manual_seed(3), progress=False
        )
        for predict_xstart, model in ((False, denoiser), (True, x0_denoiser))
    )
    torch.testing.assert_close(eps, xstart, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_channel_dim_1(method):
    one_frame = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    frames_first, channels_first = (
        GaussianDiffusion(channel_dim=dim).sample(
            model, x, 10, method, generator=torch.Generator().manual_seed(3), progress=False
        )
        for dim, model, x in (
            (2, denoiser, one_frame),
            (1, lambda x, t: denoiser(x.transpose(1, 2), t).transpose(1, 2), one_frame.transpose(1, 2)),
        )
    )
    torch.testing.assert_close(frames_first, channels_first.transpose(1, 2))


def test_model_sees_descending_timesteps_and_kwargs():
    seen = []

    def model(x, t, scale):
        assert t.dtype == torch.int64 and t.shape == (2,)
        seen.append(t[0].item())
        return denoiser(x, t) * scale

    GaussianDiffusion().sample(model, torch.randn(SHAPE), 7, "ddim", {"scale": 1.0}, progress=False)
    assert seen == sampling_timesteps(7)


@pytest.mark.parametrize("steps", [2, 3, 10, 21, 50, 63, 250, 999, 1000])
def test_timesteps_accumulate_the_stride(steps):
    position, expected = 0.0, set()
    for _ in range(steps):
        expected.add(round(position))
        position += 999 / (steps - 1)
    timesteps = sampling_timesteps(steps)
    assert timesteps == sorted(expected, reverse=True)
    assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] == 0


def test_timesteps_round_half_to_even():
    assert sampling_timesteps(3) == [999, 500, 0]  # 499.5
    assert sampling_timesteps(7) == [999, 832, 666, 500, 333, 166, 0]  # 166.5, 499.5, 832.5


def test_guidance_is_one_call_and_guides_the_prediction_only():
    calls = []

    def model(x, t, y):
        calls.append((len(x), y.tolist()))
        return torch.cat([x, x], 2) * (y + 1).view(-1, 1, 1, 1, 1)

    x, t = torch.randn(SHAPE), torch.tensor([5, 5])
    output = classifier_free_guidance(model, torch.tensor([1, 3]), null_label=9, scale=3.0)(x, t)
    assert calls == [(4, [1, 3, 9, 9])]
    factor = torch.tensor([2.0, 4.0]).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(output[:, :, :2], x * (10 + 3 * (factor - 10)))
    torch.testing.assert_close(output[:, :, 2:], x * factor)


def test_guidance_of_scale_1_is_the_conditional_model():
    def model(x, t, y):
        assert len(x) == 2
        return x * y.view(-1, 1, 1, 1, 1)

    x = torch.randn(SHAPE)
    output = classifier_free_guidance(model, torch.tensor([1, 3]), null_label=9, scale=1)(x, torch.tensor([5, 5]))
    torch.testing.assert_close(output, x * torch.tensor([1.0, 3.0]).view(-1, 1, 1, 1, 1))


def test_rejects_bad_inputs():
    x = torch.randn(SHAPE)
    with pytest.raises(ValueError, match="method must be one of ddpm, ddim, dpm, got 'euler'"):
        GaussianDiffusion().sample(denoiser, x, method="euler")
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=rf"steps must be in 2..1000, got {steps}"):
            GaussianDiffusion().sample(denoiser, x, steps=steps)
