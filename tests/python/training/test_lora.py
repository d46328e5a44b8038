"""LoRA: what is trained and saved, in the format of diffusers, and sampled with."""

import re
import subprocess
import sys

import pytest
import torch

from frameattn.cli.main import main
from frameattn.models import from_checkpoint, read_metadata, save_checkpoint
from frameattn.models.lora import FILE_NAME, add_lora, load_lora

pytest.importorskip("peft")

import tiny

SMALL = ["--steps", "2", "--batch", "2", "--learning_rate", "0.1", "--schedule", "constant", "--device", "cpu"]
SMALL += ["--ema_decay", "0"]


@pytest.fixture(scope="module", params=["FrameDiTG-S/64-256/2", "FrameDiTH-S/64-256/2-concat"])
def base(request, tiny_config, tmp_path_factory):
    """The checkpoint of a run, with weights at random: the gates of fresh blocks are 0, and so what a LoRA does."""
    folder = tmp_path_factory.mktemp("base")
    options = ["--config", str(tiny_config), "--model", request.param, "--stages", "[{frames: 2, batch: 1, steps: 1}]"]
    assert main(["train", *options, "--out", str(folder), "--device", "cpu"]) == 0
    path = folder / "checkpoint.safetensors"
    metadata, weights = read_metadata(path), tiny.randomize(from_checkpoint(path)).state_dict()
    save_checkpoint(weights, path, name=metadata.pop("model"), **metadata)
    return path


def tune(tiny_config, base, out, *options) -> int:
    with_sizes = ["--config", str(base.parent / "config.yaml"), "--stages", "null"]
    return main(["train", *with_sizes, "--out", str(out), "--init", str(base), "--lora", "3", *SMALL, *options])


def test_lora_is_trained_and_saved_beside_the_weights_it_adapts(tiny_config, base, tmp_path):
    assert tune(tiny_config, base, tmp_path) == 0
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["ema"] and all(".lora_" in name for name in state["ema"])
    layers = {re.sub(r"blocks\.\d+\.|\.lora_.*", "", name) for name in state["ema"]}
    in_time = (
        {"attn.vanilla_attention.qkv", "attn.vanilla_attention.proj"}
        if "vanilla" in str(state["model"].keys())
        else set()
    )
    assert layers == {"attn.qkv", "attn.proj"} | in_time
    before, after = (from_checkpoint(path) for path in (base, tmp_path / "checkpoint.safetensors"))
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())

    # The file gives the trained model: weights of every layer are W + alpha / r B A.
    load_lora(before, tmp_path)
    trained = from_checkpoint(base)
    add_lora(trained, 3)
    trained.load_state_dict(state["model"])
    size = before.config["input_size"]
    x, t, y = torch.randn(1, before.num_frames, 1, size, size), torch.tensor([3]), torch.tensor([2])
    with torch.no_grad():
        adapted, expected, plain = (model.eval()(x, t, y) for model in (before, trained, after))
    torch.testing.assert_close(adapted, expected)
    assert (adapted - plain).abs().max() > 1e-4


def test_resumed_lora_has_the_same_bits(tiny_config, base, tmp_path):
    assert tune(tiny_config, base, tmp_path / "once", "--steps", "4") == 0
    assert tune(tiny_config, base, tmp_path / "twice", "--steps", "2") == 0
    assert main(["train", "--out", str(tmp_path / "twice"), "--steps", "4"]) == 0
    once, twice = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("once", "twice"))
    for part in ("model", "ema"):
        assert all(torch.equal(weight, twice[part][name]) for name, weight in once[part].items())


def test_sampling_with_a_lora(tiny_config, base, tmp_path, capsys):
    assert tune(tiny_config, base, tmp_path / "run") == 0
    sample = ["sample", "--ckpt", str(base), "--steps", "2", "--classes", "1", "--device", "cpu", "--format", "png"]
    assert main([*sample, "--out", str(tmp_path / "a"), "--lora", str(tmp_path / "run")]) == 0
    assert main([*sample, "--out", str(tmp_path / "b"), "--lora", str(tmp_path / "run" / FILE_NAME)]) == 0
    assert main([*sample, "--out", str(tmp_path / "c")]) == 0
    beside = ["sample", "--ckpt", str(tmp_path / "run" / "checkpoint.safetensors"), *sample[3:]]
    assert main([*beside, "--out", str(tmp_path / "e")]) == 0  # the LoRA beside its checkpoint is taken
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in "abce"]
    assert sheets[0] == sheets[1] == sheets[3] != sheets[2]
    capsys.readouterr()
    assert main([*sample, "--out", str(tmp_path / "d"), "--lora", str(tmp_path / "none")]) == 2
    assert "none: no such file" in capsys.readouterr().err


def test_alpha_and_targets(tiny_config, base, tmp_path, capsys):
    options = ["--lora_alpha", "6", "--lora_targets", "[fc1]"]
    assert tune(tiny_config, base, tmp_path, *options, "--ema_decay", "0") == 0
    names = torch.load(tmp_path / "state.pt", weights_only=True)["ema"]
    assert names and all(".mlp.fc1.lora_" in name for name in names)
    model = from_checkpoint(base)
    load_lora(model, tmp_path)
    assert model.blocks[0].mlp.fc1.scaling == {"default": 2.0}
    capsys.readouterr()
    assert tune(tiny_config, base, tmp_path, "--lora_targets", "[qkv]", "--steps", "3") == 2
    assert "holds a run with another lora_alpha: 6.0 there, None now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init", "null"], "lora needs weights that it adapts: --init, or --latte for text to video"),
        (["--lora_targets", "[nothing]"], "lora: Target modules"),
        (["--lora", "0", "--lora_alpha", "3"], "lora_alpha and lora_targets go with lora, the rank"),
        (["--lora", "-1"], "lora must be at least 0, got -1"),
        (["--lora_targets", "qkv"], "lora_targets must be a list"),
    ],
)
def test_usage_errors(tiny_config, base, tmp_path, capsys, options, message):
    assert tune(tiny_config, base, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_files_of_other_models(tmp_path):
    from safetensors.torch import save_file

    from frameattn.models import FrameDiTG

    model = tiny.create(FrameDiTG)
    save_file({"transformer.blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"is a LoRA of another model: there is no layer blocks.0.attn.to_q"):
        load_lora(model, tmp_path / "x.safetensors")
    save_file({"weight": torch.ones(2, 8)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no LoRA of one rank: it has no lora_A.weight"):
        load_lora(model, tmp_path / "x.safetensors")
    wide = {
        f"blocks.0.attn.qkv.lora_{part}.weight": torch.ones(*shape) for part, shape in (("A", (2, 9)), ("B", (24, 2)))
    }
    save_file({f"transformer.{name}": weight for name, weight in wide.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv.lora_A.weight is \[2, 9\], not \[2, 8\]"):
        load_lora(tiny.create(FrameDiTG), tmp_path / "x.safetensors")


def test_what_other_loras_have(tmp_path):
    from safetensors.torch import save_file

    from frameattn.models import FrameDiTG

    tensors = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(24, 2), "lora_magnitude": torch.ones(24)}
    save_file({f"transformer.blocks.0.attn.qkv.{k}": v for k, v in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has blocks.0.attn.qkv.lora_magnitude, which is not supported here"):
        load_lora(tiny.create(FrameDiTG), tmp_path / "x.safetensors")


def test_without_peft(tmp_path):
    code = "import sys; sys.modules['peft'] = None; from frameattn.models.lora import add_lora; add_lora(None, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "peft does not import" in done.stderr and 'pip install "frameattn[lora]"' in done.stderr
