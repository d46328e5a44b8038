"""What a step draws depends on the seed and its number alone."""

import pytest
import torch

from frameattn.training.config import Config, Named, Stage
from frameattn.training.draws import Draws, draw_timesteps, seed_of, stage_at


class Ramp:
    """A data set whose clips are all one number, drawn from the generator."""

    channels, size, num_classes = 1, 2, 10

    def draw(self, count, frames, generator):
        values = torch.rand(count, 1, 1, 1, 1, generator=generator)
        return values.expand(count, frames, 1, 2, 2).clone(), torch.randint(10, (count,), generator=generator)


def test_draws_depend_on_seed_and_step_alone():
    stages = [Stage(steps=2, batch=3, frames=0, images=2), Stage(steps=2, batch=2, frames=4, images=1)]
    draws = Draws(Ramp(), Config(data=Named("x"), stages=stages, accumulation=2), stages, 1000, extras=2)
    other = Draws(Ramp(), Config(data=Named("x"), stages=stages, accumulation=2, seed=1), stages, 1000, extras=2)
    images, video = draws[0], draws[5]
    assert images.x.shape == (3, 2, 1, 2, 2) and images.t.shape == (3,)
    assert {name: tuple(label.shape) for name, label in images.conditions.items()} == {"y_image": (3, 2)}
    assert video.x.shape == (2, 5, 1, 2, 2) and video.t.shape == (2,)
    assert {name: tuple(label.shape) for name, label in video.conditions.items()} == {"y": (2,), "y_image": (2, 1)}
    assert (video.x[:, 0] == video.x[:, 3]).all() and (video.x[:, 0] != video.x[:, 4]).all()
    again = draws[5]
    assert all(torch.equal(getattr(again, part), getattr(video, part)) for part in ("x", "t", "noise"))
    assert all(torch.equal(label, video.conditions[name]) for name, label in again.conditions.items())
    for different in (draws[4], draws[6], draws[7], other[5]):
        assert not torch.equal(different.noise, video.noise)


def test_stage_at():
    stages = [Stage(steps=2, batch=1, frames=1), Stage(steps=3, batch=1, frames=2)]
    assert [stage_at(stages, step).frames for step in range(5)] == [1, 1, 2, 2, 2]
    with pytest.raises(IndexError, match="step 5 is behind the last stage"):
        stage_at(stages, 5)


def test_stratified_timesteps_visit_every_part():
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([draw_timesteps(8, 1000, True, generator) for _ in range(500)])
    assert (t.sort(dim=1).values // 125 == torch.arange(8)).all()
    assert not torch.equal(t.sort(dim=1).values, t)
    assert t.min() < 3 and t.max() > 996 and abs(t[:, 0].float().mean() - 499.5) < 40
    t = draw_timesteps(4000, 1000, False, generator)
    assert t.min() >= 0 and t.max() <= 999 and abs(t.float().mean() - 499.5) < 20


def test_seeds_of_neighbours_differ():
    seeds = {seed_of(seed, step, micro) for seed in range(5) for step in range(50) for micro in range(4)}
    assert len(seeds) == 1000
