"""A FrameDiTHT2V from a Latte: trained on encoded clips, stopped and resumed, sampled by Latte's pipeline."""

import csv
import os
import shutil

import pytest
import torch

from frameattn.cli.main import main
from frameattn.data import EncodedClip, save_latents

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_latte

MODEL = "FrameDiTHT2V-XL/256-2-1-2-concat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``latte``, a pipeline, and ``clips.safetensors``: patterns that move by a column a frame."""
    folder = tmp_path_factory.mktemp("text")
    tiny_latte.save_pipeline(folder / "latte")
    generator = torch.Generator().manual_seed(0)
    clips = {}
    for i in range(6):
        pattern = torch.randn(tiny_latte.CHANNELS, tiny_latte.SIZE, tiny_latte.SIZE, generator=generator)
        latents = torch.stack([2 * pattern.roll(t, dims=-1) for t in range(5)])
        tokens = 2 + i % 3
        text = torch.randn(tokens, tiny_latte.TEXT_CHANNELS, generator=generator)
        clips[f"clip{i}"] = EncodedClip(latents, text, torch.ones(tokens))
    save_latents(folder / "clips.safetensors", clips, scaling_factor=0.18215)
    return folder


def train(folder, out, *options, latte="latte") -> int:
    latte = ["--latte", folder / latte] if latte else []
    options = [
        *("--model", MODEL, "--data", folder / "clips.safetensors", "--out", out, "--device", "cpu", *latte),
        *("--steps", 12, "--batch", 4, "--learning_rate", 0.02, "--clip_norm", "null", "--ema_decay", 0.5),
        *("--stratified_timesteps", "true", "--log_every", 1, *options),
    ]
    return main(["train", *map(str, options)])


def read_state(folder) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def trained(folder):
    assert train(folder, folder / "run") == 0
    return folder / "run"


def test_the_loss_falls(trained):
    rows = list(csv.DictReader((trained / "log.csv").open()))
    losses = [float(row["mse"]) for row in rows]
    assert len(losses) == 12 and sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_latte_stays_and_what_is_added_to_it_moves(folder, trained):
    from frameattn.models import FrameDiTHT2V
    from frameattn.models.latte import is_added_to_latte

    start = FrameDiTHT2V.from_latte(folder / "latte").state_dict()
    state = read_state(trained)
    assert set(state["ema"]) == {name for name in start if is_added_to_latte(name)}
    for name, weight in state["model"].items():
        if not is_added_to_latte(name):
            assert torch.equal(weight, start[name]), name
    # Softmax over frames cancels the bias of linear_k.
    still = {name for name in state["ema"] if torch.equal(state["ema"][name], state["model"][name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in still} <= {"linear_k"}


def test_checkpoint_is_whole_and_says_what_it_is(trained):
    from frameattn.models import FrameDiTHT2V, from_checkpoint, read_metadata

    metadata = read_metadata(trained / "checkpoint.safetensors")
    assert metadata["model"] == MODEL and metadata["step"] == 12
    assert metadata["sampling"] == {"steps": 50, "method": "ddim", "cfg": 7.5}
    model = from_checkpoint(trained / "checkpoint.safetensors")
    assert isinstance(model, FrameDiTHT2V) and model.config.num_col_attn_heads == 8 and model.config.video_length == 3
    state = read_state(trained)
    expected = {**state["model"], **state["ema"]}
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_resumed_run_has_the_same_bits_and_needs_no_latte(folder, trained, tmp_path):
    shutil.copytree(folder / "latte", folder / "moved")
    assert train(folder, tmp_path / "run", "--steps", "5", latte="moved") == 0
    shutil.rmtree(folder / "moved")
    assert main(["train", "--out", str(tmp_path / "run"), "--steps", "12"]) == 0
    assert read_state(tmp_path / "run")["config"]["model"] == read_state(trained)["config"]["model"]
    for part in ("model", "ema"):
        once, twice = read_state(trained)[part], read_state(tmp_path / "run")[part]
        assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


def test_resuming_with_the_options_of_the_first_run(folder, tmp_path, capsys):
    options = ["--model.num_col_attn_heads", "4", "--images", "1"]
    assert train(folder, tmp_path, *options, "--steps", "1") == 0
    assert train(folder, tmp_path, *options, "--steps", "2") == 0
    assert "at step 1 of 2" in capsys.readouterr().out
    assert main(["train", "--out", str(tmp_path), "--model.num_col_attn_heads", "8"]) == 2
    assert "holds a run with another model: num_col_attn_heads 4 there, 8 now" in capsys.readouterr().err


def test_resuming_with_other_weights_or_another_latte(folder, tmp_path, capsys):
    assert train(folder, tmp_path, "--steps", "1", "--sampling.steps", "9") == 0
    assert read_state(tmp_path)["config"]["sampling"] == {"steps": 9, "method": "ddim", "cfg": 7.5}
    capsys.readouterr()
    assert main(["train", "--out", str(tmp_path), "--freeze_latte", "false", "--steps", "2"]) == 2
    assert "trains 44 tensors, not 127: freeze_latte is another one" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path), "--latte", "nowhere", "--steps", "2"]) == 0
    assert read_state(tmp_path)["config"]["latte"] == str(folder / "latte")


