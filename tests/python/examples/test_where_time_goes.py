"""examples/where_time_goes.py, as a user runs it, on few tokens."""

import re

import pytest

pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def test_shares_and_plot(run_example, tmp_path):
    output = run_example("where_time_goes.py", "--grid", "3x4x5", "--repeat", 1, "--out", tmp_path / "plot.png")
    assert "1 of 1 video self-attention modules swapped" in output
    assert "calls of the model: 1 with VMonarch" in output
    rows = re.findall(r"^([a-z-]+)\s+(\S+) ms +(\d+)%\s+(\S+) ms +(\d+)%$", output, re.MULTILINE)
    table = {name: list(map(float, values)) for name, *values in rows}
    total = table.pop("all")
    assert list(table) == ["attention", "projections", "feed-forward", "rest"]
    for column in range(4):  # milliseconds and shares, dense and swapped
        values = [row[column] for row in table.values()]
        assert sum(values) == pytest.approx(total[column], abs=2) and min(values) >= (0 if column % 2 else 1e-9)
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (960, 288)
