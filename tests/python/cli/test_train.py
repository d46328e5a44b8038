"""``frameattn train``: its files, its log, and that a run stopped at any moment continues with the same bits."""

import csv
import os
import signal

import pytest
import torch

from frameattn.cli.main import main
from frameattn.training import Trainer, read_config


def train(config, folder, *options) -> int:
    return main(["train", "--config", str(config), "--out", str(folder), "--device", "cpu", *options])


def read_state(folder) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


def tensors(value, path="") -> dict:
    """Every tensor and number of a nested state by its place."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        return {path: value}
    return {place: leaf for key, inner in value for place, leaf in tensors(inner, f"{path}/{key}").items()}


def assert_same_bits(first, second):
    first, second = ({k: v for k, v in tensors(state).items() if k != "/seconds"} for state in (first, second))
    assert first.keys() == second.keys()
    for place, value in first.items():
        same = torch.equal(value, second[place]) if isinstance(value, torch.Tensor) else value == second[place]
        assert same, place


def test_files_of_a_run(trained):
    assert {"checkpoint.safetensors", "state.pt", "config.yaml", "log.csv", "loss.png", ".lock"} == set(
        os.listdir(trained)
    )
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["mse"]) + float(row["vb"]), rel=1e-4)
    config = read_config(trained / "config.yaml")
    assert config.model.arguments["in_channels"] == 1 and config.model.arguments["num_classes"] == 10
    assert config.model.arguments["num_frames"] == 4


def test_checkpoint_is_the_average(trained):
    from frameattn.models import from_checkpoint, read_metadata

    state = read_state(trained)
    model = from_checkpoint(trained / "checkpoint.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], average) for name, average in state["ema"].items())
    assert any(not torch.equal(state["model"][name], average) for name, average in state["ema"].items())
    metadata = read_metadata(trained / "checkpoint.safetensors")
    assert metadata["step"] == 6
    assert metadata["sampling"] == {"steps": 3, "method": "dpm", "cfg": 2.0}
    assert metadata["diffusion"] == {
        "learn_sigma": True,
        "predict_xstart": False,
        "sigma_small": False,
        "max_snr_weight": None,
    }


def test_half_precision_checkpoint(tiny_config, tmp_path):
    from safetensors.torch import load_file

    assert train(tiny_config, tmp_path, "--checkpoint_dtype", "float16", "--stages", "null", "--steps", "1") == 0
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "checkpoint.safetensors").values()}
    assert dtypes == {torch.float16}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_then_resume_gives_the_same_bits(tiny_config, trained, tmp_path, monkeypatch, capsys, number):
    train_step = Trainer._train_step

    def step_with_signal(self, batches):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return train_step(self, batches)

    before = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "_train_step", step_with_signal)
    assert train(tiny_config, tmp_path, "--save_every", "100") == 128 + number
    assert f"stopped at step 3 of 6; resume with: frameattn train --out {tmp_path}" in capsys.readouterr().out
    assert signal.getsignal(number) == before
    assert read_state(tmp_path)["step"] == 3

    monkeypatch.undo()
    assert main(["train", "--out", str(tmp_path), "--save_every", "3"]) == 0  # no --config: it is in the folder
    assert "at step 3 of 6" in capsys.readouterr().out
    assert_same_bits(read_state(tmp_path), read_state(trained))


def test_kill_without_warning_then_resume_gives_the_same_bits(tiny_config, trained, tmp_path, monkeypatch):
    class PowerCut(BaseException):
        pass

    train_step = Trainer._train_step

    def cut(self, batches):
        if self.step == 4:
            raise PowerCut
        return train_step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", cut)
    with pytest.raises(PowerCut):
        train(tiny_config, tmp_path)
    monkeypatch.undo()
    assert read_state(tmp_path)["step"] == 3  # save_every: 3
    assert train(tiny_config, tmp_path, "--workers", "1") == 0
    resumed, whole = read_state(tmp_path), read_state(trained)
    assert resumed["config"].pop("workers") == 1 and whole["config"].pop("workers") == 0
    assert_same_bits(resumed, whole)
    steps = [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert steps == ["1", "2", "3", "4", "5", "6"]  # step 4 was logged twice and kept once


def test_resume_refuses_another_run(tiny_config, trained, fails):
    message = fails("train", "--config", tiny_config, "--out", trained, "--seed", "1", "--device", "cpu")
    assert "holds a run with another seed: 0 there, 1 now; choose another --out" in message
    message = fails("train", "--out", trained, "--diffusion.predict_xstart", "true")
    assert "another diffusion: predict_xstart False there, True now" in message


def test_bf16_keeps_weights_in_float32(tiny_config, tmp_path):
    assert train(tiny_config, tmp_path, "--precision", "bf16") == 0
    state = read_state(tmp_path)
    assert {p.dtype for p in state["ema"].values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "no_such_data"], "data no_such_data: "),
        (["--model", "FrameDiTG-S/64-256"], "model FrameDiTG-S/64-256: "),
        (["--model.dept", "3"], "dept"),
        (["--model.depth", "3"], "depth"),
        (
            ["--model.extras", "78"],
            "model.extras 78 needs encoded clips with CLIP's texts of 77 x 768, data moving_digits",
        ),
        (["--model.extras", "3"], "extras must be 1 (none), 2 (classes) or 78 (text), got 3"),
        (["--model.in_channels", "3"], "model.in_channels is 3, but data needs 1: leave it out"),
        (["--model.learn_sigma", "false"], "model.learn_sigma is False, but diffusion needs True"),
        (["--model.num_frames", "3"], r"stages[2].frames is 4, but the model is made for 3 frames"),
        (["--init", "none.safetensors"], "init none.safetensors: "),
        (["--device", "tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["--learn_rate", "3"], "unknown key learn_rate: did you mean learning_rate?"),
    ],
)
def test_usage_errors(tiny_config, tmp_path, fails, options, message):
    assert message in fails("train", "--config", tiny_config, "--out", tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


def test_damaged_state_is_reported(tiny_config, tmp_path, fails):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    assert "state.pt is not a state that frameattn wrote" in fails("train", "--config", tiny_config, "--out", tmp_path)


def test_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path, fails):
    message = fails("train", "--config", tiny_config, "--out", tmp_path, "--learning_rate", "1e30", "--warmup", "0")
    assert "is not finite at step" in message and "lower learning_rate" in message
    assert not (tmp_path / "state.pt").exists() or torch.isfinite(read_state(tmp_path)["ema"].popitem()[1]).all()


def test_missing_package_names_the_extra(tiny_config, tmp_path, fails, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = fails("train", "--config", tiny_config, "--out", tmp_path)
    assert "matplotlib" in message and 'pip install "frameattn[video]"' in message
