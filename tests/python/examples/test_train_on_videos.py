"""examples/train_on_videos.py runs as it is, on clips of its own."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def test_from_six_clips_to_a_contact_sheet(run_example, tmp_path):
    output = run_example("train_on_videos.py", "--out", tmp_path, "--steps", 4)
    assert "6 clips of 6 are encoded" in output and "trained 4 steps" in output
    captions = {path.read_text().strip() for path in (tmp_path / "clips").glob("*.txt")}
    assert len(captions) == 6 and "a red square moves down" in captions
    assert (tmp_path / "samples" / "prompts.txt").read_text().startswith("0000  a red square moves right\n0001  a blue")
    assert {"0000.mp4", "0001.mp4", "contact_sheet.png"} <= {path.name for path in (tmp_path / "samples").iterdir()}
