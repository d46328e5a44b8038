"""Configurations: files, values over them, types, and what a wrong key is answered with."""

import pytest

from frameattn._errors import UsageError
from frameattn.training.config import Config, Named, Stage
from frameattn.training.config_io import build_config, config_values, read_config, save_config

MINIMAL = {"data": {"name": "moving_digits"}}


def test_plan_without_stages():
    config = build_config({**MINIMAL, "steps": 7, "batch": 3, "images": 2})
    assert config.plan(16) == [Stage(steps=7, batch=3, frames=16, images=2)]


def test_survives_a_file(tiny_config, tmp_path):
    config = read_config(tiny_config)
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert build_config(config_values(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(learning_rat=1), "unknown key learning_rat: did you mean learning_rate?"),
        (dict(diffusion=dict(sigma=1)), "unknown key diffusion.sigma: did you mean diffusion"),
        (dict(stages=[dict(step=1)]), r"unknown key stages\[0\].step: did you mean stages\[0\].steps?"),
        (dict(stages=[dict(steps=1)]), r"stages\[0\].batch is missing"),
        (dict(stages=[dict(steps=1, batch=1, frames=0)]), r"stages\[0\] needs .* frames \+ images >= 1"),
        (dict(stages=5), r"stages must be a list like \[{steps: 1000, batch: 4, frames: 16}\], got 5"),
        (dict(steps=1.5), "steps must be a whole number, got 1.5"),
        (dict(steps=True), "steps must be a whole number, got True"),
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(learning_rate="fast"), "learning_rate must be a number, got 'fast'"),
        (dict(compile=1), "compile must be true or false, got 1"),
        (dict(betas=[0.9]), r"betas must be a list of 2 numbers, got \[0.9\]"),
        (dict(schedule="linear"), "schedule must be constant or cosine, got 'linear'"),
        (dict(sampling=dict(method="euler")), "sampling.method must be ddpm or ddim or dpm, got 'euler'"),
        (
            dict(diffusion=5),
            "diffusion must be a section with learn_sigma, predict_xstart, sigma_small, max_snr_weight, got 5",
        ),
        (dict(ema_decay=1), "ema_decay must be 0 or more, less than 1, got 1.0"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
        (dict(learning_rate=0), "learning_rate must be more than 0, got 0.0"),
    ],
)
def test_rejects_bad_values(tiny_config, values, message):
    with pytest.raises(UsageError, match=message):
        read_config(tiny_config, values)


def test_null_is_none():
    assert build_config({**MINIMAL, "clip_norm": None}).clip_norm is None


def test_data_is_required():
    with pytest.raises(UsageError, match="data is missing"):
        build_config({})


def test_rejects_files_that_are_not_configurations(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "must hold `key: value` lines, got a list")):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_config(path)


def test_defaults_are_the_published_ones():
    config = Config(data=Named("x"))
    assert (config.learning_rate, config.weight_decay, config.clip_norm, config.clip_start, config.ema_decay) == (
        1e-4, 0.0, 0.1, 20_000, 0.9999,
    )  # fmt: skip
