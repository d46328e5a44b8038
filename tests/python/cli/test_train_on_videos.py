"""``frameattn train`` on a folder of videos: what it says of them, and their rate from the files to the samples."""

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av")

import av

from frameattn.cli.main import main
from frameattn.models import read_metadata


def write_video(path, frames, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 255, (frames, 32, 32, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def clips(tmp_path):
    """Videos of 12 frames a second: one of 24 frames, one of 6, and one that cannot be read."""
    write_video(tmp_path / "clips" / "a.mp4", 24, 12)
    write_video(tmp_path / "clips" / "c.mp4", 6, 12)
    (tmp_path / "clips" / "b.mp4").write_bytes(b"noise" * 100)
    return tmp_path / "clips"


def arguments(tiny_config, data, out, *options):
    stages = "[{frames: 4, batch: 2, steps: 1}]"
    command = ["train", "--config", tiny_config, "--data", data, "--data.size", 16, "--stages", stages, "--out", out]
    return [str(argument) for argument in (*command, "--device", "cpu", *options)]


@pytest.mark.parametrize(("options", "fps"), [([], 4), (["--data.frame_interval", 1], 12), (["--data.fps", 6], 6)])
def test_rate_of_the_clips_is_that_of_the_samples(options, fps, tiny_config, clips, tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"b.mp4: Invalid data"):
        assert main(arguments(tiny_config, clips, tmp_path / "run", *options)) == 0
    used = 2 if fps == 12 else 1  # clips of the others span 10 and 7 frames
    left_out = "1 cannot be read" if used == 2 else "1 cannot be read, 1 too short"
    line = f"{clips}: {used} of 3 videos are used for clips of 4 frames, {fps} a second ({left_out})"
    assert capsys.readouterr().out.splitlines()[0] == line
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    assert read_metadata(checkpoint)["fps"] == fps
    command = ["sample", "--ckpt", checkpoint, "--out", tmp_path / "samples", "--count", 1, "--cfg", 1]
    assert main([*map(str, command), "--format", "mp4"]) == 0
    with av.open(str(tmp_path / "samples" / "0000.mp4")) as container:
        assert container.streams.video[0].average_rate == fps


@pytest.mark.filterwarnings("ignore:video skipped")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data.frame_interval", 8],
            "a clip spans 25 frames, but the longest video has 24 (a.mp4, 12 frames a second): ask for fewer frames, "
            "now 4, or a smaller frame_interval, now 8, or set data.fps",
        ),
        (
            ["--data.fps", 1],
            "the longest video has 24 (a.mp4, 12 frames a second): ask for fewer frames, now 4, or a higher data.fps, "
            "now 1",
        ),
        (["--data.fps", 0], "fps must be a number of more than 0, got 0"),
        (["--data.fps", -2], "fps must be a number of more than 0, got -2"),
        (["--data.fps", 4, "--data.frame_interval", 3], "fps 4 and frame_interval 3 exclude one another"),
    ],
)
def test_usage_errors(options, message, tiny_config, clips, tmp_path, fails):
    assert message in fails(*arguments(tiny_config, clips, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:video skipped")
def test_null_takes_back_the_frame_interval_of_a_file(tiny_config, clips, tmp_path):
    config = tmp_path / "config.yaml"
    moving_digits = "data: {name: moving_digits}"
    text = tiny_config.read_text()
    assert moving_digits in text
    config.write_text(text.replace(moving_digits, f"data: {{name: {clips}, frame_interval: 3}}"))
    command = arguments(config, clips, tmp_path / "run", "--data.frame_interval", "null", "--data.fps", "6")
    assert main(command) == 0
    assert read_metadata(tmp_path / "run" / "checkpoint.safetensors")["fps"] == 6
