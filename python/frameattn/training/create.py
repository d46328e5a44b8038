"""A trainer from a configuration: the data set, the model, and what each asks of the other."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from frameattn._errors import UsageError, as_usage_error
from frameattn.data import LatentClips, VideoDataset, VideoFolder, create_dataset
from frameattn.models import create_model, load_checkpoint, read_metadata
from frameattn.models.framedit import CLASSES, NO_CONDITION, TEXT, TEXT_CHANNELS, TEXT_TOKENS
from frameattn.models.latte import OPTIONS, is_added_to_latte, latte_arguments
from frameattn.models.lora import add_lora, is_lora
from frameattn.models.registry import check_arguments, is_text_to_video, text_to_video_class
from frameattn.training.config import Config
from frameattn.training.files import check_same_latents
from frameattn.training.processes import ALONE, Processes
from frameattn.training.trainer import Trainer


def create_trainer(
    config: Config, folder: Path, device: torch.device, resuming: bool = False, processes: Processes = ALONE
) -> Trainer:
    """The trainer at step 0; its config names every argument of the model that the data or Latte decided.

    Args:
        resuming: the weights will be those of the run's state: init and latte are not read.
        processes: those that train together, all of which call this.
    """
    with as_usage_error(f"data {config.data.name}"):
        dataset = create_dataset(config.data.name, **config.data.arguments)
    create = _create_text_to_video if is_text_to_video(config.model.name) else _create_framedit
    torch.manual_seed(config.seed)
    model, arguments = create(config, dataset, resuming)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, arguments=arguments))
    if config.init and not resuming:
        with as_usage_error(f"init {config.init}"):
            load_checkpoint(model, config.init)
            encoded = read_metadata(config.init).get("encoded", {})
        check_same_latents(getattr(dataset, "facts", {}), encoded, f"init {config.init} was trained")
    if config.lora:
        _add_lora(config, model)
    if config.checkpoint_blocks:
        model.checkpointed_layers = config.checkpoint_blocks
    for i, stage in enumerate(config.plan(model.num_frames)):
        if stage.batch < processes.count:
            key = f"stages[{i}].batch" if config.stages else "batch"
            raise UsageError(f"{key} is {stage.batch}: {processes.count} processes need at least a clip each")
        if isinstance(dataset, (VideoFolder, LatentClips)):
            with as_usage_error(f"data {config.data.name}"):
                dataset.long_enough(max(1, stage.frames))
        if stage.frames > model.num_frames:
            raise UsageError(
                f"stages[{i}].frames is {stage.frames}, but the model is made for {model.num_frames} frames: "
                f"set model.{'video_length' if 'video_length' in arguments else 'num_frames'}"
            )
    return Trainer(config, model, dataset, folder, device, processes)


def _add_lora(config: Config, model: Any) -> None:
    """The LoRA is trained, and what Matrix Attention adds to a Latte if that is frozen."""
    if not (config.init or config.latte):
        raise UsageError("lora needs weights that it adapts: --init, or --latte for text to video")
    added = {name for name, p in model.named_parameters() if p.requires_grad and is_added_to_latte(name)}
    with as_usage_error("lora"):
        add_lora(model, config.lora, config.lora_alpha, config.lora_targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name) or (_freezes_latte(config) and name in added))


def _create_framedit(config: Config, dataset: Any, resuming: bool) -> tuple[Any, dict[str, Any]]:
    """A FrameDiT and its arguments."""
    if config.latte:
        raise UsageError(f"latte is of text to video: model {config.model.name} cannot start from it")
    arguments = complete_model_arguments(config, dataset)
    with as_usage_error(f"model {config.model.name}"):
        model = create_model(config.model.name, **arguments)
    if config.checkpoint_blocks:
        model.gradient_checkpointing = True
    return model, arguments


def complete_model_arguments(config: Config, dataset: VideoDataset | LatentClips) -> dict[str, Any]:
    """The model's arguments, with those that follow from data, stages and diffusion filled in or checked."""
    arguments = dict(config.model.arguments)
    text = (getattr(dataset, "text_tokens", 0), getattr(dataset, "text_channels", 0))
    has_text = text == (TEXT_TOKENS, TEXT_CHANNELS)
    if "extras" not in arguments and text[1] and (dataset.num_classes or not has_text):
        reason = "classes and texts" if dataset.num_classes else f"texts of {text[0]} x {text[1]}"
        raise UsageError(
            f"data {config.data.name} has {reason}: set model.extras to 1 (no condition), 2 (classes) or 78 (a CLIP's "
            f"texts, {TEXT_TOKENS} x {TEXT_CHANNELS})"
        )
    extras = arguments.setdefault("extras", CLASSES if dataset.num_classes else TEXT if has_text else NO_CONDITION)
    if extras == TEXT and not has_text:
        raise UsageError(
            f"model.extras 78 needs encoded clips with CLIP's texts of {TEXT_TOKENS} x {TEXT_CHANNELS}, data "
            f"{config.data.name} has {f'{text[0]} x {text[1]}' if text[1] else 'no texts'}"
        )
    stages = config.stages or []
    if extras == TEXT and (config.images or any(stage.images or not stage.frames for stage in stages)):
        raise UsageError("model.extras 78 has one text for a clip: images beside it, or alone, have none of their own")
    if extras == CLASSES and not dataset.num_classes:
        raise UsageError(f"model.extras 2 needs classes, data {config.data.name} has none: --data.classes true?")
    of_data = {"in_channels": dataset.channels, "input_size": dataset.size}
    if extras == CLASSES:
        of_data["num_classes"] = dataset.num_classes
    arguments = _complete(arguments, data=of_data, diffusion={"learn_sigma": config.diffusion.learn_sigma})
    if config.stages:
        arguments.setdefault("num_frames", max(1, *(stage.frames for stage in config.stages)))
    return arguments


