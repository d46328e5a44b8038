"""Options of a configuration: how they are written, and that they replace values of a file."""

import pytest

from frameattn._errors import UsageError
from frameattn.cli.overrides import parse_overrides
from frameattn.training.config import Named, Stage
from frameattn.training.config_io import build_config, read_config


def test_options_replace_values_of_the_file(tiny_config):
    options = ["--learning-rate", "3e-4", "--model.depth=4", "--sampling.cfg", "3", "--seed", "5"]
    config = read_config(tiny_config, parse_overrides(options))
    assert config.learning_rate == 3e-4
    assert config.model.arguments["depth"] == 4 and config.model.arguments["hidden_size"] == 16
    assert config.sampling.cfg == 3.0 and config.sampling.steps == 3
    assert config.seed == 5
    assert config.stages[1] == Stage(steps=2, batch=2, frames=2, images=1)


def test_names_are_short_for_sections(tiny_config):
    config = build_config(parse_overrides(["--data", "folder", "--model", "FrameDiTH", "--data.size", "64"]))
    assert config.data == Named("folder", {"size": 64}) and config.model == Named("FrameDiTH")
    assert read_config(tiny_config, parse_overrides(["--model", "Other"])).model.arguments["depth"] == 2


def test_values_are_yaml():
    options = ["--clip_norm", "null", "--compile=true", "--stages", "[{steps: 1, batch: 2, frames: 3}]"]
    stages = [dict(steps=1, batch=2, frames=3)]
    assert parse_overrides(options) == dict(clip_norm=None, compile=True, stages=stages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.depth", "["], "--model.depth .: the value is not YAML"),
        (["--steps"], "--steps needs a value"),
        (["--steps", "--batch", "4"], "--steps needs a value"),
        (["5"], "unexpected argument '5'"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        parse_overrides(options)


def test_switches_need_no_value():
    assert parse_overrides(["--shard", "--steps", "3", "--compile"]) == dict(shard=True, steps=3, compile=True)
    assert parse_overrides(["--shard", "false", "--compile=true"]) == dict(shard=False, compile=True)