def test_frozen_from_a_checkpoint(folder, trained, tmp_path, capsys):
    init = ["--init", str(trained / "checkpoint.safetensors"), "--steps", "1"]
    sizes = ["--model.num_row_attn_heads", "2", "--model.row_attn_head_dim", "12", "--model.num_col_attn_heads", "8"]
    sizes += ["--model.num_layers", "2", "--model.video_length", "3"]
    assert train(folder, tmp_path / "a", *init, *sizes, "--freeze_latte", "true", latte=None) == 0
    assert read_state(tmp_path / "a")["ema"].keys() == read_state(trained)["ema"].keys()
    assert train(folder, tmp_path / "b", *init, *sizes, latte=None) == 0
    assert len(read_state(tmp_path / "b")["ema"]) == 127
    assert train(folder, tmp_path / "c", *sizes, "--freeze_latte", "true", latte=None) == 2
    assert "freeze_latte needs weights that are worth it: --latte or --init" in capsys.readouterr().err


def test_images_come_with_their_texts(folder, tmp_path, monkeypatch):
    from frameattn.models import FrameDiTHT2V

    seen, forward = [], FrameDiTHT2V.forward
    monkeypatch.setattr(
        FrameDiTHT2V, "forward", lambda self, *args, **kw: seen.append((args, kw)) or forward(self, *args, **kw)
    )
    assert train(folder, tmp_path, "--images", "2", "--steps", "1") == 0
    ((x, t), conditions) = seen[0]
    assert x.shape == (4, 4, 3 + 2, 8, 8) and t.shape == (4,) and conditions["use_image_num"] == 2
    assert conditions["encoder_hidden_states"].shape == (4, 3, 4, 6)
    assert conditions["encoder_attention_mask"].shape == (4, 3, 4)


def test_all_weights_without_a_latte(folder, tmp_path):
    sizes = dict(num_row_attn_heads=2, row_attn_head_dim=4, num_col_attn_heads=4, num_layers=1, video_length=2)
    options = [text for key, value in sizes.items() for text in (f"--model.{key}", str(value))]
    assert train(folder, tmp_path, *options, "--steps", "2", latte=None) == 0
    state = read_state(tmp_path)
    assert state["config"]["model"]["col_dim"] == 16 and state["config"]["model"]["cross_attention_dim"] == 8
    assert set(state["ema"]) == set(state["model"])


def test_not_frozen(folder, tmp_path):
    assert train(folder, tmp_path, "--freeze_latte", "false", "--steps", "1") == 0
    assert set(read_state(tmp_path)["ema"]) == set(read_state(tmp_path)["model"])


def test_checkpointed_blocks_and_rare_averages(folder, trained, tmp_path):
    """Blocks that are computed again give the same weights; an average of every third step follows three at a time."""
    assert train(folder, tmp_path, "--checkpoint_blocks", "1", "--ema_every", "3", "--steps", "3") == 0
    assert train(folder, tmp_path / "plain", "--steps", "3") == 0
    rare, plain = read_state(tmp_path), read_state(tmp_path / "plain")
    assert all(torch.equal(rare["model"][name], weight) for name, weight in plain["model"].items())
    start = read_start(folder)
    name = "temporal_transformer_blocks.0.attn1.output_linear.weight"
    decay = min(0.5, (1 + 2) / (10 + 2)) ** 3  # a young average follows faster
    torch.testing.assert_close(rare["ema"][name], torch.lerp(start[name], rare["model"][name], 1 - decay))


def read_start(folder) -> dict:
    """The weights that training starts from: those of seed 0."""
    from frameattn.models import FrameDiTHT2V

    torch.manual_seed(0)
    return FrameDiTHT2V.from_latte(FrameDiTHT2V.load_latte(folder / "latte")).state_dict()


def sample(folder, trained, out, *options) -> int:
    files = ["--ckpt", trained / "checkpoint.safetensors", "--out", out, "--pipe", folder / "latte"]
    return main(["sample", *map(str, files), "--device", "cpu", "--steps", "3", *options])


