"""``frameattn compare`` on a random Wan: what it measures, what it writes, and what it refuses."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import frameattn
from frameattn.cli.compare import Comparison, table
from frameattn.cli.main import main

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_wan

SIZES = ("--height", "32", "--width", "32", "--frames", "9", "--steps", "3", "--device", "cpu", "--guidance", "2")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny_wan.save_pipeline(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat runs\n\n over the sea \n")
    return path


def compare(pipe, prompts, out, *options) -> int:
    return main(["compare", "--pipe", str(pipe), "--prompts", str(prompts), "--out", str(out), *SIZES, *options])


def test_measures_and_writes(pipe, prompts, tmp_path, capsys):
    assert compare(pipe, prompts, tmp_path / "out", "--seed", "5", "--dense-steps", "1", "--dense-layers", "1") == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["pipeline"] == "WanPipeline" and results["dtype"] == "float32"
    assert results["swap"]["dense_steps"] == results["swap"]["dense_layers"] == 1
    assert [one["prompt"] for one in results["prompts"]] == ["a cat runs", "over the sea"]
    assert [one["seed"] for one in results["prompts"]] == [5, 6]
    for one in results["prompts"]:
        assert 0 < one["psnr"] < 100 and 0 < one["ssim"] < 1
        assert one["dense_seconds"] > 0 and one["swapped_seconds"] > 0
        assert one["calls"] == 6 and one["vmonarch"] == 4  # guidance calls twice a step, and the first step is dense
        assert one["dense"] == {"in the first 1 steps of a video": 2}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0000.mp4",
        "0001.mp4",
        "contact_sheet.png",
        "results.json",
    }
    assert "VMonarch ran in 8 of 12 calls of the model" in printed
    assert "  4 dense: in the first 1 steps of a video" in printed and "times as fast" in printed
    assert printed.count("LPIPS") == 1 or "LPIPS is left out" not in printed


def test_dense_is_the_pipeline_itself_and_a_swap_of_nothing_is_the_same(pipe, prompts, tmp_path, monkeypatch, capsys):
    videos = []
    monkeypatch.setattr("frameattn.cli.compare.write_pair", lambda path, *pair: videos.append(pair))
    assert compare(pipe, prompts, tmp_path / "out", "--dense-steps", "3") == 0
    from diffusers import WanPipeline

    itself = WanPipeline.from_pretrained(pipe)
    generator = torch.Generator().manual_seed(0)
    options = dict(height=32, width=32, num_frames=9, num_inference_steps=3, guidance_scale=2.0)
    expected = itself("a cat runs", generator=generator, output_type="pt", **options).frames[0]
    dense, swapped, _ = videos[0]
    assert torch.equal(dense, swapped)
    torch.testing.assert_close(dense, expected.float())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["prompts"][0]["psnr"] is None and results["prompts"][0]["ssim"] == pytest.approx(1)
    assert results["prompts"][0]["vmonarch"] == 0
    assert "the same video" in capsys.readouterr().out


def test_arithmetic_of_the_table():
    def one(psnr, seconds, dense):
        return Comparison("", 0, psnr, 0.5, 0.25, seconds, 1.0, 4, 3, dense, {"x": 1})

    lines = table([one(20.0, 2.0, {"y": 1}), one(30.0, 4.0, {"y": 1}), one(None, 6.0, {"z": 1})]).splitlines()
    assert lines[1].split() == ["PSNR,", "dB", "30.00", "20.00"]
    assert lines[2].split() == ["SSIM", "0.500", "0.500"] and lines[3].split() == ["LPIPS", "0.250", "0.250"]
    assert lines[4] == "12.0 s dense, 3.0 s swapped: 4.00 times as fast"
    assert lines[5] == "VMonarch ran in 9 of 12 calls of the model"
    assert lines[6:] == ["  2 dense: y", "  3 dense in part: x", "  1 dense: z"]
    assert math.inf not in (float(part) for part in lines[1].split()[2:])


def test_refuses(pipe, prompts, tmp_path, capsys):
    def told(*options, pipe=pipe, prompts=prompts):
        assert compare(pipe, prompts, tmp_path / "out", *map(str, options)) == 2
        return capsys.readouterr().err.splitlines()[-1]  # diffusers shows its progress ahead of it

    assert "must be the folder of a pipeline of diffusers" in told(pipe=tmp_path)
    assert "cannot be read" in told(prompts=tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "has no texts: one a line" in told(prompts=tmp_path / "empty.txt")
    assert "--seed must be at least 0, got -1" in told("--seed", -1)
    assert "unexpected argument '--stepz'" in told("--stepz")
    assert "dense_layers must be at least 0, got -1" in told("--dense-layers", -1)
    assert "nothing to swap" in told("--dense-layers", 2)
    assert "WanPipeline: `height` and `width` have to be divisible" in told("--height", 17)
    assert not (tmp_path / "out").exists()


def test_refuses_what_the_pipeline_does_not_take(pipe, prompts, tmp_path, fails, monkeypatch):
    class Other:
        def __call__(self, prompt, generator, output_type):
            return SimpleNamespace(frames=[1])

    monkeypatch.setattr("frameattn.cli.compare.load_pipeline", lambda options, device: Other())
    monkeypatch.setattr(frameattn.adapters, "apply", lambda pipe, **swap: SimpleNamespace(remove=lambda: None))
    options = ["compare", "--pipe", pipe, "--prompts", prompts, "--out", tmp_path / "out", "--device", "cpu"]
    assert "--frames: Other has no argument num_frames" in fails(*options, "--frames", 9)
    assert "Other must give frames [1, T, C, H, W] for output_type='pt', got list" in fails(*options)
