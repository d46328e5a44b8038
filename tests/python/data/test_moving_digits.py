"""Moving digits: what a clip is, that it moves as promised, and that splits share no digit."""

import pytest
import torch

pytest.importorskip("sklearn")

from frameattn.data import create_dataset
from frameattn.data.moving_digits import MovingDigits, draw_paths, load_digits, render


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def centres(clips):
    """Centres of mass [K, T, 2], as x and y in pixels, of clips [K, T, 1, S, S]."""
    mass = (clips[:, :, 0] + 1) / 2
    places = torch.arange(clips.shape[-1]) + 0.5
    total = mass.sum((-1, -2))
    return torch.stack([(mass.sum(-2) @ places) / total, (mass.sum(-1) @ places) / total], -1)


@pytest.mark.parametrize("size", [8, 16, 21])
@pytest.mark.parametrize("frames", [1, 5])
def test_clips(size, frames):
    dataset = create_dataset("moving_digits", size=size)
    assert (dataset.channels, dataset.size, dataset.num_classes) == (1, size, 10)
    video, labels = dataset.draw(32, frames, seeded())
    assert video.shape == (32, frames, 1, size, size) and video.dtype == torch.float32
    assert labels.shape == (32,) and labels.dtype == torch.int64 and set(labels.tolist()) <= set(range(10))
    assert video.min() == -1 and 0.5 < video.max() <= 1
    assert (video.amax((-1, -2)) > -0.5).all()  # a digit in every frame


def test_generator_decides_everything():
    dataset = MovingDigits()
    (first, labels), (again, labels_again) = dataset.draw(4, 3, seeded(1)), MovingDigits().draw(4, 3, seeded(1))
    assert torch.equal(first, again) and torch.equal(labels, labels_again)
    generator = seeded(1)
    dataset.draw(4, 3, generator)
    assert not torch.equal(dataset.draw(4, 3, generator)[0], first)


def test_draw_each_is_draw_of_each():
    dataset = MovingDigits(size=12)
    video, labels = dataset.draw_each(3, [seeded(i) for i in range(5)])
    for i in range(5):
        alone, (label,) = dataset.draw(1, 3, seeded(i))
        assert torch.equal(video[i], alone[0]) and labels[i] == label


def test_labels_name_the_digits(monkeypatch):
    shown = []
    monkeypatch.setattr("frameattn.data.moving_digits.render", lambda digits, _: shown.extend(digits) or digits)
    for split in ("train", "test"):
        digits, truth = load_digits(split)
        labels = torch.arange(9, -1, -1).repeat(30)
        shown.clear()
        MovingDigits(size=8, split=split).draw_labelled(labels, 1, seeded())
        for digit, label in zip(shown, labels.tolist(), strict=True):
            assert set(truth[(digits == digit).all(-1).all(-1)].tolist()) == {label}
        assert len({tuple(digit.flatten().tolist()) for digit in shown}) > 150  # not the same few


def test_draw_shows_its_labels():
    dataset = MovingDigits()
    generator = seeded()
    video, labels = dataset.draw(6, 2, generator)
    generator = seeded()
    torch.randint(10, (6,), generator=generator)
    assert torch.equal(dataset.draw_labelled(labels, 2, generator), video)
    assert dataset.draw(2000, 1, seeded())[1].bincount(minlength=10).min() > 150  # classes are equally likely


def test_splits_share_no_digit():
    train, test = ({tuple(digit.flatten().tolist()) for digit in load_digits(split)[0]} for split in ("train", "test"))
    assert len(train) == 1437 and len(test) == 360 and not train & test


def test_paths_are_straight_between_bounces():
    reach, speed = 16, (0.6, 1.4)
    paths = draw_paths(500, 40, reach, speed, seeded()).double()
    assert 0 <= paths.min() < 0.1 and reach - 0.1 < paths.max() <= reach
    steps = paths.diff(dim=1)
    magnitude = steps.abs().mode(1).values  # a bounce shortens the step in which it happens
    same = (steps.abs() - magnitude[:, None]).abs() < 1e-4
    near_wall = torch.minimum(paths[:, :-1], reach - paths[:, :-1]) < speed[1]
    assert (same | near_wall).all() and same.double().mean() > 0.9
    turned = same[:, 1:] & same[:, :-1] & (steps[:, 1:] * steps[:, :-1] < -1e-6)
    assert not turned[~near_wall[:, :-1] & ~near_wall[:, 1:]].any()
    speeds = magnitude.norm(dim=-1)
    assert speed[0] - 0.01 < speeds.min() < 0.65 and 1.35 < speeds.max() < speed[1] + 0.01


def test_pictures_follow_the_paths():
    digits = load_digits("train")[0][:40]
    start = torch.tensor([3.0, 2.0])
    velocity = torch.tensor([0.35, 0.15])
    corners = start + velocity * torch.arange(8.0)[:, None]
    clips = render(digits, corners.expand(len(digits), 8, 2))
    moved = centres(clips) - centres(clips)[:, :1]
    expected = velocity * torch.arange(8.0)[:, None] / 2  # 2 canvas pixels are one of the frame
    assert (moved - expected).abs().max() < 0.3 and (moved - expected).abs().mean() < 0.04


def test_speed_of_pictures():
    dataset = create_dataset("moving_digits", speed=[2, 2])
    steps = centres(dataset.draw(100, 6, seeded())[0]).diff(dim=1).norm(dim=-1)
    assert steps.median().item() == pytest.approx(1, abs=0.05)
    still = MovingDigits(speed=(0, 0)).draw(4, 3, seeded())[0]
    assert torch.equal(still[:, 0], still[:, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "size must be a whole number of at least 8, the side of the digits, got 7"),
        ({"size": 16.0}, "size must be a whole number of at least 8"),
        ({"split": "all"}, "split must be train or test, got 'all'"),
        ({"speed": 1.0}, "speed must be two numbers, lowest and highest, got 1.0"),
        ({"speed": [1, 2, 3]}, "speed must be two numbers"),
        ({"speed": [2, 1]}, r"speed must be 0 <= lowest <= highest, got \[2, 1\]"),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_dataset("moving_digits", **arguments)


def test_rejects_unknown_labels():
    with pytest.raises(ValueError, match=r"labels must be in 0..9, got \[3, 10\]"):
        MovingDigits().draw_labelled(torch.tensor([3, 10]), 1, seeded())


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"rolling_digits is no folder of videos, no encoded clips and no data set \(moving_digits\)"
    ):
        create_dataset("rolling_digits")