def test_sampling_by_the_pipeline(folder, trained, tmp_path, capsys):
    assert sample(folder, trained, tmp_path, "--prompt", "a cat runs", "--prompt", "the sea", "--count", "3") == 0
    names = {f"{name}.{suffix}" for name in ("0000", "0001", "0002", "overview") for suffix in ("gif", "mp4")}
    assert set(os.listdir(tmp_path)) == names | {"contact_sheet.png", "prompts.txt"}
    assert (tmp_path / "prompts.txt").read_text() == "0000  a cat runs\n0001  the sea\n0002  a cat runs\n"
    assert "(3 videos of 3 frames, ddim, 3 steps, cfg 7.5, cpu)" in capsys.readouterr().out


def load_checkpoint(trained, method="ddim"):
    from frameattn.cli.sample import load

    checkpoint = load(trained / "checkpoint.safetensors", None, [], torch.device("cpu"))
    checkpoint.sampling.steps, checkpoint.sampling.method, checkpoint.sampling.cfg = 3, method, 2.0
    return checkpoint


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_every_video_is_what_latte_s_pipeline_makes_of_its_text(folder, trained, method):
    from diffusers import LattePipeline

    from frameattn.cli.sample_text import load_pipeline, sample_with_pipeline
    from frameattn.training.draws import seed_of

    checkpoint = load_checkpoint(trained, method)
    pipe = load_pipeline(str(folder / "latte"), checkpoint, "fp32", torch.device("cpu"))
    prompts = ["a cat runs", "the sea", "a cat runs"]
    videos = torch.cat(list(sample_with_pipeline(pipe, prompts, checkpoint.sampling, seed=5)))
    assert videos.shape == (3, 3, 3, 16, 16) and not torch.equal(videos[0], videos[2])  # another noise

    direct = LattePipeline.from_pretrained(folder / "latte", transformer=checkpoint.model)
    direct.scheduler = pipe.scheduler
    for i, prompt in enumerate(prompts):
        frames = direct(
            prompt, num_inference_steps=3, guidance_scale=2.0, video_length=3, height=16, width=16,
            generator=torch.Generator().manual_seed(seed_of(5, i)), output_type="pt",
        ).frames  # fmt: skip
        torch.testing.assert_close(videos[i], frames[0] * 2 - 1, rtol=1e-4, atol=1e-4)


def test_schedulers_are_those_of_the_training(folder, trained):
    from frameattn.cli.sample_text import load_pipeline
    from frameattn.diffusion import GaussianDiffusion

    checkpoint, source, cpu = load_checkpoint(trained, "ddpm"), str(folder / "latte"), torch.device("cpu")
    config = load_pipeline(source, checkpoint, "fp32", cpu).scheduler.config
    assert config.variance_type == "learned_range" and not config.clip_sample and config.beta_schedule == "linear"
    checkpoint.sampling.method, checkpoint.diffusion = "dpm", GaussianDiffusion(predict_xstart=True)
    config = load_pipeline(source, checkpoint, "fp32", cpu).scheduler.config
    assert config.prediction_type == "sample" and (config.beta_start, config.beta_end) == (1e-4, 0.02)


def test_bfloat16_is_near_float32(folder, trained):
    from frameattn.cli.sample_text import load_pipeline, sample_with_pipeline

    videos = []
    for precision in ("fp32", "bf16"):
        checkpoint = load_checkpoint(trained)
        pipe = load_pipeline(str(folder / "latte"), checkpoint, precision, torch.device("cpu"))
        assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
        videos += sample_with_pipeline(pipe, ["a cat"], checkpoint.sampling, seed=0)
    assert not torch.equal(*videos) and (videos[0] - videos[1]).norm() < 0.05 * videos[0].norm()


def test_the_state_of_a_run_samples_too(trained):
    from frameattn.models import from_checkpoint, read_metadata

    metadata = read_metadata(trained / "checkpoint.safetensors")
    model = from_checkpoint(trained / "state.pt", metadata["model"], **metadata["arguments"])
    exported = from_checkpoint(trained / "checkpoint.safetensors").state_dict()
    assert all(torch.equal(weight, exported[name]) for name, weight in model.state_dict().items())


