"""From a folder of clips with captions to videos of a model that was trained on them: encode, train, sample.

Without options it makes six clips of moving squares, and a small VAE and CLIP of random weights, so that nothing is
downloaded and it takes half a minute on a CPU; its samples show that the way is open, not what a model can do. Give
yours; captions are those of the .txt beside every video:

    python examples/train_on_videos.py
    python examples/train_on_videos.py --clips clips/ --vae stabilityai/sd-vae-ft-ema --text-encoder \
        openai/clip-vit-large-patch14 --prompt "a cat runs over grass" --size 256 --steps 100000 \
        --model.hidden_size 384 --model.depth 12 --model.num_row_heads 6 --model.num_col_heads 64 \
        --model.qk_col_dim 64 --model.v_col_dim 256 --model.num_frames 16 --precision bf16

What is behind an option of the model or of the training: frameattn train --help.
"""

import argparse
from pathlib import Path

import torch

from frameattn.cli.main import main as frameattn
from frameattn.data.video_io import write_mp4

COLORS = {"red": (1.0, -1, -1), "green": (-1, 1.0, -1), "blue": (-1, -1, 1.0)}
DIRECTIONS = {"right": (0, 1), "down": (1, 0)}
SMALL = [
    *("--model.hidden_size", "32", "--model.depth", "4", "--model.num_row_heads", "2", "--model.num_col_heads", "4"),
    *("--model.qk_col_dim", "8", "--model.v_col_dim", "16", "--model.num_frames", "8"),
]


def make_clips(folder: Path, size: int, frames: int = 16) -> None:
    """Six clips: a square of each colour that moves to the right or down, with a caption beside it."""
    for color, rgb in COLORS.items():
        for direction, (down, right) in DIRECTIONS.items():
            video = torch.full((frames, 3, size, size), -0.8)
            for t in range(frames):
                place = t * (size - size // 4) // (frames - 1)
                top, left = (place * down + size // 3 * right, place * right + size // 3 * down)
                video[t, :, top : top + size // 4, left : left + size // 4] = torch.tensor(rgb).view(3, 1, 1)
            path = folder / f"{color}_{direction}.mp4"
            folder.mkdir(parents=True, exist_ok=True)
            write_mp4(path, video[None], 8)
            path.with_suffix(".txt").write_text(f"a {color} square moves {direction}\n")


def make_vae(folder: Path) -> None:
    """A VAE that halves height and width, with random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).save_pretrained(folder)


def make_text_encoder(folder: Path) -> None:
    """A CLIP that knows the words of the captions, with random weights; as wide as FrameDiT takes it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = [f"{word}</w>" for word in ("a", "square", "moves", *COLORS, *DIRECTIONS)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    end = len(words) + 1
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=768,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    CLIPTextModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos")
    parser.add_argument("--vae", help="AutoencoderKL: a folder, or a name on the hub")
    parser.add_argument("--text-encoder", help="CLIP with its tokenizer: a folder, or a name on the hub")
    parser.add_argument("--prompt", action="append", help="text of a sample; more than once for more")
    parser.add_argument("--out", type=Path, default=Path("outputs/train_on_videos"))
    parser.add_argument("--size", type=int, default=32, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    options, of_training = parser.parse_known_args()
    clips, vae, text_encoder = options.clips, options.vae, options.text_encoder
    if clips is None:
        clips = options.out / "clips"
        make_clips(clips, options.size)
    if vae is None:
        vae = str(options.out / "vae")
        make_vae(Path(vae))
    if text_encoder is None:
        text_encoder = str(options.out / "clip")
        make_text_encoder(Path(text_encoder))
    prompts = options.prompt or ["a red square moves right", "a blue square moves down"]

    def run(command: str, *arguments: object) -> None:
        words = [command, *map(str, arguments)]
        print(f"\nframeattn {' '.join(words)}", flush=True)
        if code := frameattn(words):
            raise SystemExit(code)

    latents, run_folder = options.out / "latents", options.out / "run"
    by_text = ("--text-encoder", text_encoder)
    run("encode", "--data", clips, "--vae", vae, *by_text, "--size", options.size, "--out", latents)
    model = ("--model", "FrameDiTG-S/64-256/2")
    rates = ("--learning_rate", 1e-3, "--clip_start", 0, "--ema_decay", 0.99, "--log_every", 10)
    run(
        *("train", "--data", latents, "--out", run_folder, *model, *rates),
        *("--steps", options.steps, *(of_training or SMALL)),
    )
    checkpoint = run_folder / "checkpoint.safetensors"
    run(
        *("sample", "--ckpt", checkpoint, "--vae", vae, "--out", options.out / "samples"),
        *("--method", "dpm", "--steps", 10, *by_text, *(word for text in prompts for word in ("--prompt", text))),
    )


if __name__ == "__main__":
    main()
