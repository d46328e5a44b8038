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

text to video, from a Latte and clips that were encoded (frameattn encode --text-encoder):
  frameattn train --model FrameDiTHT2V-XL/256-2-1-2-concat --latte DIR --data latents/ --out runs/text
  frameattn train --config FrameDiTHT2V-XL-256-2-concat_train.yaml --data latents/ --out runs/text   # an official file

a LoRA of rank 16 instead of all weights:
  frameattn train --data clips/ --init checkpoint.safetensors --lora 16 --out runs/lora

several processes, on one machine or more, which share every batch and give what one process does:
  torchrun --nproc_per_node 8 -m frameattn train --config demo/moving_digits.yaml --out runs/digits
  torchrun --nproc_per_node 8 -m frameattn train ... --shard    # each keeps an eighth of model and optimizer (FSDP2)
batch is that of all of them together (local_batch_size of an official file that of each); any number of them, or one
alone, goes on with a run. One writes, and a folder takes one run at a time.

files in --out:
  checkpoint.safetensors   averaged weights, for frameattn sample
  pytorch_lora_weights.safetensors   with --lora, in the format of diffusers, for frameattn sample --lora
  state.pt                 everything to resume from
  config.yaml, log.csv, loss.png
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from frameattn._errors import UsageError
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
from frameattn.training.files import check_same_run, load_state, lock
from frameattn.training.official import is_official, translate
from frameattn.training.processes import Processes, RunEnds, joined


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    try:
        with joined() as processes, lock(options.out) if processes.first else nullcontext():
            return _train(options, overrides, processes)
    except RunEnds as error:
        if str(error):
            saved = f"; resume with: frameattn train --out {options.out}" if (options.out / "state.pt").exists() else ""
            print(f"frameattn train: {error}{saved}", file=sys.stderr, flush=True)
        os._exit(1)  # a GPU's collective that nobody answers would keep the process


def _train(options: argparse.Namespace, overrides: Sequence[str], processes: Processes) -> int:
    for module in ("diffusers", "safetensors", "yaml", "tqdm", "matplotlib"):
        require(module)  # before hours of training, not at their end
    state = load_state(options.out / "state.pt")
    saved = state["config"] if state else {}
    values = load_yaml(options.config) if options.config else saved
    replaced = parse_overrides(overrides)
    if is_official(values):
        data = replaced.get("data") or saved.get("data", {})
        values, notes = translate(values, options.config, data.get("name"), processes.count)
        processes.say(f"config {options.config} is an official one:", *(f"  {note}" for note in notes))
    config = build_config(with_saved(merge(values, replaced), saved))
    device = processes.device(choose_device(config.device))
    trainer = create_trainer(config, options.out, device, resuming=bool(state), processes=processes)
    if state:
        check_same_run(config_values(trainer.config), saved, options.out)
        trainer.load(state)
        del state
        processes.say(f"resuming {options.out} at step {trainer.step} of {trainer.total_steps}")
    if processes.largest(trainer.step) != -processes.largest(-trainer.step):
        raise UsageError(f"not all processes see the same state.pt: --out {options.out} must be one folder for all")
    dataset = trainer.draws.dataset
    if isinstance(dataset, VideoFolder):
        processes.say(dataset.summary(max(1, *(stage.frames for stage in trainer.stages))))
    if processes.first:
        save_config(trainer.config, options.out / "config.yaml")

    number = trainer.run()
    step, steps = trainer.step, trainer.total_steps
    if number is not None:
        processes.say(f"stopped at step {step} of {steps}; resume with: frameattn train --out {options.out}")
        return 128 + number
    processes.say(f"trained {steps} steps: {options.out / 'checkpoint.safetensors'}")
    return 0
