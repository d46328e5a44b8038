"""Measures the demo's checkpoint: are its digits those that were asked for, and do they move as steadily as real ones?

  python demo/evaluate.py                            # 100 videos of demo/moving_digits.safetensors
  python demo/evaluate.py --ckpt FILE --count 200 --seed 7 --cfg 2

A support vector classifier judges frames: trained on the fifth of scikit-learn's digits that the generator never saw,
rendered as moving clips, it looks at the 8 x 8 picture around the strokes, and a video is what most of its frames are.
Its own accuracy is that on real clips of the other digits, which it never saw in turn.
Motion is that of the centre of mass. Unsteadiness is how much its velocity changes from frame to frame relative to the
speed: the median over a clip (so that bounces do not count), averaged over clips. Both are printed for real clips too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frameattn.cli.sample import generate, load
from frameattn.data import MovingDigits
from frameattn.data.moving_digits import load_digits

CANVAS, DIGIT = 32, 16  # pixels: frames are judged at twice the size they are generated at
LEAST_STROKE = 0.4  # brightness in 0..1 from which a pixel belongs to the digit
NOTHING = -1  # the verdict on a video in which no digit is found


class Judge:
    """Tells the digit of a moving video."""

    def __init__(self):
        from sklearn.svm import SVC

        labels = load_digits("test")[1]
        clips = MovingDigits(split="test").draw_labelled(labels, 6, torch.Generator().manual_seed(1))
        crops, found = centred_crops(clips)
        labels = labels.repeat_interleave(6).numpy()
        self.classifier = SVC(C=10, gamma="scale").fit(crops[found], labels[found])

    def __call__(self, videos: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The digit of each video [K, T, 1, 16, 16], and the share of its frames that agree."""
        frames = videos.shape[1]
        crops, found = centred_crops(videos)
        votes = np.where(found, self.classifier.predict(crops), NOTHING).reshape(-1, frames)
        counts = np.stack([(votes == digit).sum(1) for digit in range(10)], axis=1)
        verdicts = np.where(counts.sum(1) >= frames / 2, counts.argmax(1), NOTHING)
        return verdicts, counts.max(1) / frames


def centred_crops(videos: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 pictures [K T, 64] around the strokes of each frame, and whether there are any."""
    frames = brightness(videos).flatten(0, 1).numpy()
    crops, found = np.zeros((len(frames), 64), np.float32), np.zeros(len(frames), bool)
    for i, frame in enumerate(frames):
        rows, columns = np.nonzero((frame > LEAST_STROKE).any(1))[0], np.nonzero((frame > LEAST_STROKE).any(0))[0]
        if len(rows) < 4 or len(columns) < 1:
            continue
        # Padding by a digit on each side puts the middle at + DIGIT / 2.
        top, left = (round((at[0] + at[-1] + 1 + DIGIT) / 2) for at in (rows, columns))
        crop = np.pad(frame, DIGIT)[top : top + DIGIT, left : left + DIGIT]
        crops[i], found[i] = crop.reshape(8, 2, 8, 2).mean((1, 3)).ravel(), True
    return crops, found


def brightness(videos: Tensor) -> Tensor:
    """[K, T, 1, S, S] in -1..1 -> [K, T, 32, 32] in 0..1 with firm strokes."""
    larger = F.interpolate((videos.flatten(0, 1).clamp(-1, 1) + 1) / 2, size=(CANVAS, CANVAS), mode="bicubic")
    return ((larger - 0.2) / 0.6).clamp(0, 1)[:, 0].unflatten(0, videos.shape[:2])


def motion(videos: Tensor) -> tuple[float, float]:
    """Mean speed in pixels of the 32 x 32 canvas a frame, and unsteadiness."""
    mass = brightness(videos)
    mass = torch.where(mass > 0.15, mass, 0.0)
    total, places = mass.sum((-1, -2)).clamp(min=1e-3), torch.arange(CANVAS, dtype=torch.float32)
    centre = torch.stack([(mass.sum(-2) * places).sum(-1) / total, (mass.sum(-1) * places).sum(-1) / total], -1)
    velocity = centre.diff(dim=1)
    speed, change = velocity.norm(dim=-1).mean(1), velocity.diff(dim=1).norm(dim=-1).median(1).values
    return speed.mean().item(), (change / speed.clamp(min=0.1)).mean().item()


def evaluate(checkpoint, judge: Judge, count: int, seed: int, precision: str = "fp32") -> dict[str, float]:
    """Figures of count generated videos, classes in turn."""
    labels = [i % 10 for i in range(count)]
    parts = generate(checkpoint, labels, seed, batch=10, precision=precision, device=torch.device("cpu"))
    videos = torch.cat(list(parts))
    return figures(videos, torch.tensor(labels), judge)


def figures(videos: Tensor, labels: Tensor, judge: Judge) -> dict[str, float]:
    verdicts, agreement = judge(videos)
    speed, unsteadiness = motion(videos)
    return {
        "accuracy": float((verdicts == labels.numpy()).mean()),
        "frames that agree": float(agreement.mean()),
        "speed": speed,
        "unsteadiness": unsteadiness,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ckpt", type=Path, default=Path(__file__).with_name("moving_digits.safetensors"))
    parser.add_argument("--count", type=int, default=100, help="videos (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, help="guidance (default: the checkpoint's)")
    parser.add_argument("--steps", type=int, help="calls of the model (default: the checkpoint's)")
    parser.add_argument("--method", help="sampler (default: the checkpoint's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()

    judge = Judge()
    labels = torch.arange(500) % 10
    real = MovingDigits().draw_labelled(labels, 16, torch.Generator().manual_seed(5))
    checkpoint = load(options.ckpt, None, [], torch.device("cpu"))
    for name in ("cfg", "steps", "method"):
        if getattr(options, name) is not None:
            setattr(checkpoint.sampling, name, getattr(options, name))
    rows = {
        "real clips (500)": figures(real, labels, judge),
        f"generated ({options.count})": evaluate(checkpoint, judge, options.count, options.seed, options.precision),
    }
    print(f"{'':22}" + "".join(f"{name:>20}" for name in rows["real clips (500)"]))
    for name, values in rows.items():
        print(f"{name:22}" + "".join(f"{value:20.3f}" for value in values.values()))


if __name__ == "__main__":
    main()
