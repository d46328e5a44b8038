"""Official training files: every key's value in our keys, what has no effect, and what a wrong value is answered with.

The files are built here of the keys and values that the official ones have.
"""

from pathlib import Path

import pytest
import yaml

from frameattn._errors import UsageError
from frameattn.cli.main import main
from frameattn.training import official, read_config
from frameattn.training.config import Config
from frameattn.training.config_io import build_config, config_values, load_yaml, merge

VIDEO = {
    "dataset": "sky", "data_path": None, "load_latent": False, "num_workers": 8, "vae": "vae.yaml",
    "results_dir": "./results", "global_seed": 0, "model": "FrameDiTG-XL/128-512/2", "num_frames": 16,
    "image_size": 256, "in_channels": 4, "num_sampling_steps": 250,
    "frame_interval": 3, "fixed_spatial": False, "attention_bias": True,
    "learn_sigma": True, "extras": 1, "num_classes": None, "pretrained": None, "learning_rate": "1e-4",
    "lr_warmup_steps": 0, "local_batch_size": 4, "gradient_accumulation_steps": 4, "max_train_steps": 1000000,
    "ckpt_every": 10000, "log_every": 5, "clip_max_norm": 0.1, "start_clip_iter": 20000, "use_compile": True,
    "mixed_precision": "bf16", "project": None,
}  # fmt: skip
TEXT_TO_VIDEO = {
    "dataset": "pexels", "load_latent": False, "results_dir": "./results_t2v", "pretrained_latte": "maxin-cn/Latte-1",
    "pretrained": None, "vae": "vae.yaml", "tokenizer": "t5.yaml", "use_lora": False,
    "lora": {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["to_k", "to_q"]},
    "model": "FrameDiTHT2V-XL/256-2-1-2-concat", "num_frames": 16, "video_length": 16, "image_size": 512,
    "in_channels": 4, "num_sampling_steps": 50, "frame_interval": 1, "learn_sigma": True,
    "resume_from_checkpoint": None, "learning_rate": "3e-4", "lr_warmup_steps": 10000, "local_batch_size": 1,
    "gradient_accumulation_steps": 8, "max_train_steps": 800000, "ckpt_every": 5000, "log_every": 25,
    "weight_decay": "1e-4", "clip_max_norm": 1.0, "start_clip_iter": 0, "num_workers": 2, "offload_vae": True,
    "offload_ema": False, "ema_update_every": 4, "use_compile": True, "mixed_precision": "bf16",
    "enable_xformers_memory_efficient_attention": False, "gradient_checkpointing": False,
    "n_checkpointing_blocks": 14, "global_seed": 0, "project": None,
}  # fmt: skip


@pytest.fixture
def translate(tmp_path):
    """The configuration and the lines of an official file with some values changed, for the data set ``data``."""

    def run(values: dict, data: str | None = "clips", **changes) -> tuple[Config, list[str]]:
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}).replace("'", ""))  # 1e-4, not '1e-4', as in the files
        read = load_yaml(path)
        assert official.is_official(read)
        ours, lines = official.translate(read, path, data)
        return build_config(merge(ours, {"data": {"name": data}} if data else {})), lines

    return run


def changed(config: Config) -> dict:
    """The values of a configuration that are not the defaults, sections flat."""

    def flat(values: dict) -> dict:
        return {
            f"{k}.{inner}" if inner else k: v
            for k, section in values.items()
            for inner, v in (section.items() if isinstance(section, dict) else [("", section)])
        }

    defaults = flat(config_values(build_config({"data": {"name": ""}})))
    return {k: v for k, v in flat(config_values(config)).items() if k not in defaults or v != defaults[k]}


def test_video_file(translate):
    config, lines = translate(VIDEO)
    assert changed(config) == {
        "data.name": "clips", "data.frame_interval": 3, "model.num_frames": 16, "model.extras": 1, "accumulation": 4,
        "workers": 8, "log_every": 5, "compile": True, "precision": "bf16",
    }  # fmt: skip  # the rest are our defaults, which test_every_key tells from keys that are ignored
    assert config.learning_rate == 1e-4
    assert lines == [
        "dataset, in_channels, image_size: --data decides",
        "results_dir: --out holds all the files of a run and resumes it",
        "vae: data is trained on as it is, no encoder runs",
        "attention_bias: without effect in the official training, too",
    ]


def test_text_to_video_file(translate):
    config, lines = translate(TEXT_TO_VIDEO)
    assert changed(config) == {
        "data.name": "clips", "data.frame_interval": 1, "model.name": "FrameDiTHT2V-XL/256-2-1-2-concat",
        "model.video_length": 16, "model.sample_size": 64, "latte": "maxin-cn/Latte-1", "steps": 800000, "batch": 1,
        "accumulation": 8, "learning_rate": 3e-4, "warmup": 10000, "weight_decay": 1e-4, "clip_norm": 1.0,
        "clip_start": 0, "ema_every": 4, "precision": "bf16", "compile": True, "workers": 2, "log_every": 25,
        "save_every": 5000, "sampling.steps": 50, "sampling.method": "ddim", "sampling.cfg": 7.5,
    }  # fmt: skip
    assert lines == [
        "max_train_steps, ckpt_every, ...: in steps of the optimizer (the official loop counts micro-batches)",
        "dataset, in_channels: --data decides",
        "results_dir: --out holds all the files of a run and resumes it",
        "vae, tokenizer, offload_vae: data is trained on as it is, no encoder runs",
    ]


