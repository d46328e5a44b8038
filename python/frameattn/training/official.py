"""Training files of the official FrameDiT repository: their values in our keys, and what has no effect here."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from frameattn._errors import UsageError
from frameattn.data import DATASETS
from frameattn.models.registry import is_text_to_video, list_models
from frameattn.training.config import Config, Diffusion, Sampling
from frameattn.training.config_io import OPEN_SECTIONS, convert, merge

TAKEN = {  # official key: ours
    "data_path": "data.name",
    "frame_interval": "data.frame_interval",
    "learn_sigma": "diffusion.learn_sigma",
    "predict_xstart": "diffusion.predict_xstart",
    "sigma_small": "diffusion.sigma_small",
    "num_sampling_steps": "sampling.steps",
    "pretrained": "init",
    "global_seed": "seed",
    "max_train_steps": "steps",
    "local_batch_size": "batch",
    "use_image_num": "images",
    "gradient_accumulation_steps": "accumulation",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "clip_max_norm": "clip_norm",
    "start_clip_iter": "clip_start",
    "ema_update_every": "ema_every",
    "use_compile": "compile",
    "num_workers": "workers",
    "log_every": "log_every",
    "ckpt_every": "save_every",
}
TAKEN_BY_VIDEO = {"num_frames": "model.num_frames", "extras": "model.extras", "num_classes": "model.num_classes"}
TAKEN_BY_TEXT_TO_VIDEO = {
    "num_frames": "model.video_length",
    "video_length": "model.video_length",
    "image_size": "model.sample_size",
    "pretrained_latte": "latte",
    "lr_warmup_steps": "warmup",
}
TAKEN_OF_LORA: dict[str, tuple[str, Any]] = {
    "r": ("lora", int | None),
    "lora_alpha": ("lora_alpha", float | None),
    "target_modules": ("lora_targets", list[str] | None),
}
NO_EFFECT = {  # reason: official keys, as far as the model does not take them
    "--data decides": ("dataset", "load_latent", "latent_path", "image_path", "in_channels", "image_size"),
    "--out holds all the files of a run and resumes it": ("results_dir", "project", "run_id", "resume_from_checkpoint"),
    "data is trained on as it is, no encoder runs": ("vae", "tokenizer", "text_cleaning", "offload_vae"),
    "the average stays beside the weights": ("offload_ema",),
    "frameattn chooses the kernels": ("attention_mode", "enable_xformers_memory_efficient_attention"),
    "without effect in the official training, too": ("attention_bias", "fixed_spatial", "lr_warmup_steps"),
    "of text to video alone": ("video_length", "pretrained_latte"),
    "of G and H alone": ("extras", "num_classes"),
    "there is one diffusion, one start of the gates": ("diffusion_name", "gate_initialziation"),
    "of a checkpoint's weights the averaged are taken": ("using_pretrained_ema",),
}
TRANSLATED = ("model", "mixed_precision", "gradient_checkpointing", "n_checkpointing_blocks", "use_lora", "lora")
KNOWN = [*TAKEN, *TAKEN_BY_VIDEO, *TRANSLATED, *(key for keys in NO_EFFECT.values() for key in keys)]
PRECISIONS = {"bf16": "bf16", "no": "fp32", "False": "fp32"}  # YAML reads an unquoted no as False
ALL_BLOCKS = 999  # more than any model has


def is_official(values: Mapping[str, Any]) -> bool:
    """Whether a file, as load_yaml reads it, is written in the official keys."""
    ours = get_type_hints(Config)
    only_official = sum(key in KNOWN and key not in ours for key in values)
    only_ours = sum(key in ours and key not in KNOWN for key in values)
    return "data" not in values and only_official > only_ours


def translate(
    values: Mapping[str, Any], path: Path, data: str | None = None, processes: int = 1
) -> tuple[dict[str, Any], list[str]]:
    """An official file in our keys, and lines that say what has no effect or another meaning here.

    Args:
        values: the file, as load_yaml reads it.
        path: where it is, for errors.
        data: the data set that replaces the file's.
        processes: how many train together, each of which the file gives a batch of its own.

    Raises:
        UsageError: a value of a wrong type, or one that asks for what is not there; it names the official key.
    """

    def read(key: str, kind: Any) -> Any:
        return convert(values.get(key), kind | None, f"config {path}: {key}")

    notes = []
    ours: dict[str, Any] = {"model": dict(values["model"])} if "model" in values else {}
    name = values.get("model", {}).get("name")
    if name not in list_models() and f"{name}-concat" in list_models():  # four official files leave it out
        notes.append(f"model: {name} means {name}-concat")
        ours["model"]["name"] += "-concat"
    text_to_video = is_text_to_video(name)
    taken = TAKEN | (TAKEN_BY_TEXT_TO_VIDEO if text_to_video else TAKEN_BY_VIDEO)
    for key, target in taken.items():
        value = read(key, _kind(target))
        section, _, inner = target.rpartition(".")
        if key == "image_size" and value is not None:
            if value % 8:
                raise UsageError(f"config {path}: image_size must be a multiple of 8, got {value}")
            value //= 8  # the side of the latents
        if value is not None:
            ours = merge(ours, {section: {inner: value}} if section else {inner: value})
    if text_to_video and read("num_frames", int) not in (None, ours["model"].get("video_length")):
        raise UsageError(f"config {path}: num_frames must be video_length, got {values['num_frames']}")
    if (precision := values.get("mixed_precision")) is not None:
        if str(precision) not in PRECISIONS:
            raise UsageError(f"config {path}: mixed_precision must be bf16 or no, got {precision!r}")
        ours["precision"] = PRECISIONS[str(precision)]
    if read("use_lora", bool):
        lora = values.get("lora") or {}
        for key, (target, kind) in TAKEN_OF_LORA.items():
            if (value := convert(lora.get(key), kind, f"config {path}: lora.{key}")) is not None:
                ours[target] = value
        if lora.get("lora_dropout"):
            notes.append("lora.lora_dropout: there is none here")
    blocks = read("n_checkpointing_blocks", int)
    if read("gradient_checkpointing", bool):
        ours["checkpoint_blocks"] = ALL_BLOCKS if blocks is None else blocks

    if processes > 1 and "batch" in ours:
        ours["batch"] *= processes
        notes.append(f"local_batch_size: batch is {ours['batch']}, of {processes} processes together")

    data = data or ours.get("data", {}).get("name")
    if data is None:
        ours.pop("data", None)  # so that --data is asked for
    elif data in DATASETS:
        if ours.get("data", {}).pop("frame_interval", None):
            notes.append(f"frame_interval: the data set {data} has none")
    elif ours.get("model", {}).get("extras") == 2:
        notes.append("extras: 2 needs classes: --data.classes true, where they are the sub-folders of --data")
    if "init" in ours:
        notes.append("pretrained: training starts at step 0 from its weights (the averaged, if it has them)")
    if text_to_video and ours.get("accumulation", 1) > 1:
        notes.append(
            "max_train_steps, ckpt_every, ...: in steps of the optimizer (the official loop counts micro-batches)"
        )
    return ours, [*notes, *_without_effect(values, taken)]


def _kind(target: str) -> Any:
    section, _, key = target.rpartition(".")
    if section in OPEN_SECTIONS:
        return str if key == "name" else int
    return get_type_hints({"": Config, "diffusion": Diffusion, "sampling": Sampling}[section])[key]


def _without_effect(values: Mapping[str, Any], taken: Mapping[str, str]) -> list[str]:
    """A line for each reason and one for unknown keys; what is empty or off is not worth a word."""
    lines = []
    for reason, keys in NO_EFFECT.items():
        if idle := [key for key in keys if key not in taken and values.get(key)]:
            lines.append(f"{', '.join(idle)}: {reason}")
    unknown = []
    for key in map(str, (key for key, value in values.items() if key not in KNOWN and value is not None)):
        near = difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.8)
        ours = f" (give it as --{key})" if key in get_type_hints(Config) else ""
        unknown.append(f"{key} (did you mean {near[0]}?)" if near else key + ours)
    return [*lines, f"unknown, without effect: {', '.join(unknown)}"] if unknown else lines