def _create_text_to_video(config: Config, dataset: Any, resuming: bool) -> tuple[Any, dict[str, Any]]:
    """A FrameDiTHT2V and its arguments."""
    if not isinstance(dataset, LatentClips) or not dataset.text_channels:
        raise UsageError(
            f"model {config.model.name} takes encoded clips with texts (frameattn encode --text-encoder), but data "
            f"{config.data.name} has none"
        )
    if any(stage.frames < 1 for stage in config.stages or []):
        raise UsageError(f"stages: model {config.model.name} needs at least 1 frame beside the images")
    given = dict(config.model.arguments)
    if given.get("disable_matrix_attention"):
        raise UsageError("model.disable_matrix_attention is for sampling: a model is trained with Matrix Attention")
    if not config.diffusion.learn_sigma:
        raise UsageError("diffusion.learn_sigma must be true: LattePipeline takes a variance beside the noise")
    freeze = _freezes_latte(config)
    if freeze and not (config.latte or config.init):
        raise UsageError("freeze_latte needs weights that are worth it: --latte or --init")
    if config.stages:
        given.setdefault("video_length", max(stage.frames for stage in config.stages))
    of_data = {"in_channels": dataset.channels, "sample_size": dataset.size, "caption_channels": dataset.text_channels}
    of_diffusion = {"out_channels": 2 * dataset.channels}
    model: Any
    if config.latte and not resuming:
        with as_usage_error(f"model {config.model.name}"):
            check_arguments(config.model.name, given)
        with as_usage_error(f"latte {config.latte}"):
            kind = text_to_video_class()
            latte = kind.load_latte(config.latte)
            options = {key: value for key, value in given.items() if key in OPTIONS}
            of_latte = latte_arguments(latte.config, options)
        arguments = _complete(given, latte=of_latte, data=of_data, diffusion=of_diffusion)
        with as_usage_error(f"latte {config.latte}"):
            model = kind.from_latte(latte, freeze=freeze, **options)
    else:
        arguments = _complete(given, data=of_data, diffusion=of_diffusion)
        _add_products(arguments)
        with as_usage_error(f"model {config.model.name}"):
            model = create_model(config.model.name, **arguments)
        if freeze:
            model.freeze_latte()
    if not config.lora and not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"nothing is left to train: freeze_latte with model.fuse_mode {model.config.fuse_mode}")
    if config.checkpoint_blocks:
        model.enable_gradient_checkpointing()
    return model, arguments


def _freezes_latte(config: Config) -> bool:
    return config.latte is not None if config.freeze_latte is None else config.freeze_latte


def _add_products(arguments: dict[str, Any]) -> None:
    """The two arguments that follow from others."""
    defaults = {"patch_size": 2, "num_row_attn_heads": 16, "row_attn_head_dim": 72}
    patch_size, heads, head_dim = (arguments.get(key, default) for key, default in defaults.items())
    arguments.setdefault("col_dim", (arguments["sample_size"] // patch_size) ** 2)
    arguments.setdefault("cross_attention_dim", heads * head_dim)


def _complete(given: Mapping[str, Any], **sources: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments given, with those of sources, which may not contradict them nor one another."""
    arguments, origins = dict(given), dict.fromkeys(given, "model")
    for source, values in sources.items():
        for name, value in values.items():
            if arguments.setdefault(name, value) == value:
                origins.setdefault(name, source)
            elif origins[name] == "model":
                raise UsageError(f"model.{name} is {arguments[name]}, but {source} needs {value}: leave it out")
            else:
                raise UsageError(f"{origins[name]} has {name} {arguments[name]}, but {source} needs {value}")
    return arguments