@pytest.mark.parametrize(
    ("key", "value", "ours", "expected"),
    [
        ("num_frames", 8, "model.num_frames", 8),
        ("extras", 2, "model.extras", 2),
        ("num_classes", 101, "model.num_classes", 101),
        ("frame_interval", 2, "data.frame_interval", 2),
        ("learn_sigma", False, "diffusion.learn_sigma", False),
        ("predict_xstart", True, "diffusion.predict_xstart", True),
        ("sigma_small", True, "diffusion.sigma_small", True),
        ("num_sampling_steps", 49, "sampling.steps", 49),
        ("pretrained", "0150000.pt", "init", "0150000.pt"),
        ("global_seed", 5, "seed", 5),
        ("max_train_steps", 77, "steps", 77),
        ("local_batch_size", 3, "batch", 3),
        ("use_image_num", 8, "images", 8),
        ("gradient_accumulation_steps", 2, "accumulation", 2),
        ("learning_rate", "2e-4", "learning_rate", 2e-4),
        ("weight_decay", "1e-2", "weight_decay", 1e-2),
        ("clip_max_norm", 2, "clip_norm", 2.0),
        ("start_clip_iter", 9, "clip_start", 9),
        ("ema_update_every", 4, "ema_every", 4),
        ("use_compile", False, "compile", None),
        ("num_workers", 0, "workers", None),
        ("log_every", 6, "log_every", 6),
        ("ckpt_every", 11, "save_every", 11),
        ("mixed_precision", False, "precision", None),  # how YAML reads no
        ("gradient_checkpointing", True, "checkpoint_blocks", official.ALL_BLOCKS),
    ],
)
def test_every_key(translate, key, value, ours, expected):
    """expected None: our default, which VIDEO's value is not."""
    before, after = changed(translate(VIDEO)[0]), changed(translate(VIDEO, **{key: value})[0])
    before.pop(ours, None)
    assert after == {**before, **({} if expected is None else {ours: expected})}


def test_every_key_is_tested_or_idle():
    tested = {*VIDEO, *TEXT_TO_VIDEO, "predict_xstart", "sigma_small", "use_image_num"}
    idle = {key for keys in official.NO_EFFECT.values() for key in keys}
    assert {*official.TAKEN, *official.TAKEN_BY_VIDEO, *official.TAKEN_BY_TEXT_TO_VIDEO} <= tested
    assert {*VIDEO, *TEXT_TO_VIDEO} <= {*official.KNOWN}
    assert not idle & {*official.TAKEN}


@pytest.mark.parametrize(("on", "blocks", "expected"), [(True, 14, 14), (True, None, 999), (False, 14, 0)])
def test_checkpointed_blocks(translate, on, blocks, expected):
    config, _ = translate(TEXT_TO_VIDEO, gradient_checkpointing=on, n_checkpointing_blocks=blocks)
    assert config.checkpoint_blocks == expected


