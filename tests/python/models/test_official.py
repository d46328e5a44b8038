"""Names, outputs and gradients are those of the official code, for every u_type, bias_type and fuse_mode."""

import json
from pathlib import Path

import pytest
import torch

import official
from frameattn.models import FrameDiTG, FrameDiTH

FIGURES = json.loads(Path(__file__).with_name("official.json").read_text())


def create(case):
    family, arguments, _ = official.CASES[case]
    if arguments.get("u_type", "").startswith("normalized"):
        arguments = {**arguments, "u_norm_eps_outside": True}  # what the official files of G and H compute
    return (FrameDiTG if family.startswith("G") else FrameDiTH)(**{**official.SMALL, **arguments})


@pytest.mark.parametrize("case", official.CASES)
def test_state_dict_has_the_official_names_and_shapes(case):
    state = {name: list(tensor.shape) for name, tensor in create(case).state_dict().items()}
    assert state == FIGURES[case]["state"]


@pytest.mark.parametrize("case", official.CASES)
def test_output_and_gradients_are_the_official_ones(case):
    expected = FIGURES[case]
    _, arguments, extra = official.CASES[case]
    results = official.results(official.fill(create(case)), arguments, extra)
    assert results["shape"] == expected["shape"]
    check_outputs(results["output"], expected["output"])
    assert results["output_at_0"] == pytest.approx(expected["output_at_0"], rel=1e-7, abs=1e-7)
    # softmax over frames cancels the bias of k: its gradient is nothing but rounding
    gradients = {name: g for name, g in expected["gradients"].items() if "linear_k.bias" not in name}
    assert gradients.keys() == {name for name in results["gradients"] if "linear_k.bias" not in name}
    for name, gradient in gradients.items():
        assert results["gradients"][name] == pytest.approx(gradient, rel=1e-7, abs=1e-7), name


def check_outputs(actual, expected):
    """The first clip has t = 3. The second has t = 871: its output moves by 1e-4 where a frequency is another."""
    actual, expected = (torch.tensor(x, dtype=torch.float64) for x in (actual, expected))
    largest = expected.abs().max()
    assert (actual - expected)[:4].abs().max() <= 1e-6 * largest
    assert (actual - expected)[4:].abs().max() <= 1e-3 * largest
