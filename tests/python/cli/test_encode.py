"""``frameattn encode``: what is in the shards, resuming, captions; training and sampling on what it made."""

import json
import os
import shutil
import signal

import pytest
import torch

from frameattn.cli.main import main
from frameattn.data import LatentClips
from frameattn.data.encode import TextEncoder, Vae
from frameattn.data.video_io import read_video, write_mp4

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_latte

SIZE = 2 * tiny_latte.SIZE
NAMES = ("a/cat.mp4", "a/waves.mp4", "b/sea.mp4")
CAPTIONS = {"a/cat.mp4": "a cat", "a/waves.mp4": "the sea runs over", "b/sea.mp4": "the sea"}
MODEL = [
    *(
        "--model",
        "FrameDiTG-S/64-256/2",
        "--model.hidden_size",
        "16",
        "--model.depth",
        "2",
        "--model.num_row_heads",
        "2",
    ),
    *("--model.num_col_heads", "2", "--model.qk_col_dim", "4", "--model.v_col_dim", "4", "--model.num_frames", "3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``latte``, a pipeline, and ``clips`` of two classes, 5 frames of 24x32, each with a .txt beside it."""
    folder = tmp_path_factory.mktemp("encode")
    tiny_latte.save_pipeline(folder / "latte")
    for seed, name in enumerate(NAMES):
        path = folder / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        video = torch.rand(1, 5, 3, 24, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        write_mp4(path, video, 8)
        path.with_suffix(".txt").write_text(CAPTIONS[name] + "\n")
    return folder


def encode(folder, out, *options, data="clips") -> int:
    source = ["--data", folder / data, "--vae", folder / "latte", "--out", out, "--size", SIZE, "--device", "cpu"]
    return main(["encode", *map(str, [*source, *options])])


@pytest.fixture(scope="module")
def classes(folder):
    assert encode(folder, folder / "classes", "--classes") == 0
    return folder / "classes"


@pytest.fixture(scope="module")
def texts(folder):
    assert encode(folder, folder / "texts", "--text-encoder", folder / "latte", "--flip") == 0
    return folder / "texts"


def read_shard(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_shards_have_mean_and_deviation_of_every_frame(folder, classes):
    manifest = json.loads((classes / "manifest.json").read_text())
    vae = Vae(str(folder / "latte"))
    assert manifest["scaling_factor"] == vae.scaling_factor and manifest["vae"]["hash"] == vae.facts["hash"]
    assert manifest["class_names"] == ["a", "b"]
    tensors = read_shard(classes / "00000.safetensors")
    assert {clip["shard"] for clip in manifest["clips"].values()} == {"00000.safetensors"}
    sources = {clip["source"].rpartition("clips/")[2]: name for name, clip in manifest["clips"].items()}
    assert sorted(sources) == list(NAMES)
    for source, name in sources.items():
        distribution = vae.model.encode(read_video(folder / "clips" / source, size=SIZE)).latent_dist
        torch.testing.assert_close(tensors[f"{name}.latents"].float(), distribution.mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(tensors[f"{name}.std"].float(), distribution.std, rtol=1e-3, atol=1e-3)
        assert tensors[f"{name}.label"] == (source[0] == "b")


def test_texts_are_those_of_the_encoder_and_flipped_clips_keep_them(folder, texts):
    manifest = json.loads((texts / "manifest.json").read_text())
    tensors, embed = read_shard(texts / "00000.safetensors"), TextEncoder(str(folder / "latte"))
    assert len(manifest["clips"]) == 6
    for name, clip in manifest["clips"].items():
        caption = CAPTIONS[clip["source"].rpartition("clips/")[2]]
        assert clip["caption"] == caption
        text, mask = embed(caption)
        assert torch.equal(tensors[f"{name}.text"], text) and torch.equal(tensors[f"{name}.mask"], mask)
        assert len(text) == len(caption.split()) + 1  # a word a token, and the end
    name = next(name for name in manifest["clips"] if name.endswith("_flip"))
    source = manifest["clips"][name]["source"]
    mean, _ = Vae(str(folder / "latte")).encode(read_video(source, size=SIZE).flip(-1))
    torch.testing.assert_close(tensors[f"{name}.latents"], mean)


def test_t5_gives_what_latte_s_pipeline_gives(folder):
    pipe = tiny_latte.pipeline(tiny_latte.latte())
    expected, _ = pipe.encode_prompt("a cat runs over", do_classifier_free_guidance=False)
    text, _ = TextEncoder(str(folder / "latte"))("a cat runs over")
    torch.testing.assert_close(text.float(), expected[0], rtol=1e-3, atol=1e-3)


def test_draws_are_scaled_samples_around_the_means(classes):
    data = LatentClips(classes)
    assert (data.num_classes, data.class_names, data.text_channels) == (2, ["a", "b"], 0)
    latents, labels = data.draw(200, 5, torch.Generator().manual_seed(0))
    tensors = read_shard(classes / "00000.safetensors")
    (name,) = (key.rpartition(".")[0] for key, label in tensors.items() if key.endswith(".label") and label == 1)
    drawn = latents[labels == 1] / data.facts["scaling_factor"]
    assert 30 < len(drawn) < 110
    mean, std = tensors[f"{name}.latents"].float(), tensors[f"{name}.std"].float()
    z = (drawn - mean) / std
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


def shards(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_stopped_and_started_again_it_encodes_what_is_missing(folder, tmp_path, monkeypatch, capsys):
    from frameattn.data import encode as module

    monkeypatch.setattr(module, "SHARD_BYTES", 1)  # a clip a shard
    calls, original = [], Vae.encode

    def stops_at_the_second(self, frames):
        calls.append(len(frames))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, frames)

    monkeypatch.setattr(Vae, "encode", stops_at_the_second)
    assert encode(folder, tmp_path) == 130
    assert "stopped: 2 clips of 3 are encoded" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "manifest.json").read_text())["clips"]) == 2
    assert encode(folder, tmp_path) == 0
    assert len(calls) == 3 and shards(tmp_path) == [f"0000{i}.safetensors" for i in range(3)]
    assert encode(folder, tmp_path) == 0 and len(calls) == 3
    (tmp_path / "00001.safetensors").unlink()
    assert encode(folder, tmp_path) == 0 and len(calls) == 4
    assert shards(tmp_path) == ["00000.safetensors", "00002.safetensors", "00003.safetensors"]
    assert len(LatentClips(tmp_path).places) == 3


def test_an_open_shard_is_written_when_an_error_ends_it(folder, tmp_path, monkeypatch):
    calls, original = [], Vae.encode

    def fails_at_the_third(self, frames):
        calls.append(len(frames))
        if len(calls) == 3:
            raise MemoryError
        return original(self, frames)

    monkeypatch.setattr(Vae, "encode", fails_at_the_third)
    with pytest.raises(MemoryError):
        encode(folder, tmp_path)
    assert len(LatentClips(tmp_path).places) == 2


def test_what_is_not_finite_is_no_clip(folder, tmp_path, monkeypatch, capsys):
    original = Vae.__init__

    def huge(self, *arguments, **options):
        original(self, *arguments, **options)
        for parameter in self.model.quant_conv.parameters():
            parameter.data *= 1e30

    monkeypatch.setattr(Vae, "__init__", huge)
    assert encode(folder, tmp_path) == 2
    assert "what the model computes in float32 is not finite: use another --dtype" in capsys.readouterr().err
    assert not shards(tmp_path)


def test_a_vae_is_told_by_its_configuration(folder, tmp_path):
    shutil.copytree(folder / "latte" / "vae", tmp_path / "vae")
    assert encode(folder, tmp_path / "out") == 0
    assert encode(folder, tmp_path / "out", "--vae", tmp_path / "vae") == 0


def test_frames_a_second(folder, tmp_path):
    """Files of 8 frames a second: every other frame at 4, every third by --frame-interval 3; the rate is kept."""
    assert encode(folder, tmp_path / "fps", "--fps", "4") == 0
    assert encode(folder, tmp_path / "interval", "--frame-interval", "3") == 0
    vae, name = Vae(str(folder / "latte")), json.loads((tmp_path / "fps" / "manifest.json").read_text())["clips"]
    for out, taken, rate in (("fps", [0, 2, 4], 4), ("interval", [0, 3], 8 / 3)):
        tensors = read_shard(tmp_path / out / "00000.safetensors")
        for clip, facts in name.items():
            mean, _ = vae.encode(read_video(facts["source"], taken, SIZE))
            torch.testing.assert_close(tensors[f"{clip}.latents"], mean)
        assert LatentClips(tmp_path / out).frame_rate == pytest.approx(rate)
        assert LatentClips(tmp_path / out, frame_interval=2).frame_rate == pytest.approx(rate / 2)


def test_captions_of_a_table(folder, tmp_path, capsys):
    table = tmp_path / "captions.csv"
    table.write_text("video,prompt\ncat.mp4,the sea\na/waves.mp4,a cat\nb/sea.mp4,a\n")
    options = ["--text-encoder", folder / "latte", "--captions", table]
    assert encode(folder, tmp_path / "out", *options) == 0
    clips = json.loads((tmp_path / "out" / "manifest.json").read_text())["clips"].values()
    assert {clip["source"].rpartition("/")[2]: clip["caption"] for clip in clips} == {
        "cat.mp4": "the sea", "waves.mp4": "a cat", "sea.mp4": "a",
    }  # fmt: skip
    assert encode(folder, tmp_path / "out", "--text-encoder", folder / "latte") == 2
    assert "a/cat.mp4 with the caption 'the sea', not 'a cat'" in capsys.readouterr().err

    table.write_text("\ufefffile,caption\ncat.mp4,the sea\nwaves.mp4,a cat\nsea.mp4,a\n", encoding="utf-8")
    assert encode(folder, tmp_path / "out", *options) == 0  # as a spreadsheet writes it
    table.write_text("file,caption\ncat.mp4,the sea\ncat.mp4,a cat\n")
    assert encode(folder, tmp_path / "out", *options) == 2
    assert "captions.csv has two captions of cat.mp4: leave one" in capsys.readouterr().err
    table.write_bytes(b"file,caption\ncat.mp4,\xff\n")
    assert encode(folder, tmp_path / "out", *options) == 2
    assert "captions.csv is not UTF-8" in capsys.readouterr().err


def usage_error(capsys, folder, out, *options, **where) -> str:
    assert encode(folder, out, *options, **where) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_usage_errors(folder, classes, tmp_path, capsys):
    shutil.copytree(folder / "clips", folder / "silent")
    (folder / "silent" / "a" / "waves.txt").unlink()
    latte, out = folder / "latte", tmp_path / "out"
    (tmp_path / "bad.csv").write_text("file,words\nx,y\n")

    def message(*options, **where):
        return usage_error(capsys, folder, out, *options, **where)

    said = message("--text-encoder", latte, data="silent")
    assert "1 of 3 videos have no caption, the first" in said and "waves.mp4: no .txt beside it" in said
    said = message("--text-encoder", latte, "--captions", tmp_path / "bad.csv")
    assert "bad.csv needs a column for the caption of a video: caption, text, prompt" in said
    assert "--captions needs --text-encoder DIR" in message("--captions", tmp_path / "bad.csv")
    assert "--vae" in message("--vae", tmp_path / "nothing") and not out.exists()
    assert "unknown option --sise" in message("--sise", "3")
    said = usage_error(capsys, folder, classes)  # without --classes
    assert "holds clips with another class_names: ['a', 'b'], not []" in said


def test_from_clips_to_a_video_with_classes(folder, classes, tmp_path, capsys):
    run = tmp_path / "run"
    train = [
        "train",
        "--data",
        str(classes),
        "--out",
        str(run),
        "--steps",
        "2",
        "--batch",
        "2",
        "--device",
        "cpu",
        *MODEL,
    ]
    assert main(train) == 0
    sample = ["sample", "--ckpt", str(run / "checkpoint.safetensors"), "--steps", "2", "--device", "cpu"]
    assert main([*sample, "--vae", str(folder / "latte"), "--out", str(tmp_path / "videos"), "--classes", "1"]) == 0
    assert read_video(tmp_path / "videos" / "0000_class_1.mp4").shape[:2] == (3, 3)
    assert main([*sample, "--out", str(tmp_path / "latents"), "--classes", "1"]) == 0
    from safetensors.torch import load_file

    latents = load_file(tmp_path / "latents" / "latents.safetensors")["latents"]
    pixels = Vae(str(folder / "latte")).decode(latents)
    assert pixels.shape == (1, 3, 3, SIZE, SIZE) and pixels.abs().max() <= 1
    capsys.readouterr()

    # Another VAE, or other latents: errors, not noise.
    other = tiny_latte.pipeline(tiny_latte.latte())
    other.vae.register_to_config(scaling_factor=0.5)
    other.vae.save_pretrained(tmp_path / "other")
    assert main([*sample, "--vae", str(tmp_path / "other"), "--out", str(tmp_path / "x"), "--classes", "1"]) == 2
    assert "the model was trained on latents of scaling_factor 0.18215, these are of 0.5" in capsys.readouterr().err
    assert encode(folder, tmp_path / "again", "--classes", "--vae", tmp_path / "other") == 0
    shutil.rmtree(folder / "kept", ignore_errors=True)
    shutil.move(classes, folder / "kept")
    shutil.move(tmp_path / "again", classes)
    try:
        assert main([*train[:5], "--steps", "3"]) == 2
    finally:
        shutil.rmtree(classes)
        shutil.move(folder / "kept", classes)
    assert "was trained on latents of scaling_factor 0.18215, these are of 0.5" in capsys.readouterr().err
    init = ["--init", str(run / "checkpoint.safetensors")]
    assert main([*train[:4], str(tmp_path / "tuned"), *train[5:], *init]) == 0


def test_text_to_video_of_encoded_captions(folder, texts, tmp_path):
    model = ["--model", "FrameDiTHT2V-XL/256-2-1-2-concat", "--latte", str(folder / "latte")]
    run = ["--data", str(texts), "--out", str(tmp_path), "--steps", "1", "--batch", "2", "--device", "cpu"]
    assert main(["train", *model, *run]) == 0


@pytest.fixture(scope="module")
def clip_encoder(tmp_path_factory):
    """A CLIP of six words whose embeddings are as wide as those that FrameDiT takes."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {
        word: i for i, word in enumerate([*(f"{w}</w>" for w in tiny_latte.WORDS), "<|startoftext|>", "<|endoftext|>"])
    }
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=768, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=6, eos_token_id=7, pad_token_id=7,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def test_clip_texts_train_a_framedit(folder, clip_encoder, tmp_path, capsys):
    out, run = tmp_path / "clip", tmp_path / "run"
    assert encode(folder, out, "--text-encoder", clip_encoder) == 0
    data = LatentClips(out)
    assert (data.text_tokens, data.text_channels) == (77, 768)
    assert (
        main(
            ["train", "--data", str(out), "--out", str(run), "--steps", "1", "--batch", "2", "--device", "cpu", *MODEL]
        )
        == 0
    )
    sample = ["sample", "--ckpt", str(run / "checkpoint.safetensors"), "--steps", "2", "--out", str(tmp_path / "s")]
    sample += ["--vae", str(folder / "latte"), "--device", "cpu"]
    assert main([*sample, "--prompt", "a cat", "--text-encoder", str(clip_encoder)]) == 0
    capsys.readouterr()
    assert main([*sample, "--prompt", "a cat", "--text-encoder", str(clip_encoder), "--cfg", "2"]) == 2
    assert "the model knows no missing text: leave out --cfg" in capsys.readouterr().err
    assert main([*sample, "--prompt", "a cat"]) == 2
    assert "--text-encoder is missing: the folder, or the name on the hub, of the CLIP" in capsys.readouterr().err
    assert main([*sample, "--prompt", "a cat", "--text-encoder", str(folder / "latte")]) == 2
    assert "the model takes the texts of a CLIP, this is a T5" in capsys.readouterr().err


def test_models_that_want_what_the_clips_have_not(classes, texts, tmp_path, fails):
    said = fails("train", "--data", classes, "--out", tmp_path / "x", *MODEL, "--model.extras", "78")
    assert "model.extras 78 needs encoded clips with CLIP's texts of 77 x 768" in said and "has no texts" in said
    said = fails("train", "--data", texts, "--out", tmp_path / "x", *MODEL)
    assert "has texts of 5 x 6: set model.extras to 1 (no condition), 2 (classes) or 78" in said
    said = fails("train", "--data", texts, "--out", tmp_path / "x", *MODEL, "--model.extras", "2")
    assert "model.extras 2 needs classes" in said
    said = fails("train", "--data", classes, "--out", tmp_path / "x", "--model", "FrameDiTHT2V-XL/256-2-1-2-concat")
    assert "takes encoded clips with texts (frameattn encode --text-encoder)" in said
