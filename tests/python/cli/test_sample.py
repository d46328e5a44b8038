"""``frameattn sample``: files, seeds, guidance and what it refuses."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from frameattn._errors import UsageError
from frameattn.cli import sample
from frameattn.cli.main import main
from frameattn.cli.sample import choose_labels, generate, load
from frameattn.models import read_metadata, save_checkpoint


@pytest.fixture
def checkpoint(trained):
    return load(trained / "checkpoint.safetensors", None, [], torch.device("cpu"))


def run(trained, folder, *options) -> int:
    return main(["sample", "--ckpt", str(trained / "checkpoint.safetensors"), "--out", str(folder), *options])


def test_files_and_report(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--classes", "3,7") == 0
    expected = {
        f"{name}.{suffix}" for name in ("0000_class_3", "0001_class_7", "overview") for suffix in ("gif", "mp4")
    }
    assert set(os.listdir(tmp_path)) == expected | {"contact_sheet.png"}
    output = capsys.readouterr().out
    assert all(str(tmp_path / name) in output for name in expected)
    assert "s a video (2 videos of 4 frames, dpm, 3 steps, cfg 2, cpu)" in output
    assert all((tmp_path / name).stat().st_size > 0 for name in expected)


def test_options_replace_defaults_of_the_checkpoint(trained, tmp_path, capsys):
    options = ["--count", "1", "--steps", "2", "--method", "ddim", "--cfg", "1", "--format", "png"]
    assert run(trained, tmp_path, *options) == 0
    assert os.listdir(tmp_path) == ["contact_sheet.png"]
    assert "1 videos of 4 frames, ddim, 2 steps, cfg 1" in capsys.readouterr().out


def test_videos_are_as_fast_as_the_clips(trained, tmp_path):
    """--fps, else the rate that the checkpoint has, else 8."""
    av = pytest.importorskip("av")
    tensors = load_file(trained / "checkpoint.safetensors")
    metadata = read_metadata(trained / "checkpoint.safetensors")
    assert metadata["fps"] is None  # nobody knows how fast moving digits are
    for fps, options, expected in ((None, [], 8), (12.5, [], 12.5), (23.976, [], 23.976), (12.5, ["--fps", "30"], 30)):
        path = tmp_path / "checkpoint.safetensors"
        values = {key: value for key, value in {**metadata, "fps": fps}.items() if key not in ("model", "arguments")}
        save_checkpoint(tensors, path, name=metadata["model"], arguments=metadata["arguments"], **values)
        out = tmp_path / f"{expected}"
        arguments = ["--ckpt", str(path), "--out", str(out), "--count", "1", "--steps", "2", "--format", "mp4,gif"]
        assert main(["sample", *arguments, *options]) == 0
        with av.open(str(out / "overview.mp4")) as container:
            assert float(container.streams.video[0].average_rate) == pytest.approx(expected, rel=1e-3)


def test_videos_depend_on_seed_and_index(checkpoint):
    def videos(labels, seed=0, batch=4):
        return torch.cat(list(generate(checkpoint, labels, seed, batch, "fp32", torch.device("cpu"))))

    together = videos([1, 2, 3])
    assert together.shape[:2] == (3, 4) and together.isfinite().all()
    torch.testing.assert_close(videos([1, 2, 3], batch=2), together)  # dpm draws no further noise
    assert not torch.allclose(videos([1, 2, 3], seed=1), together)
    assert not torch.allclose(together[0], together[1])


def test_guidance_is_the_official_rule(checkpoint):
    """The model's own forward_with_cfg on the doubled batch gives the same prediction."""
    from frameattn.diffusion import classifier_free_guidance

    model = checkpoint.model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        size, channels = model.config["input_size"], model.config["in_channels"]
        x = torch.randn(2, 4, channels, size, size, generator=torch.Generator().manual_seed(0))
        t, y = torch.tensor([10, 500]), torch.tensor([3, 7])
        ours = classifier_free_guidance(model, y, null_label=10, scale=4.0)(x, t)
        null = torch.full_like(y, 10)
        official = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), cfg_scale=4.0)
        plain = model(x, t, y)
    torch.testing.assert_close(ours[:, :, :channels], official[:2, :, :channels])
    torch.testing.assert_close(ours[:, :, channels:], plain[:, :, channels:])
    assert not torch.allclose(ours[:, :, :channels], plain[:, :, :channels])


def test_labels_are_taken_in_turn(checkpoint):
    model = checkpoint.model
    assert choose_labels(model, None, None, 1) == [0, 1, 2, 3]
    assert choose_labels(model, [3, 7], None, 1) == [3, 7]
    assert choose_labels(model, [3, 7], 3, 1) == [3, 7, 3]
    assert choose_labels(model, None, 11, 1)[-2:] == [9, 0]


def test_latents_are_saved_as_tensors(trained, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    monkeypatch.setattr(sample, "generate", lambda *arguments: [torch.zeros(2, 4, 4, 8, 8)])
    assert run(trained, tmp_path, "--classes", "3,7") == 0
    assert os.listdir(tmp_path) == ["latents.safetensors"]
    tensors = load_file(tmp_path / "latents.safetensors")
    assert tensors["latents"].shape == (2, 4, 4, 8, 8) and tensors["labels"].tolist() == [3, 7]
    assert "latents of 4 channels: --vae DIR decodes them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "3,10"], "--classes: the model knows 0..9, got 10"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--steps", "1"], "--steps must be in 2..1000, got 1"),
        (["--device", "tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["--sped", "3"], "unknown option --sped"),
        (["--model.hidden_size", "20"], "checkpoint.safetensors: "),
    ],
)
def test_usage_errors(trained, tmp_path, fails, options, message):
    arguments = ["sample", "--ckpt", trained / "checkpoint.safetensors", "--out", tmp_path / "new", *options]
    assert message in fails(*arguments)
    assert not (tmp_path / "new").exists()


def test_missing_checkpoint(tmp_path, fails):
    assert "none.safetensors: no such file" in fails("sample", "--ckpt", tmp_path / "none.safetensors", "--out", "x")


@pytest.mark.parametrize(
    "options", [["--classes", "a"], ["--format", "avi"], ["--method", "euler"], ["--count", "0"], ["--fps", "0"]]
)
def test_argparse_refuses_bad_values(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--ckpt", "a", "--out", "b", *options])
    assert stop.value.code == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_model_without_classes(checkpoint):
    unconditional = SimpleNamespace(config={**checkpoint.model.config, "extras": 1})
    assert choose_labels(unconditional, None, 2, 1) == [None, None]
    for classes, cfg in (([1], 1), (None, 2.0)):
        with pytest.raises(UsageError, match="the model knows no classes"):
            choose_labels(unconditional, classes, None, cfg)


def test_model_without_null_class(checkpoint):
    never_dropped = SimpleNamespace(config={**checkpoint.model.config, "class_dropout_prob": 0.0})
    assert choose_labels(never_dropped, [1], None, 1) == [1]
    with pytest.raises(UsageError, match="no null class"):
        choose_labels(never_dropped, None, None, 2.0)