def test_pipelines_of_other_widths(folder, trained, tmp_path, capsys):
    from transformers import T5Config, T5EncoderModel

    source = tiny_latte.save_pipeline(tmp_path / "latte")

    T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=3, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        source / "text_encoder"
    )
    options = ["--ckpt", trained / "checkpoint.safetensors", "--out", tmp_path / "x", "--pipe", source, "--prompt", "a"]
    assert main(["sample", *map(str, options)]) == 2
    assert "its texts have 8 channels, those of the model 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a"], "--pipe is missing: the folder, or the name on the hub, of a LattePipeline, whose text"),
        (["--pipe", "LATTE"], 'the model makes videos of texts: give one or more --prompt "TEXT"'),
        (["--pipe", "LATTE", "--prompt", "a", "--classes", "3"], "use --prompt instead of --classes"),
        (
            ["--pipe", "LATTE", "--prompt", "a", "--cfg", "0.5"],
            "--cfg must be at least 1, which is no guidance, got 0.5",
        ),
        (["--pipe", "nowhere/at/all", "--prompt", "a"], "--pipe nowhere/at/all: "),
        (["--pipe", "LATTE", "--prompt", "a", "--steps", "1"], "--steps must be in 2..1000, got 1"),
    ],
)
def test_usage_errors_of_sampling(folder, trained, tmp_path, fails, options, message):
    options = [str(folder / "latte") if option == "LATTE" else option for option in options]
    out = tmp_path / "out"
    assert message in fails("sample", "--ckpt", trained / "checkpoint.safetensors", "--out", out, *options)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "moving_digits"],
            "takes encoded clips with texts (frameattn encode --text-encoder), but data moving_digits",
        ),
        (
            ["--model", "FrameDiTG-S/64-256/2"],
            "latte is of text to video: model FrameDiTG-S/64-256/2 cannot start from it",
        ),
        (["--model.num_layers", "3"], "model.num_layers is 3, but latte needs 2: leave it out"),
        (["--model.num_layer", "2"], "FrameDiTHT2V has no argument 'num_layer': did you mean 'num_layers'?"),
        (["--model.fuse_mode", "local"], "nothing is left to train: freeze_latte with model.fuse_mode local"),
        (["--model.fuse_mode", "mean"], "fuse_mode must be one of concat, sum, gated, local, global, got 'mean'"),
        (["--diffusion.learn_sigma", "false"], "diffusion.learn_sigma must be true: LattePipeline takes a variance"),
        (["--model.disable_matrix_attention", "true"], "model.disable_matrix_attention is for sampling"),
        (["--latte", "nowhere/at/all"], "latte nowhere/at/all: "),
        (["--model.video_length", "9"], "a clip spans 9 frames, but the longest has 5"),
        (["--stages", "[{steps: 1, batch: 1, frames: 0, images: 1}]"], "needs at least 1 frame beside the images"),
        (["--ema_every", "0"], "ema_every must be at least 1, got 0"),
        (["--checkpoint_blocks", "-1"], "checkpoint_blocks must be at least 0, got -1"),
    ],
)
def test_usage_errors_of_training(folder, tmp_path, capsys, options, message):
    assert train(folder, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_models_of_videos_know_no_texts(trained_digits, tmp_path, fails):
    message = fails("sample", "--ckpt", trained_digits, "--out", tmp_path / "out", "--prompt", "a cat")
    assert "the model knows no texts: leave out --prompt, --pipe and" in message


@pytest.fixture
def trained_digits(tmp_path):
    """A checkpoint of a FrameDiTG with fresh weights."""
    from frameattn.models import create_model, save_checkpoint

    name, sizes = "FrameDiTG-S/64-256/2", dict(depth=2, hidden_size=8, num_row_heads=2, num_col_heads=2, qk_col_dim=2)
    arguments = dict(sizes, v_col_dim=2, input_size=4, num_frames=2, in_channels=1)
    weights = create_model(name, **arguments).state_dict()
    save_checkpoint(weights, tmp_path / "digits.safetensors", name=name, arguments=arguments)
    return tmp_path / "digits.safetensors"


def test_a_lora_of_latte_beside_the_matrix_branch(folder, tmp_path):
    from frameattn.models import from_checkpoint
    from frameattn.models.latte import is_added_to_latte
    from frameattn.models.lora import FILE_NAME, load_lora

    pytest.importorskip("peft")
    assert train(folder, tmp_path, "--lora", "2", "--steps", "2") == 0
    state = read_state(tmp_path)
    lora = {name for name in state["ema"] if ".lora_" in name}
    assert len(lora) == 2 * 2 * (4 + 4 + 4)  # A and B; two layers of three attentions with four projections
    assert all(is_added_to_latte(name) for name in state["ema"].keys() - lora)
    assert any(is_added_to_latte(name) for name in state["ema"].keys() - lora)

    ours, theirs = (from_checkpoint(tmp_path / "checkpoint.safetensors") for _ in range(2))
    load_lora(ours, tmp_path)
    theirs.load_lora_adapter(tmp_path, weight_name=FILE_NAME)  # of diffusers
    latents, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 4, 6)
    with torch.no_grad():
        expected = ours.eval()(latents, torch.tensor([5]), text).sample
        torch.testing.assert_close(theirs.eval()(latents, torch.tensor([5]), text).sample, expected)
        theirs.unload_lora()
        assert not torch.equal(theirs(latents, torch.tensor([5]), text).sample, expected)
