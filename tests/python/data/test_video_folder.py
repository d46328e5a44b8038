"""A folder of videos: which frames a clip has, classes, and files that are of no use."""

import pickle
import warnings

import pytest
import torch

pytest.importorskip("av")

from frameattn.data import create_dataset
from frameattn.data.video_folder import VideoFolder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Clips(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset.draw(2, 3, seeded(index))[0]


@pytest.mark.parametrize("interval", [1, 3])
def test_clips_are_stretches_of_a_video(interval, tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "low.mp4", range(40), key_frames_every=250)
    write_numbers(tmp_path / "deep" / "below" / "high.AVI", range(100, 140), codec="mpeg4")
    dataset = create_dataset(str(tmp_path), size=32, frame_interval=interval)
    assert (dataset.channels, dataset.size, dataset.num_classes) == (3, 32, 0)
    video, labels = dataset.draw(60, 5, seeded())
    assert video.shape == (60, 5, 3, 32, 32) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1 and video.max() > 0.9
    assert labels.tolist() == [0] * 60 and labels.dtype == torch.int64
    # The middle square shows bits 1, 2, 5 and 6: compare those of the numbers a stretch would have.
    visible = 0b01100110
    stretches = {
        tuple((first + start + i * interval) & visible for i in range(5))
        for first in (0, 100)
        for start in range(40 - 4 * interval)
    }
    drawn = {tuple(read_numbers(clip)) for clip in video}
    assert drawn <= stretches and len(drawn) > 15


def test_first_and_last_stretch_are_drawn(tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "a.mp4", [0, 2, 4, 6, 32, 34, 36])
    clips = VideoFolder(tmp_path, size=32).draw(20, 3, seeded())[0]  # 7 frames: one stretch
    assert {tuple(read_numbers(clip)) for clip in clips} == {(0, 6, 36)}
    images = VideoFolder(tmp_path, size=32).draw(60, 1, seeded())[0]
    assert {read_numbers(image)[0] for image in images} == {0, 2, 4, 6, 32, 34, 36}


def test_generator_decides_everything(tmp_path, write_numbers):
    for name in ("a.mp4", "b.mkv"):
        write_numbers(tmp_path / name, range(40))
    dataset = VideoFolder(tmp_path, size=16, flip=True)
    expected = Clips(dataset)[1]
    assert torch.equal(Clips(pickle.loads(pickle.dumps(dataset)))[1], expected)
    assert not torch.equal(Clips(dataset)[2], expected)
    loader = torch.utils.data.DataLoader(
        Clips(dataset), batch_size=None, sampler=[0, 1], num_workers=2, multiprocessing_context="fork"
    )
    assert torch.equal(list(loader)[1], expected)


def test_flip(tmp_path, write_numbers):
    write_numbers(tmp_path / "a.mp4", [0b00100010] * 3)  # white on the left of the middle
    plain = VideoFolder(tmp_path, size=16).draw(20, 1, seeded())[0]
    assert (plain[..., :7].mean((1, 2, 3, 4)) > 0.9).all()
    flipped = VideoFolder(tmp_path, size=16, flip=True).draw(40, 1, seeded())[0]
    left = flipped[..., :7].mean((1, 2, 3, 4)) > 0
    assert 10 < left.sum() < 30
    assert torch.equal(flipped[~left][0], flipped[left][0].flip(-1))


def test_classes(tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "walk" / "1.mp4", [2] * 5)
    write_numbers(tmp_path / "run" / "inner" / "1.mp4", [4] * 5)
    write_numbers(tmp_path / "jump" / "1.mp4", [6] * 5)
    (tmp_path / "empty").mkdir()
    dataset = create_dataset(str(tmp_path), size=32, classes=True)
    assert dataset.class_names == ["jump", "run", "walk"] and dataset.num_classes == 3
    video, labels = dataset.draw(30, 1, seeded())
    assert [{0: 6, 1: 4, 2: 2}[label] for label in labels.tolist()] == [read_numbers(clip)[0] for clip in video]
    assert set(labels.tolist()) == {0, 1, 2}

    write_numbers(tmp_path / "astray.mp4", [0] * 5)
    with pytest.raises(ValueError, match=r"every video is in the folder of its class, but astray.mp4 is not"):
        VideoFolder(tmp_path, classes=True)
    assert VideoFolder(tmp_path).num_classes == 0


def test_unreadable_files_are_named_once(tmp_path, write_numbers):
    write_numbers(tmp_path / "good.mp4")
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    (tmp_path / "notes.txt").write_text("no video by its name")
    (tmp_path / "._good.mp4").write_bytes(b"what file managers leave")
    with pytest.warns(UserWarning, match=r"video skipped: .*noise.mp4: Invalid data") as caught:
        dataset = VideoFolder(tmp_path, size=16)
    assert len(caught) == 1 and [video.path.name for video in dataset.videos] == ["good.mp4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset.draw(4, 2, seeded())


def test_summary_counts_what_is_not_used(tmp_path, write_numbers):
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        write_numbers(tmp_path / name)
    write_numbers(tmp_path / "e.mp4", range(10))
    write_numbers(tmp_path / "f.mp4", range(12))
    (tmp_path / "c.mp4").write_bytes(b"noise" * 100)  # in the middle
    with pytest.warns(UserWarning, match=r"video skipped: .*c.mp4: Invalid data"):
        dataset = VideoFolder(tmp_path, size=16, frame_interval=1)
    with pytest.warns(UserWarning, match=r"video skipped: .*e.mp4: has 10 frames, but a clip spans 12"):
        assert dataset.summary(12) == (
            f"{tmp_path}: 4 of 6 videos are used for clips of 12 frames, 25 a second (1 cannot be read, 1 too short)"
        )
    (tmp_path / "c.mp4").unlink()
    dataset = VideoFolder(tmp_path, size=16, fps=10)
    assert dataset.summary(1) == f"{tmp_path}: 5 of 5 videos are used for clips of 1 frames, 10 a second"


def names(dataset):
    return [str(video.path.relative_to(dataset.folder)) for video in dataset.videos]


def test_links_to_class_folders_are_followed(tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "elsewhere" / "walking" / "1.mp4", [2] * 5)
    write_numbers(tmp_path / "elsewhere" / "running" / "deep" / "1.mp4", [4] * 5)
    data = tmp_path / "data"
    write_numbers(data / "jump" / "1.mp4", [6] * 5)
    (data / "walk").symlink_to(tmp_path / "elsewhere" / "walking")
    (data / "run").mkdir()
    (data / "run" / "linked").symlink_to("../../elsewhere/running")
    (data / "jump" / "2.mp4").symlink_to("1.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = VideoFolder(data, size=32, classes=True)
    assert dataset.class_names == ["jump", "run", "walk"]
    assert names(dataset) == ["jump/1.mp4", "jump/2.mp4", "run/linked/deep/1.mp4", "walk/1.mp4"]
    video, labels = dataset.draw(20, 1, seeded())
    assert [[6, 4, 2][label] for label in labels.tolist()] == [read_numbers(clip)[0] for clip in video]


def test_links_that_are_of_no_use_are_named(tmp_path, write_numbers):
    data = tmp_path / "data"
    write_numbers(data / "a" / "1.mp4", [2] * 5)
    write_numbers(data / "b" / "2.mp4", [4] * 5)
    write_numbers(tmp_path / "beside.mp4", [4] * 5)
    (data / "a" / "itself").symlink_to(".")
    (data / "a" / "up").symlink_to(tmp_path)  # where data is
    (data / "a" / "other").symlink_to("../b")  # and back
    (data / "b" / "other").symlink_to("../a")
    (data / "gone").symlink_to(tmp_path / "gone")
    (data / "ring").symlink_to("ring")
    (data / "c.mp4").symlink_to("gone.mp4")
    (data / ".hidden").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="not everything is looked into") as caught:
        dataset = VideoFolder(data, size=16, frame_interval=1)
    assert len(caught) == 1 and names(dataset) == ["a/1.mp4", "b/2.mp4"]
    message = str(caught[0].message)
    for name, what in {
        "a/itself": f"leads back to {data / 'a'}",
        "a/up": f"leads back to {tmp_path}",
        "a/other": f"leads to {data / 'b'}, which is looked into already",
        "b/other": f"leads to {data / 'a'}, which is looked into already",
        "gone": "leads nowhere",
        "ring": "leads nowhere",
        "c.mp4": "leads nowhere",
    }.items():
        assert f"{data / name} {what}" in message
    assert ".hidden" not in message


def test_circle_outside_is_walked_once(tmp_path, write_numbers):
    write_numbers(tmp_path / "outside" / "x" / "1.mp4", [2] * 5)
    (tmp_path / "outside" / "x" / "y").symlink_to("..")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").symlink_to(tmp_path / "outside" / "x")
    with pytest.warns(UserWarning, match=r"data/x/y leads back to .*outside$"):
        assert names(VideoFolder(tmp_path / "data", size=16)) == ["x/1.mp4"]


def test_file_that_breaks_off(tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "good.avi", [6] * 60, codec="mpeg4")
    path = write_numbers(tmp_path / "half.avi", [96] * 60, codec="mpeg4")
    path.write_bytes(b"00dc".join(path.read_bytes().split(b"00dc")[:31]))  # what every frame starts with
    dataset = VideoFolder(tmp_path, size=32)
    assert [video.frames for video in dataset.videos] == [60, 60]  # so say the headers
    with pytest.warns(UserWarning, match=r"video skipped: .*half.avi: ends after frame") as caught:
        video, _ = dataset.draw(30, 4, seeded())
    assert len(caught) == 1
    assert [set(read_numbers(clip)) for clip in video].count({6}) > 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dataset.draw(30, 4, seeded())[0], video)  # whether it is known to be broken or not

    for video in dataset.videos:
        video.path.unlink()
    with (
        pytest.raises(ValueError, match="100 clips in a row could not be read"),
        pytest.warns(UserWarning, match="good"),
    ):
        dataset.draw(1, 4, seeded())


def test_short_files(tmp_path, write_numbers, read_numbers):
    write_numbers(tmp_path / "long.mp4", [6] * 22)
    write_numbers(tmp_path / "short.mp4", [0] * 21)
    dataset = VideoFolder(tmp_path, size=32)
    with pytest.warns(UserWarning, match=r"short.mp4: has 21 frames, but a clip spans 22") as caught:
        video, _ = dataset.draw(8, 8, seeded())
        dataset.draw(8, 8, seeded())
    assert len(caught) == 1
    assert {number for clip in video for number in read_numbers(clip)} == {6}
    with pytest.raises(ValueError, match=r"a clip spans 25 frames, but the longest video has 22.*interval, now 3"):
        dataset.draw(1, 9, seeded())


def test_rejects_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"holds no readable video \(.3gp .avi .*.mp4"):
        VideoFolder(tmp_path)
    (tmp_path / "noise.mp4").write_bytes(b"noise")
    with pytest.raises(ValueError, match="holds no readable video"), pytest.warns(UserWarning, match="noise.mp4"):
        VideoFolder(tmp_path)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, got 0"):
        VideoFolder(tmp_path, size=0)
    with pytest.raises(ValueError, match=r"frame_interval must be a whole number of at least 1, got 0.5"):
        VideoFolder(tmp_path, frame_interval=0.5)
