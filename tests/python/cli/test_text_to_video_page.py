"""docs/text_to_video.md: its code and its commands run one after the other, with a small Latte for the real one."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from frameattn.cli.main import main
from frameattn.data.video_io import write_mp4

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_latte

PAGE = (Path(__file__).parents[3] / "docs" / "text_to_video.md").read_text()
TINY = {
    "maxin-cn/Latte-1": "latte",
    "--size 512": f"--size {2 * tiny_latte.SIZE} --device cpu",
    "torch.randn(1, 4, 16, 64, 64)": f"torch.randn(1, 4, {tiny_latte.FRAMES}, {tiny_latte.SIZE}, {tiny_latte.SIZE})",
    "torch.randn(1, 120, 4096)": f"torch.randn(1, 5, {tiny_latte.TEXT_CHANNELS})",
    "num_inference_steps=50": "num_inference_steps=2, video_length=3, height=16, width=16",
    "--precision bf16": "--device cpu",
}


def made_small(text: str) -> str:
    for real, tiny in TINY.items():
        text = text.replace(real, tiny)
    return text


def test_from_a_latte_to_a_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_latte.save_pipeline(Path("latte"))
    Path("clips").mkdir()
    for seed, name in enumerate(("waves", "cat")):
        generator = torch.Generator().manual_seed(seed)
        write_mp4(Path("clips", f"{name}.mp4"), torch.rand(1, 8, 3, 32, 32, generator=generator) * 2 - 1, 8)
        Path("clips", f"{name}.txt").write_text(f"a {name} runs")
    model, samples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    encode, train, _, sample = re.findall(r"^    (frameattn (?:.*\\\n)*.*)", PAGE, re.MULTILINE)

    names: dict = {}
    exec(made_small(model), names)
    assert names["noise_and_variance"].shape == (1, 8, 3, 8, 8)
    assert names["trained"] and all(".attn1." in name for name in names["trained"])
    assert run(encode) == 0
    assert run(train, "--steps", "2", "--workers", "0") == 0
    assert run(sample, "--steps", "2") == 0
    assert {"0000.mp4", "0001.gif", "contact_sheet.png"} <= {path.name for path in Path("samples").iterdir()}
    names = {}
    exec(made_small(samples), names)
    assert names["frames"].shape == (1, 3, 3, 16, 16)


def run(command: str, *options: str) -> int:
    return main([*shlex.split(made_small(command).replace("\\\n", " "))[1:], *options])
