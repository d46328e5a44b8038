"""Checkpoints: ours with what they say of themselves, official ``.pt`` files, and everything that must be refused."""

import json
import pickle
import re
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from frameattn._optional import MissingExtra
from frameattn.models import (
    FrameDiTG,
    FrameDiTH,
    create_model,
    from_checkpoint,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)

NAMES = {FrameDiTG: "FrameDiTG-S/64-256/2", FrameDiTH: "FrameDiTH-S/64-256/2-concat"}
# What the name of a model fixes and a small one has otherwise; the rest must be read off the tensors.
SMALL = {key: tiny.CONFIG[key] for key in ("hidden_size", "qk_col_dim", "v_col_dim", "depth", "num_col_heads")}
SMALL |= dict(num_row_heads=tiny.CONFIG["num_row_heads"])


def create(kind=FrameDiTG, seed=0, **arguments):
    return tiny.create(kind, seed, torch.float32, **arguments)


def assert_same_weights(model, weights):
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), name


def write_official(path, model, ema=None, prefix=""):
    """As train.py of the official code does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(tiny.videos(dtype=torch.float32), tiny.steps()).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    content = {"model": {prefix + name: tensor for name, tensor in model.state_dict().items()}}
    if ema is not None:
        content["ema"] = {prefix + name: tensor for name, tensor in ema.state_dict().items()}
    content |= {"optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict(), "train_steps": 150_000}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_round_trip_with_metadata(tmp_path, kind):
    path, model = tmp_path / "model.safetensors", create(kind, extras=2, bias_type="row")
    arguments = {**SMALL, "input_size": 4, "num_frames": 3, "extras": 2, "num_classes": 5, "bias_type": "row"}
    sampling = {"steps": 50, "cfg": 2.0}
    save_checkpoint(model.state_dict(), path, name=NAMES[kind], arguments=arguments, sampling=sampling, step=7)
    assert read_metadata(path) == {"model": NAMES[kind], "arguments": arguments, "sampling": sampling, "step": 7}
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == ["frameattn"]
        assert json.loads(file.metadata()["frameattn"])["model"] == NAMES[kind]

    for where in (path, str(path)):
        loaded = from_checkpoint(where)
        assert type(loaded) is kind and not loaded.training
        assert loaded.config["bias_type"] == "row" and loaded.config["num_frames"] == 3
        assert_same_weights(loaded, model.state_dict())
    other = create(kind, seed=50, extras=2, bias_type="row").train()
    load_checkpoint(other, str(path))
    assert other.training
    assert_same_weights(other, model.state_dict())
    inputs = tiny.videos(dtype=torch.float32), tiny.steps(), torch.tensor([0, 4])
    torch.testing.assert_close(loaded(*inputs), model(*inputs), rtol=0, atol=0)


def test_overrides_go_before_what_the_file_says(tmp_path):
    path, model = tmp_path / "model.safetensors", create()
    arguments = {**SMALL, "input_size": 4, "num_frames": 3}
    save_checkpoint(model.state_dict(), path, name=NAMES[FrameDiTG], arguments=arguments)
    assert from_checkpoint(path, gradient_checkpointing=True).gradient_checkpointing
    with pytest.raises(ValueError, match=r"temp_embed is \[1, 3, 8\], the model has \[1, 2, 8\]"):
        from_checkpoint(path, num_frames=2)
    with pytest.raises(TypeError, match="FrameDiTG has no argument 'frames': did you mean 'num_frames'"):
        from_checkpoint(path, frames=2)
    with pytest.raises(ValueError, match="does not fit FrameDiTH: missing blocks.1.attn.norm_local"):
        from_checkpoint(path, NAMES[FrameDiTH])  # the caller's name goes before the file's too


def test_tensors_that_are_views_and_a_frozen_model(tmp_path):
    path, model = tmp_path / "model.safetensors", create()
    weights = {name: tensor.T.clone().T if tensor.dim() == 2 else tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(weights, path, name=NAMES[FrameDiTG], arguments={})
    assert_same_weights(model, load_file(path))


@pytest.mark.parametrize("file_type", ["safetensors", "pt"])
def test_half_precision_file_into_float32_model(tmp_path, file_type):
    path, model = tmp_path / f"model.{file_type}", create()
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if file_type == "pt":
        torch.save(halves, path)
    else:
        save_file(halves, path)
    other = create(seed=50)
    load_checkpoint(other, path)
    assert all(tensor.dtype == torch.float32 for tensor in other.state_dict().values())
    assert_same_weights(other, halves)
    load_checkpoint(other.double(), path)
    assert all(tensor.dtype == torch.float64 for tensor in other.state_dict().values())
    loaded = from_checkpoint(path, NAMES[FrameDiTG], **SMALL)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_official_file_holds_the_model_and_its_average(tmp_path, prefix):
    model, ema = create(), create(seed=50)
    path = write_official(tmp_path / "0150000.pt", model, ema, prefix)
    target = create(seed=99)
    for weights, wanted in (("auto", ema), ("ema", ema), ("model", model)):
        load_checkpoint(target, path, weights=weights)
        assert_same_weights(target, wanted.state_dict())
        assert_same_weights(from_checkpoint(path, NAMES[FrameDiTG], weights=weights, **SMALL), wanted.state_dict())
    assert read_metadata(path) == {}


def test_official_file_without_average(tmp_path):
    model, target = create(), create(seed=50)
    path = write_official(tmp_path / "model.pt", model)
    load_checkpoint(target, path)
    assert_same_weights(target, model.state_dict())
    with pytest.raises(ValueError, match="holds no 'ema' weights, only model, optimizer, lr_scheduler, train_steps"):
        load_checkpoint(target, path, weights="ema")
    torch.save({"model": model.state_dict(), "ema": None}, path)
    load_checkpoint(create(seed=50), path)
    only_ema = tmp_path / "ema.pt"
    torch.save({"ema": model.state_dict()}, only_ema)
    load_checkpoint(create(seed=50), only_ema)
    with pytest.raises(ValueError, match="holds no 'model' weights, only ema"):
        load_checkpoint(target, only_ema, weights="model")


def wrap_all(name):
    """blocks.0.attn.q as a model has it whose blocks are compiled and checkpointed, in DistributedDataParallel."""
    head, *rest = name.split(".")
    return ".".join(["module", head, *rest[:1], "_orig_mod", "_checkpoint_wrapped_module", *rest[1:]])


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "module." + name,
        lambda name: "_orig_mod.module." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: "_fsdp_wrapped_module." + name,
        wrap_all,
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_of_wrapped_models(tmp_path, rename, suffix):
    model, target = create(), create(seed=50)
    state = {rename(name): tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / f"wrapped{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    load_checkpoint(target, path)
    assert_same_weights(target, model.state_dict())
    assert_same_weights(from_checkpoint(path, NAMES[FrameDiTG], **SMALL), model.state_dict())


def test_wrapped_model_takes_either(tmp_path):
    model = create()
    for state in (model.state_dict(), torch.nn.ModuleDict({"module": model}).state_dict()):
        torch.save(state, tmp_path / "a.pt")
        target = create(seed=50)
        load_checkpoint(torch.nn.ModuleDict({"module": target}), tmp_path / "a.pt")
        assert_same_weights(target, model.state_dict())


def test_wrapped_model_beside_its_plain_average(tmp_path):
    model, ema, target = create(), create(seed=50), create(seed=99)
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": wrapped, "ema": ema.state_dict()}, tmp_path / "a.pt")
    for weights, wanted in (("ema", ema), ("model", model)):
        load_checkpoint(target, tmp_path / "a.pt", weights=weights)
        assert_same_weights(target, wanted.state_dict())


def test_name_that_is_there_twice(tmp_path):
    state = create().state_dict()
    torch.save({**state, "module.pos_embed": state["pos_embed"] + 1}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt holds pos_embed twice: within a wrapper, as module.pos_embed, and"):
        load_checkpoint(create(), tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("zipfile", [True, False])
def test_plain_state_dict(tmp_path, prefix, zipfile):
    model, target = create(), create(seed=50)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "plain.pth", _use_new_zipfile_serialization=zipfile)
    save_file(state, tmp_path / "plain.safetensors")
    for name in ("plain.pth", "plain.safetensors"):
        target = create(seed=50)
        load_checkpoint(target, tmp_path / name)
        assert_same_weights(target, model.state_dict())
        assert read_metadata(tmp_path / name) == {}


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("file_type", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "arguments",
    [
        dict(extras=1),
        dict(extras=2, num_classes=9),
        dict(extras=78),
        dict(learn_sigma=False),
        dict(num_frames=6, input_size=8),
        dict(in_channels=1, extras=2, learn_sigma=False),
        dict(u_type="softmax"),
    ],
    ids=lambda arguments: "-".join(f"{key}={value}" for key, value in arguments.items()),
)
def test_sizes_are_read_off_the_tensors(tmp_path, kind, file_type, arguments):
    model = create(kind, **arguments)
    path, name = tmp_path / f"model.{file_type}", NAMES[kind]
    if "u_type" in arguments:
        name = name.replace("/2", "/2-softmax_u")
    if file_type == "pt":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    loaded = from_checkpoint(path, name, **SMALL)
    assert_same_weights(loaded, model.state_dict())
    read = ["input_size", "num_frames", "in_channels", "learn_sigma", "extras"]
    read += ["num_classes"] if arguments.get("extras") == 2 else []
    assert {key: loaded.config[key] for key in read} == {key: model.config[key] for key in read}


def test_a_file_that_names_no_model(tmp_path):
    model = create()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        path = tmp_path / name
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} does not say which model it is: give its name"):
            from_checkpoint(path)
        with pytest.raises(KeyError, match=r"unknown model 'FrameDiTG': did you mean 'FrameDiTG-S/64-256/2'"):
            from_checkpoint(path, "FrameDiTG")


def test_missing_unknown_and_misshaped_tensors_are_named(tmp_path):
    path, model = tmp_path / "model.pt", create()
    state = model.state_dict()
    del state["x_embedder.proj.bias"]
    state["extra.weight"] = torch.zeros(3)
    state["pos_embed"] = torch.zeros(1, 9, 8)
    torch.save(state, path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = (
        f"{path} does not fit FrameDiTG: missing x_embedder.proj.bias; unknown extra.weight; "
        "pos_embed is [1, 9, 8], the model has [1, 4, 8]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_checkpoint(model, path)
    with pytest.raises(ValueError, match=r"FrameDiTG: pos_embed is \[1, 9, 8\], the model has \[1, 4, 8\]$"):
        load_checkpoint(model, path, strict=False)  # shapes must fit all the same
    torch.save({**before, "pos_embed": torch.zeros(1, 8, 4)}, path)  # as many values in another order
    with pytest.raises(ValueError, match=r"FrameDiTG: pos_embed is \[1, 8, 4\], the model has \[1, 4, 8\]$"):
        load_checkpoint(model, path)
    assert_same_weights(model, before)  # nothing was loaded by halves


def test_many_problems_are_counted(tmp_path):
    path, model = tmp_path / "model.pt", create()
    torch.save({"a": torch.zeros(1)}, path)
    count = len(model.state_dict()) + 1 - 5
    with pytest.raises(ValueError, match=f"missing pos_embed; missing temp_embed; .*; and {count} more$"):
        load_checkpoint(model, path)
    with pytest.raises(ValueError, match="does not fit FrameDiTG: missing "):
        from_checkpoint(path, NAMES[FrameDiTG], **SMALL)


def test_not_strict_passes_over_missing_and_unknown(tmp_path):
    path, source, target = tmp_path / "model.safetensors", create(), create(seed=50)
    state = source.state_dict()
    del state["x_embedder.proj.bias"]
    state["extra.weight"] = torch.zeros(3)
    save_file(state, path)
    before = target.x_embedder.proj.bias.clone()
    load_checkpoint(target, path, strict=False)
    assert torch.equal(target.x_embedder.proj.bias, before)
    assert torch.equal(target.final_layer.linear.weight, source.final_layer.linear.weight)


class Custom:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("zipfile", [True, False])
def test_a_file_with_code_is_refused(tmp_path, capsys, zipfile):
    path, model = tmp_path / "model.pt", create()
    torch.save({"model": model.state_dict(), "args": Custom()}, path, _use_new_zipfile_serialization=zipfile)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is refused: .* could run code"):
        load_checkpoint(model, path)
    with pytest.raises(ValueError, match="is refused"):
        from_checkpoint(path, NAMES[FrameDiTG])
    path.write_bytes(pickle.dumps(Custom(), protocol=2))
    with pytest.raises(ValueError, match="is refused"):
        load_checkpoint(model, path)
    torch.save(model, path)  # a whole module is code as well
    with pytest.raises(ValueError, match="is refused"):
        load_checkpoint(model, path)
    assert "must not run" not in capsys.readouterr().out


NOT_CHECKPOINTS = {
    "empty": b"",
    "text": b"hello world\n",
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "html": b"<html><body>404</body></html>",
    "zip": b"PK\x03\x04",
    "half a pickle": b"\x80\x02}q",
    "zeros": bytes(64),
    "bytes": bytes(range(256)),
    "stray opcodes": b"0a)b",
    "not UTF-8": b"c\xf8os\nsystem\n",
}


@pytest.mark.parametrize("file_type", ["safetensors", "pt"])
@pytest.mark.parametrize("content", NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_told_so_with_its_path(tmp_path, content, file_type):
    path = tmp_path / f"model.{file_type}"
    path.write_bytes(content)
    reason = "is not a safetensors file" if file_type == "safetensors" else "is refused|is not a checkpoint"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} ({reason})"):
        load_checkpoint(create(), path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} ({reason})"):
        from_checkpoint(path)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("file_type", ["safetensors", "pt", "old pt"])
def test_an_interrupted_download(tmp_path, file_type, part):
    path, model = tmp_path / f"model.{file_type.removeprefix('old ')}", create()
    if file_type == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=file_type == "pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is "):
        load_checkpoint(model, path)


def test_files_without_weights(tmp_path):
    path, model = tmp_path / "model.pt", create()
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="model.pt holds a list, not a dict of tensors"):
        load_checkpoint(model, path)
    torch.save(torch.zeros(2), path)
    with pytest.raises(ValueError, match="model.pt holds a Tensor, not a dict of tensors"):
        load_checkpoint(model, path)
    for content in ({}, {"step": 3}, {"model": {}}, {"ema": {}, "model": model.state_dict()}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="model.pt holds no weights"):
            load_checkpoint(model, path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors holds no weights"):
        load_checkpoint(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "folder"])
def test_missing_file(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load_checkpoint(create(), path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        from_checkpoint(path, NAMES[FrameDiTG])


def test_unknown_choice_of_weights(tmp_path):
    path, model = tmp_path / "model.pt", create()
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="load_checkpoint: weights must be auto, ema or model, got 'average'"):
        load_checkpoint(model, path, weights="average")
    with pytest.raises(ValueError, match="weights must be auto, ema or model, got 'average'"):
        from_checkpoint(path, NAMES[FrameDiTG], weights="average")


def test_without_safetensors(tmp_path, monkeypatch):
    path, model = tmp_path / "model.safetensors", create()
    save_file(model.state_dict(), path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (
        lambda: load_checkpoint(model, path),
        lambda: read_metadata(path),
        lambda: save_checkpoint(model.state_dict(), path, name="", arguments={}),
    ):
        with pytest.raises(MissingExtra, match=re.escape('pip install "frameattn[video]"')):
            call()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    load_checkpoint(model, tmp_path / "model.pt")  # needs torch alone


def test_a_registered_model_and_its_file_agree(tmp_path):
    """As ``frameattn train`` writes and ``frameattn sample`` reads: the arguments in the file are enough."""
    path = tmp_path / "model.safetensors"
    arguments = {**SMALL, "input_size": 4, "num_frames": 2, "u_type": "sparse", "qk_col_dim": 4, "v_col_dim": 4}
    model = create_model(NAMES[FrameDiTH], **arguments)
    save_checkpoint(model.state_dict(), path, name=NAMES[FrameDiTH], arguments=arguments)
    loaded = from_checkpoint(path)
    assert loaded.config == model.config
    assert_same_weights(loaded, model.state_dict())


def test_a_model_without_null_class_is_told_by_the_caller(tmp_path):
    model = create(extras=2, class_dropout_prob=0.0)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pt")
    again = from_checkpoint(tmp_path / "model.pt", NAMES[FrameDiTG], **SMALL, class_dropout_prob=0.0)
    assert again.config["num_classes"] == model.config["num_classes"]
