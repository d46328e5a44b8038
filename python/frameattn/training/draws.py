"""What a training step draws: clips, labels, noise steps t and noise, from the seed and the step's number alone.

Because nothing is taken from a running generator, step k draws the same whether training was interrupted before it or
not, and worker processes may prepare steps ahead in any order. Every clip has a seed of its own, so that several
processes that share a batch draw what one would, each its own clips alone.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frameattn.data import LatentClips, VideoDataset
from frameattn.models.framedit import CLASSES, NO_CONDITION, TEXT
from frameattn.training.config import Config, Stage

ARGUMENTS = {NO_CONDITION: (), CLASSES: ("y", "y_image"), TEXT: ("text_embedding",)}  # of FrameDiT


class Draw(NamedTuple):
    """One micro-batch, or a process's share of it. The last ``images`` frames of x are still images with conditions of
    their own."""

    x: Tensor  # [B, frames + images, C, H, W], for text to video [B, C, frames + images, H, W]
    conditions: dict[str, Tensor]  # arguments of the model
    t: Tensor  # [B]
    noise: Tensor  # like x


def seed_of(seed: int, *place: int) -> int:
    """A 64 bit seed for a place in the training; places differ in all bits, however close they are."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0])


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that step (0, 1, ...) belongs to."""
    for stage, end in zip(stages, accumulate(stage.steps for stage in stages), strict=True):
        if step < end:
            return stage
    raise IndexError(f"step {step} is behind the last stage")


class Draws(Dataset):
    """Item i is micro-batch i % accumulation of step i // accumulation: clips rank, rank + count, ... of it.

    extras: what the model is conditioned on: NO_CONDITION, CLASSES or TEXT.
    dropout: how often the class of a clip, and of its images with it, becomes null_class.
    """

    def __init__(
        self,
        dataset: VideoDataset | LatentClips,
        config: Config,
        stages: Sequence[Stage],
        num_timesteps: int,
        extras: int = NO_CONDITION,
        null_class: int = 0,
        dropout: float = 0.0,
        rank: int = 0,
        count: int = 1,
    ):
        self.dataset: Any = dataset
        self.seed = config.seed
        self.accumulation = config.accumulation
        self.stratified = config.stratified_timesteps
        self.stages = stages
        self.num_timesteps = num_timesteps
        self.extras = extras
        self.null_class = null_class
        self.dropout = dropout
        self.rank = rank
        self.count = count

    def __getitem__(self, index: int) -> Draw:
        step, micro = divmod(index, self.accumulation)
        stage = stage_at(self.stages, step)
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, micro))
        t = draw_timesteps(stage.batch, self.num_timesteps, self.stratified, generator)
        places = range(self.rank, stage.batch, self.count)
        generators = [torch.Generator().manual_seed(seed_of(self.seed, step, micro, 1, place)) for place in places]
        x, conditions = self._clips(stage, generators)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators])
        return Draw(x, conditions, t[self.rank :: self.count], noise)

    def _clips(self, stage: Stage, generators: list[torch.Generator]) -> tuple[Tensor, dict[str, Tensor]]:
        parts, conditions = [], {}
        if stage.frames and self.extras == TEXT:
            video, conditions["text_embedding"], _ = draw_each(self.dataset, stage.frames, generators, with_text=True)
            parts.append(video)
        elif stage.frames:
            video, conditions["y"] = draw_each(self.dataset, stage.frames, generators)
            parts.append(video)
        if stage.images:
            images, conditions["y_image"] = self._images(stage, generators)
            parts.append(images)
        if self.extras == CLASSES:
            dropped = torch.cat([torch.rand(1, generator=g) for g in generators]) < self.dropout
            for name, labels in conditions.items():
                conditions[name] = torch.where(dropped.view(-1, *[1] * (labels.dim() - 1)), self.null_class, labels)
        return torch.cat(parts, 1), {name: x for name, x in conditions.items() if name in ARGUMENTS[self.extras]}

    def _images(self, stage: Stage, generators: list[torch.Generator], with_text: bool = False) -> list[Tensor]:
        """The stage's images of every clip [B, images, C, H, W], and likewise what the data set has with them."""
        of_clip = [torch.randint(2**62, (stage.images,), generator=g).tolist() for g in generators]
        of_images = [torch.Generator().manual_seed(seed) for seeds in of_clip for seed in seeds]
        images, *others = draw_each(self.dataset, 1, of_images, with_text)
        return [drawn.unflatten(0, (len(generators), stage.images)) for drawn in (images.squeeze(1), *others)]


class TextDraws(Draws):
    """The same for FrameDiTHT2V, of encoded clips with texts."""

    def _clips(self, stage: Stage, generators: list[torch.Generator]) -> tuple[Tensor, dict[str, Tensor]]:
        x, text, mask = draw_each(self.dataset, stage.frames, generators, with_text=True)
        if stage.images:
            images, *of_images = self._images(stage, generators, with_text=True)
            x = torch.cat([x, images], 1)
            text, mask = (
                torch.cat([video.unsqueeze(1), image], 1) for video, image in zip((text, mask), of_images, strict=True)
            )
        conditions = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        return x.transpose(1, 2).contiguous(), conditions


def draw_each(
    dataset: Any, frames: int, generators: Sequence[torch.Generator], with_text: bool = False
) -> tuple[Tensor, ...]:
    """A clip of each of generators, no two of which are one, and what the data set has with it."""
    if hasattr(dataset, "draw_each"):
        return dataset.draw_each(frames, generators)
    draw = dataset.draw_with_text if with_text else dataset.draw
    return tuple(map(torch.cat, zip(*(draw(1, frames, generator) for generator in generators), strict=True)))


def draw_timesteps(count: int, total: int, stratified: bool, generator: torch.Generator) -> Tensor:
    """count steps of 0 .. total - 1, each uniform; stratified: one from each of count equal parts, in random order."""
    if not stratified:
        return torch.randint(total, (count,), generator=generator)
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator, dtype=torch.float64)
    return (parts * (total / count)).long().clamp(max=total - 1)
