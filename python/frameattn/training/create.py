"""A trainer from a configuration: the data set, the model, and what each asks of the other."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from frameattn._errors import UsageError, as_usage_error
from frameattn.data import VideoDataset, create_dataset
from frameattn.models import create_model, load_checkpoint
from frameattn.training.config import Config
from frameattn.training.trainer import Trainer


def create_trainer(config: Config, folder: Path, device: torch.device) -> Trainer:
    """The trainer at step 0; its config names every argument of the model that the data decided."""
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


def complete_model_arguments(config: Config, dataset: VideoDataset) -> dict[str, Any]:
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
