"""Encode videos to the latents of a VAE, and their captions to embeddings, to train on; run again, it goes on.

examples:
  frameattn encode --data clips/ --vae stabilityai/sd-vae-ft-ema --out latents/ --size 256 --fps 8
  frameattn encode --data ucf101/ --classes --vae VAE --out latents/ --flip
  frameattn encode --data clips/ --vae LATTE --text-encoder LATTE --captions captions.csv --out latents/ --size 512

Captions are those of a CSV (columns file and caption), or of the .txt beside every video.

files in --out:
  00000.safetensors, ...   latents, embeddings and labels of some clips each, for frameattn train --data
  manifest.json            what the clips were encoded with; shard, source and caption of every clip
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from frameattn._errors import UsageError, as_usage_error
from frameattn._optional import require
from frameattn.cli.arguments import DTYPES, positive, positive_number
from frameattn.cli.devices import choose_device
from frameattn.data import VideoFolder
from frameattn.data.encode import Encoder, TextEncoder, Vae, read_captions
from frameattn.training.signals import stop_signals

PRINT_EVERY = 100  # clips, where there is no terminal for a bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="videos, in sub-folders or not")
    add("--vae", required=True, metavar="DIR", help="AutoencoderKL: a folder, that of a pipeline, or a name on the hub")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the encoded clips")
    add(
        "--text-encoder", metavar="DIR", help="T5 or CLIP with its tokenizer: a pipeline's folder, or a name on the hub"
    )
    add("--captions", type=Path, metavar="CSV", help="captions (default: the .txt beside every video)")
    add("--classes", action="store_true", help="the sub-folders of --data are classes")
    add("--size", type=positive, default=256, help="side of a frame in pixels (default 256)")
    add("--fps", type=positive_number, help="encode so many frames a second of every video, whatever its rate")
    add("--frame-interval", type=positive, help="or every so many frames of it (default 1: train decides)")
    add("--flip", action="store_true", help="encode every video mirrored, too")
    add("--dtype", choices=DTYPES, default="float32", help="of the models while they encode (default float32)")
    add("--device", default="auto", help="auto, cpu or cuda")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; frameattn encode --help lists them")
    if options.captions and not options.text_encoder:
        raise UsageError("--captions needs --text-encoder DIR, which embeds them")
    device, dtype = choose_device(options.device), DTYPES[options.dtype]
    with as_usage_error(f"--data {options.data}"):
        interval = 1 if options.frame_interval is None and options.fps is None else options.frame_interval
        videos = VideoFolder(options.data, options.size, interval, options.classes, options.flip, options.fps)
        captions = read_captions(videos.videos, options.data, options.captions) if options.text_encoder else None
    with as_usage_error(f"--vae {options.vae}"):
        vae = Vae(options.vae, dtype, device)
    text_encoder = None
    if options.text_encoder:
        with as_usage_error(f"--text-encoder {options.text_encoder}"):
            text_encoder = TextEncoder(options.text_encoder, dtype, device)
    encoder = Encoder(videos, options.out, vae, text_encoder, captions)
    count = len(videos.videos) * (2 if options.flip else 1)
    done = 0
    bar = require("tqdm").tqdm(total=count, unit="clip", disable=None)
    with as_usage_error(f"--out {options.out}"), stop_signals() as received, closing(encoder.run()) as names, bar:
        for _ in names:
            done += 1
            bar.update()
            if bar.disable and done % PRINT_EVERY == 0:
                print(f"{done} clips of {count}", flush=True)
            if received:
                break
    if received:
        print(f"stopped: {done} clips of {count} are encoded; run it again to go on")
        return 128 + received[0]
    print(f"{done} clips of {count} are encoded: {options.out / 'manifest.json'}")
    return 0
