"""Train a model; run again with the same --out, it resumes.

Every key of the configuration is an option: --key value or --section.key value. With --config they replace
values of the file. Keys and defaults: frameattn/training/config.py and config.yaml in the output folder.

--config official.yaml: the training files of the official FrameDiT repository are taken as they are. Their values
are those of our keys (local_batch_size is batch, max_train_steps is steps, ...), which options replace; --data is
needed where data_path is empty. What has no effect here is printed, and why.

examples:
  frameattn train --config demo/moving_digits.yaml --out runs/digits
  frameattn train --config demo/moving_digits.yaml --out runs/slow --learning_rate 1e-3 --model.depth 4
  frameattn train --data clips/ --model FrameDiTG-XL/128-512/2 --out runs/clips --precision bf16
  frameattn train --data clips/ --data.fps 8 --out runs/clips      # 8 frames a second of every video, whatever it has
  frameattn train --out runs/digits                      # go on where it stopped

text to video, from a Latte and clips that were encoded (frameattn.data.save_latents):
  frameattn train --model FrameDiTHT2V-XL/256-2-1-2-concat --latte DIR --data latents/ --out runs/text
  frameattn train --config FrameDiTHT2V-XL-256-2-concat_train.yaml --data latents/ --out runs/text   # an official file

a LoRA of rank 16 instead of all weights:
  frameattn train --data clips/ --init checkpoint.safetensors --lora 16 --out runs/lora

files in --out:
  checkpoint.safetensors   averaged weights, for frameattn sample
  pytorch_lora_weights.safetensors   with --lora, in the format of diffusers, for frameattn sample --lora
  state.pt                 everything to resume from
  config.yaml, log.csv, loss.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frameattn._optional import require
from frameattn.cli.devices import choose_device
from frameattn.cli.overrides import parse_overrides
from frameattn.data import VideoFolder
from frameattn.training import create_trainer
from frameattn.training.config_io import (
    build_config,
    config_values,
    load_yaml,
    merge,
    save_config,
    with_saved,
)
from frameattn.training.files import check_same_run, load_state
from frameattn.training.official import is_official, translate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    for module in ("diffusers", "safetensors", "yaml", "tqdm", "matplotlib"):
        require(module)  # before hours of training, not at their end
    state = load_state(options.out / "state.pt")
    saved = state["config"] if state else {}
    values = load_yaml(options.config) if options.config else saved
    replaced = parse_overrides(overrides)
    if is_official(values):
        data = replaced.get("data") or saved.get("data", {})
        values, notes = translate(values, options.config, data.get("name"))
        print(f"config {options.config} is an official one:", *notes, sep="\n  ", flush=True)
    config = build_config(with_saved(merge(values, replaced), saved))
    trainer = create_trainer(config, options.out, choose_device(config.device), resuming=bool(state))
    if state:
        check_same_run(config_values(trainer.config), saved, options.out)
        trainer.load(state)
        del state
        print(f"resuming {options.out} at step {trainer.step} of {trainer.total_steps}", flush=True)
    dataset = trainer.draws.dataset
    if isinstance(dataset, VideoFolder):
        print(dataset.summary(max(1, *(stage.frames for stage in trainer.stages))), flush=True)
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
