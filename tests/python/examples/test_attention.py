"""examples/attention.py, as a user runs it, on a small clip."""

import re


def test_table(run_example):
    output = run_example("attention.py", "--grid", "6x4x5", "--repeat", 1)
    number = r"\d\.\de[-+]\d\d"
    lines = re.findall(rf"^(.{{24}})\s+({number})(?:\s+({number}))?", output, re.MULTILINE)
    errors = {name.strip(): float(error) for name, error, _ in lines}
    gradients = {name.strip(): float(error) for name, _, error in lines if error}
    assert errors["dense attention"] == errors["Matrix Attention, torch"] == 0
    # VMonarch is near dense attention, nearer with a second iteration, and far nearer than no attention at all.
    first, second = (errors[f"VMonarch, iterations={i}"] for i in (1, 2))
    assert 0.01 < second < first < errors["mean of all values"] / 3
    assert 0.01 < gradients["VMonarch, iterations=2"] < gradients["VMonarch, iterations=1"] < 0.5
    # Matrix Attention is exact.
    assert errors["by frameattn"] < 1e-5 and gradients["by frameattn"] < 1e-5
    assert output.count("compiled with fullgraph=True: 0.0e+00 from eager") == 2


def test_an_odd_number_of_tokens(run_example):
    assert "by frameattn" in run_example("attention.py", "--grid", "2x3x1", "--repeat", 1)