def test_quoted_no_is_fp32(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text('mixed_precision: "no"\nlocal_batch_size: 4\n')
    assert official.translate(load_yaml(path), path)[0]["precision"] == "fp32"


@pytest.mark.parametrize("family", ["FrameDiTH", "FrameDiTHIMG"])
def test_misnamed_model(translate, family):
    config, lines = translate(VIDEO, model=f"{family}-XL/128-512/2")
    assert config.model.name == f"{family}-XL/128-512/2-concat"
    assert lines[0] == f"model: {family}-XL/128-512/2 means {family}-XL/128-512/2-concat"


def test_warmup_of_video_has_no_effect(translate):
    config, lines = translate(VIDEO, lr_warmup_steps=100)
    assert config.warmup == 0
    assert "attention_bias, lr_warmup_steps: without effect in the official training, too" in lines


@pytest.mark.parametrize("values", [VIDEO, TEXT_TO_VIDEO])
def test_data(translate, values):
    with pytest.raises(UsageError, match="data is missing: --data"):
        translate(values, data=None)
    assert translate(values, data=None, data_path="videos")[0].data.name == "videos"
    assert translate(values, data_path="videos")[0].data.name == "clips"
    config, lines = translate(values, data="moving_digits")
    assert config.data.flat() == {"name": "moving_digits"}
    assert "frame_interval: the data set moving_digits has none" in lines


def test_lines_of_what_needs_attention(translate):
    _, lines = translate(VIDEO, extras=2, pretrained="a.pt", attention_mode="flash", project="films")
    assert "extras: 2 needs classes: --data.classes true, where they are the sub-folders of --data" in lines
    assert "pretrained: training starts at step 0 from its weights (the averaged, if it has them)" in lines
    assert "attention_mode: frameattn chooses the kernels" in lines
    assert "results_dir, project: --out holds all the files of a run and resumes it" in lines
    assert not any("extras" in line for line in translate(VIDEO, data="moving_digits", extras=2)[1])


def test_batch_of_each_process(tmp_path):
    values = {"local_batch_size": 2}
    ours, notes = official.translate(values, tmp_path / "official.yaml", "moving_digits", processes=3)
    assert ours["batch"] == 6 and "local_batch_size: batch is 6, of 3 processes together" in notes


def test_unknown_keys(translate):
    values = {key: value for key, value in VIDEO.items() if key != "local_batch_size"}
    config, lines = translate(values, local_bach_size=7, schedule="cosine", colour="red", empty=None)
    assert (config.batch, config.schedule) == (4, "constant")
    assert lines[-1] == (
        "unknown, without effect: colour, local_bach_size (did you mean local_batch_size?), "
        "schedule (give it as --schedule)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(local_batch_size="four"), "local_batch_size must be a whole number, got 'four'"),
        (dict(max_train_steps=1.5), "max_train_steps must be a whole number, got 1.5"),
        (dict(learning_rate="fast"), "learning_rate must be a number, got 'fast'"),
        (dict(use_compile=1), "use_compile must be true or false, got 1"),
        (dict(num_frames="many"), "num_frames must be a whole number, got 'many'"),
        (dict(extras=True), "extras must be a whole number, got True"),
        (dict(frame_interval=[3]), r"frame_interval must be a whole number, got \[3\]"),
        (dict(data_path=["a", "b"]), r"data_path must be text, got \['a', 'b'\]"),
        (dict(learn_sigma="maybe"), "learn_sigma must be true or false, got 'maybe'"),
        (dict(num_sampling_steps="all"), "num_sampling_steps must be a whole number, got 'all'"),
        (dict(mixed_precision="fp16"), "mixed_precision must be bf16 or no, got 'fp16'"),
        (dict(gradient_checkpointing=14), "gradient_checkpointing must be true or false, got 14"),
        (dict(n_checkpointing_blocks="all"), "n_checkpointing_blocks must be a whole number, got 'all'"),
        (dict(use_lora=True, lora={"r": "big"}), "lora.r must be a whole number, got 'big'"),
        (dict(use_lora="sometimes"), "use_lora must be true or false, got 'sometimes'"),
    ],
)
def test_wrong_values_name_file_and_official_key(translate, changes, message):
    with pytest.raises(UsageError, match=rf"^config .*x\.yaml: {message}$"):
        translate(VIDEO, **changes)


def test_wrong_values_of_text_to_video(translate):
    for changes, message in (
        (dict(image_size=500), "image_size must be a multiple of 8, got 500"),
        (dict(image_size=[512, 512]), r"image_size must be a whole number, got \[512, 512\]"),
        (dict(num_frames=8), "num_frames must be video_length, got 8"),
    ):
        with pytest.raises(UsageError, match=rf"x\.yaml: {message}$"):
            translate(TEXT_TO_VIDEO, **changes)
    assert translate(TEXT_TO_VIDEO, num_frames=8, video_length=None)[0].model.arguments["video_length"] == 8


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"local_batch_size": 4}, True),
        ({"learning_rate": 1e-3, "model": {"name": "x"}}, False),  # keys of both
        ({"batch": 2, "steps": 5, "global_seed": 1}, False),  # ours with a mistake, which is an error
        ({"data": {"name": "x"}, "local_batch_size": 4, "max_train_steps": 9}, False),
        ({}, False),
    ],
)
def test_is_official(values, expected):
    assert official.is_official(values) == expected


def test_trains(tmp_path, capsys):
    """The command takes the file; options of ours go over its values."""
    path = tmp_path / "official.yaml"
    path.write_text(yaml.safe_dump({**VIDEO, "max_train_steps": 1000, "local_batch_size": 2, "num_frames": 3}))
    tiny = dict(hidden_size=16, depth=2, num_row_heads=2, num_col_heads=2, qk_col_dim=4, v_col_dim=4, patch_size=8)
    options = [f"--model.{key}={value}" for key, value in tiny.items()]
    options += ["--steps=1", "--workers=0", "--compile=false", "--device=cpu", "--sampling.steps=3"]
    options += ["--data", "moving_digits"]
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run"), *options]) == 0
    printed = capsys.readouterr().out
    assert f"config {path} is an official one:\n  frame_interval: the data set moving_digits has none\n" in printed

    config = read_config(tmp_path / "run" / "config.yaml")
    assert (config.steps, config.batch, config.accumulation, config.sampling.steps) == (1, 2, 4, 3)
    assert (config.precision, config.workers, config.compile) == ("bf16", 0, False)
    arguments = config.model.arguments
    assert (arguments["num_frames"], arguments["in_channels"], arguments["input_size"]) == (3, 1, 16)
    assert Path(tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_own_files_print_nothing(tiny_config, tmp_path, capsys):
    options = ["--config", str(tiny_config), "--out", str(tmp_path), "--device", "cpu", "--stages", "null"]
    assert main(["train", *options, "--steps", "1", "--model.num_frames", "2"]) == 0
    assert "official" not in capsys.readouterr().out
