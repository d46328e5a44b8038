"""``frameattn bench-swap``: what it builds, what it prints and what it refuses. One head, small grids."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import frameattn
from frameattn.cli import bench_swap
from frameattn.cli.bench_swap import Attention, Bench
from frameattn.cli.main import main
from frameattn.cli.video_models import MODELS

pytest.importorskip("diffusers")

CPU = torch.device("cpu")
BILLIONS = {
    "wan": 1.42,
    "wan-5b": 5.0,
    "wan-14b": 14.29,
    "ltx": 1.92,
    "hunyuan": 12.82,
    "cogvideox": 5.57,
    "mochi": 10.03,
}


@pytest.fixture
def one_head(monkeypatch):
    """All models with one head and little beside it."""
    for name, entry in MODELS.items():
        arguments = {**entry.arguments, "num_attention_heads": 1}
        if "ffn_dim" in arguments:
            arguments["ffn_dim"] = 32
        if name == "ltx":
            arguments["cross_attention_dim"] = 64
        monkeypatch.setitem(MODELS, name, replace(entry, arguments=arguments))


def run(capsys, *options: str) -> list[str]:
    assert main(["bench-swap", "--device", "cpu", "--repeat", "1", "--grid", "3x2x4", *options]) == 0
    return capsys.readouterr().out.splitlines()


# ---- Models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_the_checkpoint(name):
    entry = MODELS[name]
    model = entry.build(entry.depth, torch.device("meta"), torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(BILLIONS[name], abs=0.006)


@pytest.mark.parametrize("layers, two_streams", [(1, 1), (2, 1), (3, 1), (6, 2), (60, 20)])
def test_hunyuan_keeps_the_ratio_of_its_blocks(layers, two_streams):
    assert MODELS["hunyuan"].blocks(layers) == dict(num_layers=two_streams, num_single_layers=layers - two_streams)


def test_dtypes_are_those_of_from_pretrained(one_head, tmp_path):
    model = MODELS["wan"].build(1, CPU, torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes == {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {torch.float32, torch.bfloat16} == set(dtypes.values())


# ---- What it prints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name, one_head, capsys):
    entry = MODELS[name]
    title, shapes, _, _, model, attention, _, share, ceiling = run(capsys, "--model", name, "--layers", "2")
    assert title == f"{entry.checkpoint}: 2 of {entry.depth} blocks, random weights, forward"
    text = f" and {entry.joint_text} of text" if entry.joint_text else ""
    assert shapes.startswith(f"3 x 2 x 4 = 24 tokens{text}, batch 1, 1 heads of ") and "bfloat16, CPU" in shapes
    assert model.startswith("model ") and attention.startswith("attention ") and model.endswith("x")
    assert "% of the dense model's time" in share
    assert "T / 3.5 = 0.9 times" in ceiling


def test_real_layers_and_all_options(capsys):
    options = [
        "--layers",
        "1",
        "--backward",
        "--dtype",
        "float32",
        "--iterations",
        "3",
        "--batch",
        "2",
        "--repeat",
        "2",
    ]
    title, shapes, _, _, model, _, _, _, ceiling = run(capsys, *options)
    assert title.endswith("forward and backward")
    assert "batch 2, 12 heads of 128, float32" in shapes
    assert model.count("..") == 2  # quartiles
    assert "T / 4.5" in ceiling


@pytest.mark.parametrize("name", MODELS)
def test_finds_the_attention_over_the_video(name, one_head):
    entry = MODELS[name]
    bench = Bench(entry, entry.build(2, CPU, torch.float32), (3, 2, 4), 1, 2, False, CPU, torch.float32)
    swapped = frameattn.adapters.apply(bench.model).swapped
    assert len(bench.attention) == len(swapped) == 2
    assert bench.attention[0].shape[:3] == (1, 1, 24 + entry.joint_text)


def test_arithmetic_of_the_report(one_head):
    bench = Bench(MODELS["wan"], MODELS["wan"].build(1, CPU, torch.float32), (7, 2, 2), 1, 2, False, CPU, torch.float32)
    bench.attention = [Attention(torch.Size([1, 12, 28, 128]), None)] * 2
    seconds = {
        ("model", "dense"): [4.0, 5.0, 6.0],
        ("model", "swapped"): [2.0, 2.0, 2.0],
        ("attention", "dense"): [0.01, 2.0, 2.0],
        ("attention", "swapped"): [0.04, 0.05, 0.06],
    }
    *_, model, attention, _, share, ceiling = bench.report(1, seconds).splitlines()
    assert model.split() == ["model", "5000", "(4500", "..", "5500)", "2000", "(2000", "..", "2000)", "2.50x"]
    assert attention.split() == ["attention", "2000", "(1005", "..", "2000)", "50", "(45", "..", "55)", "40.00x"]
    assert " 80% " in share and "T / 3.5 = 2.0 times" in ceiling


def test_first_call_is_not_timed_and_dense_is_dense(one_head, monkeypatch):
    bench = Bench(MODELS["wan"], MODELS["wan"].build(1, CPU, torch.float32), (3, 2, 4), 1, 2, False, CPU, torch.float32)
    expected = bench.model(**bench.call)[0]
    with frameattn.adapters.apply(bench.model):
        other = bench.model(**bench.call)[0]
    assert not torch.equal(expected, other)
    results = []
    monkeypatch.setattr(bench, "seconds", lambda function: results.append(function()) or float(len(results)))
    seconds = bench.times(2)
    assert seconds[("model", "dense")] == [5.0, 9.0]
    for i in range(3):
        assert torch.equal(results[4 * i], expected) and torch.equal(results[4 * i + 1], other)


def test_a_gpu_is_timed_by_its_own_clock(one_head, monkeypatch):
    bench = Bench(MODELS["wan"], MODELS["wan"].build(1, CPU, torch.float32), (3, 2, 4), 1, 2, False, CPU, torch.float32)
    bench.device, log = torch.device("cuda"), []
    event = SimpleNamespace(record=lambda: log.append("record"), elapsed_time=lambda stop: 250.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    assert bench.seconds(lambda: log.append("run")) == 0.25
    assert log == ["synchronize", "record", "run", "record", "synchronize"]


def test_dense_attention_does_not_pass_for_swapped(one_head, monkeypatch):
    monkeypatch.setattr(frameattn.adapters, "apply", partial(frameattn.adapters.apply, grid=(5, 2, 4)))
    with pytest.raises(UserWarning, match="the grid does not hold the tokens"):
        main(["bench-swap", "--device", "cpu", "--grid", "3x2x4", "--layers", "1"])


# ---- What it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["16x28", "16x28x0", "16,28,52", "ax2x3", "1x2x3x4", ""])
def test_rejects_what_is_no_grid(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench-swap", "--grid", text])
    assert stop.value.code == 2
    assert "--grid: must be tokens in time, height and width, such as 16x28x52, got" in capsys.readouterr().err


def test_rejects_bad_options(fails, capsys):
    assert "--layers: Wan2.1-T2V-1.3B has 30 blocks, got 31" in fails("bench-swap", "--layers", 31)
    assert "unexpected argument 'x'" in fails("bench-swap", "x")
    assert "device must be auto, cpu or cuda" in fails("bench-swap", "--device", "tpu")
    for option, words in (("--model", "invalid choice"), ("--repeat", "must be at least 1"), ("--dtype", "invalid")):
        with pytest.raises(SystemExit):
            main(["bench-swap", option, "0"])
        assert words in capsys.readouterr().err


def test_cpu_build_on_a_gpu(fails, monkeypatch):
    monkeypatch.setattr(bench_swap, "choose_device", torch.device)
    monkeypatch.setattr(frameattn, "cuda_devices", tuple)
    assert "this is a CPU build of frameattn" in fails("bench-swap", "--device", "cuda")


def test_models_that_are_not_there(fails, monkeypatch):
    monkeypatch.setitem(MODELS, "wan", replace(MODELS["wan"], model="Wan9Transformer3DModel"))
    assert "has no Wan9Transformer3DModel" in fails("bench-swap")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert 'pip install "frameattn[video]"' in fails("bench-swap")


def test_models_without_an_adapter(fails, monkeypatch):
    arguments = dict(num_attention_heads=1, attention_head_dim=8, sample_size=8, norm_num_groups=1)
    monkeypatch.setitem(MODELS, "wan", replace(MODELS["wan"], model="DiTTransformer2DModel", arguments=arguments))
    assert "--model wan: apply: nothing to swap. DiTTransformer2DModel: makes images" in fails("bench-swap")


def test_too_little_memory(one_head, fails, monkeypatch):
    def exhausted(self, repeat):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Bench, "times", exhausted)
    message = fails("bench-swap", "--device", "cpu", "--grid", "3x2x4")
    assert "cpu has too little memory: take a smaller --grid, --batch or --layers" in message


def test_attention_of_another_library(one_head, fails, monkeypatch):
    monkeypatch.setattr(bench_swap, "Recorder", lambda tokens: nullcontext(type("Nothing", (), {"found": []})))
    assert "unset DIFFUSERS_ATTN_BACKEND" in fails("bench-swap", "--device", "cpu", "--grid", "3x2x4")
