"""examples/train_digits.py, as a user runs it, for a few steps."""

import csv

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")


def test_trains_and_samples(run_example, tmp_path):
    output = run_example("train_digits.py", "--steps", 20, "--batch", 4, "--out", tmp_path / "run")
    assert "parameters" in output and "(10, 8, 1, 16, 16) videos" in output
    with (tmp_path / "run" / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 10 and losses[-1] < losses[0] / 2
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    with Image.open(tmp_path / "run" / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 64 and sheet.height == 10 * 64 + 9 * 4  # 10 videos of 8 frames, enlarged
