"""Train a model; run again with the same --out, it resumes.

Every key of the configuration is an option: --key value or --section.key value. With --config they replace
values of the file. Keys and defaults: frameattn/training/config.py and config.yaml in the output folder.

examples:
  frameattn train --config demo/moving_digits.yaml --out runs/digits
  frameattn train --config demo/moving_digits.yaml --out runs/slow --learning_rate 1e-3 --model.depth 4
  frameattn train --data clips/ --model FrameDiTG-XL/128-512/2 --out runs/clips --precision bf16
  frameattn train --out runs/digits                      # go on where it stopped

files in --out:
  checkpoint.safetensors   averaged weights, for frameattn sample
  state.pt                 everything to resume from
  config.yaml, log.csv, loss.png
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch

from frameattn._errors import UsageError, as_usage_error
from frameattn._optional import require
from frameattn.cli.devices import choose_device
from frameattn.training.config import (
    Config,
    build_config,
    config_values,
    load_yaml,
    merge,
    parse_overrides,
    save_config,
)
from frameattn.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    for module in ("diffusers", "safetensors", "yaml", "tqdm", "matplotlib"):
        require(module)  # before hours of training, not at their end
    state = _load_state(options.out / "state.pt")
    saved = state["config"] if state else {}
    values = load_yaml(options.config) if options.config else saved
    config = build_config(merge(values, parse_overrides(overrides)))
    trainer = create_trainer(config, options.out)
    if state:
        _check_same_run(config_values(trainer.config), saved, options.out)
        trainer.load(state)
        print(f"resuming {options.out} at step {trainer.step} of {trainer.total_steps}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    save_config(trainer.config, options.out / "config.yaml")

    number = trainer.run()
    if number is not None:
        print(
            f"stopped at step {trainer.step} of {trainer.total_steps}; resume with: frameattn train --out {options.out}"
        )
        return 128 + number
    print(f"trained {trainer.total_steps} steps: {options.out / 'checkpoint.safetensors'}")
    return 0


def create_trainer(config: Config, folder: Path) -> Trainer:
    """The trainer at step 0; its config names every argument of the model that the data decided."""
    from frameattn.data import create_dataset
    from frameattn.models import create_model, load_checkpoint

    device = choose_device(config.device)
    with as_usage_error(f"data {config.data.name}"):
        dataset = create_dataset(config.data.name, **config.data.arguments)
    arguments = complete_model_arguments(config, dataset)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, arguments=arguments))
    torch.manual_seed(config.seed)
    with as_usage_error(f"model {config.model.name}"):
        model = create_model(config.model.name, **arguments)
    if config.init:
        with as_usage_error(f"init {config.init}"):
            load_checkpoint(model, config.init)
    for i, stage in enumerate(config.plan(model.num_frames)):
        if stage.frames > model.num_frames:
            raise UsageError(
                f"stages[{i}].frames is {stage.frames}, but the model is made for {model.num_frames} frames: "
                f"set model.num_frames"
            )
    return Trainer(config, model, dataset, folder, device)


def complete_model_arguments(config: Config, dataset) -> dict:
    """The model's arguments, with those that follow from data, stages and diffusion filled in or checked."""
    arguments = dict(config.model.arguments)
    derived = {
        "in_channels": dataset.channels,
        "input_size": dataset.size,
        "learn_sigma": config.diffusion.learn_sigma,
    }
    extras = arguments.setdefault("extras", 2 if dataset.num_classes else 1)
    if extras not in (1, 2):
        raise UsageError(f"model.extras must be 1 (no condition) or 2 (classes) for frameattn train, got {extras}")
    if extras == 2:
        derived["num_classes"] = dataset.num_classes
    for name, value in derived.items():
        if arguments.setdefault(name, value) != value:
            source = "diffusion" if name == "learn_sigma" else "data"
            raise UsageError(f"model.{name} is {arguments[name]}, but {source} needs {value}: leave it out")
    if config.stages:
        arguments.setdefault("num_frames", max(1, *(stage.frames for stage in config.stages)))
    return arguments


def _load_state(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise UsageError(f"{path} is not a state that frameattn wrote: move it away to start anew") from error


def _check_same_run(values: dict, saved: dict, folder: Path) -> None:
    """Steps, rates and intervals may change when a run is resumed; what the weights mean may not."""
    for key in ("model", "data", "diffusion", "seed"):
        if values[key] != saved[key]:
            raise UsageError(
                f"{folder} holds a run with another {key}: {_difference(saved[key], values[key])}; choose another --out"
            )


def _difference(old, new) -> str:
    if not isinstance(old, dict):
        return f"{old} there, {new} now"
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)} there, {new.get(key)} now" for key in keys)
