"""What a training step draws: clips, labels, noise steps t and noise, from the seed and the step's number alone.

Because nothing is taken from a running generator, step k draws the same whether training was interrupted before it or
not, and worker processes may prepare steps ahead in any order.
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
    """One micro-batch. The last ``images`` frames of x are still images with conditions of their own."""

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
    """Item i is micro-batch i % accumulation of step i // accumulation.

    extras: what the model is conditioned on: NO_CONDITION, CLASSES or TEXT.
    """

    def __init__(
        self,
        dataset: VideoDataset | LatentClips,
        config: Config,
        stages: Sequence[Stage],
        num_timesteps: int,
        extras: int = NO_CONDITION,
    ):
        self.dataset: Any = dataset
        self.seed = config.seed
        self.accumulation = config.accumulation
        self.stratified = config.stratified_timesteps
        self.stages = stages
        self.num_timesteps = num_timesteps
        self.extras = extras

    def __getitem__(self, index: int) -> Draw:
        step, micro = divmod(index, self.accumulation)
        stage = stage_at(self.stages, step)
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, micro))
        x, conditions = self._clips(stage, generator)
        t = draw_timesteps(stage.batch, self.num_timesteps, self.stratified, generator)
        noise = torch.randn(x.shape, generator=generator)
        return Draw(x, conditions, t, noise)

    def _clips(self, stage: Stage, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        parts, conditions = [], {}
        if stage.frames and self.extras == TEXT:
            video, conditions["text_embedding"], _ = self.dataset.draw_with_text(stage.batch, stage.frames, generator)
            parts.append(video)
        elif stage.frames:
            video, conditions["y"] = self.dataset.draw(stage.batch, stage.frames, generator)
            parts.append(video)
        if stage.images:
            images, labels = self.dataset.draw(stage.batch * stage.images, 1, generator)
            parts.append(images.view(stage.batch, stage.images, *images.shape[2:]))
            conditions["y_image"] = labels.view(stage.batch, stage.images)
        return torch.cat(parts, 1), {name: x for name, x in conditions.items() if name in ARGUMENTS[self.extras]}


class TextDraws(Draws):
    """The same for FrameDiTHT2V, of encoded clips with texts."""

    def _clips(self, stage: Stage, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, text, mask = self.dataset.draw_with_text(stage.batch, stage.frames, generator)
        if stage.images:

            def of_clip(drawn: Tensor) -> Tensor:
                return drawn.view(stage.batch, stage.images, *drawn.shape[1:])

            images, *of_images = self.dataset.draw_with_text(stage.batch * stage.images, 1, generator)
            x = torch.cat([x, of_clip(images.squeeze(1))], 1)
            text, mask = (
                torch.cat([video.unsqueeze(1), of_clip(image)], 1)
                for video, image in zip((text, mask), of_images, strict=True)
            )
        conditions = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        return x.transpose(1, 2).contiguous(), conditions


def draw_timesteps(count: int, total: int, stratified: bool, generator: torch.Generator) -> Tensor:
    """count steps of 0 .. total - 1, each uniform; stratified: one from each of count equal parts, in random order."""
    if not stratified:
        return torch.randint(total, (count,), generator=generator)
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator, dtype=torch.float64)
    return (parts * (total / count)).long().clamp(max=total - 1)
