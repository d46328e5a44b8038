"""examples/train_on_videos.py runs as it is, on clips of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_on_videos.py"


def test_from_six_clips_to_a_contact_sheet(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--out", str(tmp_path), "--steps", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "6 clips of 6 are encoded" in done.stdout and "trained 4 steps" in done.stdout
    captions = {path.read_text().strip() for path in (tmp_path / "clips").glob("*.txt")}
    assert len(captions) == 6 and "a red square moves down" in captions
    assert (tmp_path / "samples" / "prompts.txt").read_text().startswith("0000  a red square moves right\n0001  a blue")
    assert {"0000.mp4", "0001.mp4", "contact_sheet.png"} <= {path.name for path in (tmp_path / "samples").iterdir()}
