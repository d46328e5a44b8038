"""FrameDiTHT2V in diffusers' LattePipeline: schedulers, calls, offload, compilers, dtypes, files.

With the matrix branch disabled the frames are those of Latte in its place.
"""

import copy

import pytest
import torch

import tiny_latte
from frameattn import models
from tiny_latte import call

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SCHEDULERS = [scheduler.name for scheduler in diffusers.schedulers.KarrasDiffusionSchedulers]
NEEDS = {"LMSDiscreteScheduler": "scipy", "DPMSolverSDEScheduler": "torchsde"}
SEED = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 0}}  # takes no generator for its noise
LEARNED = {"variance_type": "learned_range"}  # takes the variance that the model predicts
FLOAT32 = 5e-6


def ours(latte, *, disabled: bool = True, **options):
    model = models.FrameDiTHT2V.from_latte(latte, **options).eval()
    model.disable_matrix_attention = disabled
    return model


def silent(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def latte():
    return tiny_latte.latte()


@pytest.fixture(scope="module")
def theirs(latte):
    """The pipeline of Latte. Tests leave it as it is, but for its scheduler."""
    return silent(tiny_latte.pipeline(latte))


@pytest.fixture(scope="module")
def expected(theirs):
    return call(theirs)


@pytest.fixture
def pipe(latte):
    """With our model in it, and a scheduler, text encoder and VAE of its own."""
    return silent(tiny_latte.pipeline(ours(latte)))


def assert_close(frames, expected, tolerance=FLOAT32):
    assert frames.shape == expected.shape and frames.isfinite().all()
    assert (frames.double() - expected.double()).abs().max() <= tolerance


# ---- Schedulers and calls --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(latte, theirs):
    """Pipelines that differ in the transformer: Latte, ours without its matrix branch, ours."""
    return [theirs, *(silent(tiny_latte.pipeline(ours(latte, disabled=disabled))) for disabled in (True, False))]


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # what numpy says of how they use it
@pytest.mark.parametrize(
    "name, options", [*((name, SEED.get(name, {})) for name in SCHEDULERS), ("DDPMScheduler", LEARNED)], ids=str
)
def test_schedulers(three, name, options):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    kind, first = getattr(diffusers, name), three[0].scheduler
    frames = []
    for pipe in three:
        pipe.scheduler = kind.from_config(first.config, **options)
        try:
            frames.append(call(pipe))
        finally:
            pipe.scheduler = first
    expected, without, with_matrices = frames
    assert_close(without, expected)
    assert (with_matrices - expected).abs().max() > 100 * FLOAT32


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(prompt=["the sea", "a cat runs over the sea"]),
        dict(prompt=["the sea", "a cat runs over the sea"], guidance_scale=1.0, negative_prompt="cat"),
        dict(num_images_per_prompt=2, negative_prompt="a cat", mask_feature=False),
        dict(enable_temporal_attentions=False),
        dict(eta=1.0, decode_chunk_size=2),
    ],
    ids=str,
)
def test_calls(three, options):
    expected, without, with_matrices = (call(pipe, **options) for pipe in three)
    texts = len(options["prompt"]) if "prompt" in options else options.get("num_images_per_prompt", 1)
    assert expected.shape == (texts, 3, 3, 16, 16)
    assert_close(without, expected)
    temporal = options.get("enable_temporal_attentions", True)
    assert ((with_matrices - expected).abs().max() > 100 * FLOAT32) == temporal


def test_one_frame_and_other_sizes(three):
    """Ours without matrices takes what Latte takes; with them frames of so many tokens only."""
    for options in (dict(video_length=1), dict(height=24, width=8)):
        frames = []
        for pipe in three[:2]:
            size = dict(video_length=3, height=16, width=16) | options
            frames.append(
                pipe(
                    "a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent",
                    clean_caption=False, **size,
                ).frames
            )  # fmt: skip
        assert_close(frames[1], frames[0], FLOAT32 * frames[0].abs().max())
    with pytest.raises(ValueError, match="Matrix Attention is made for 16 tokens in a frame, got 12 of hidden_states"):
        three[2]("a cat", num_inference_steps=1, video_length=3, height=24, width=8, clean_caption=False)


# ---- Offload ---------------------------------------------------------------------------------------------------------


def test_model_cpu_offload(pipe, expected):
    pytest.importorskip("accelerate")
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert_close(call(pipe), expected)


def test_sequential_cpu_offload(pipe, expected):
    """What enable_sequential_cpu_offload does to each model, which itself fails where the accelerator is a CPU."""
    accelerate = pytest.importorskip("accelerate")
    for module in (pipe.text_encoder, pipe.transformer, pipe.vae):
        accelerate.cpu_offload(module, execution_device="cpu", offload_buffers=len(module._parameters) > 0)
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())
    assert_close(call(pipe), expected)


@pytest.mark.parametrize(
    "level", [dict(offload_type="block_level", num_blocks_per_group=1), dict(offload_type="leaf_level")]
)
def test_group_offload(pipe, expected, level):
    if not hasattr(pipe.transformer, "enable_group_offload"):
        pytest.skip(f"diffusers {diffusers.__version__} offloads no groups")
    device = torch.device("cpu")
    try:
        pipe.transformer.enable_group_offload(device, device, **level)
    except AttributeError:  # of a device that is None
        pytest.skip(f"diffusers {diffusers.__version__} offloads no groups where there is no accelerator")
    assert_close(call(pipe), expected)


# ---- Compilers, dtypes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "repeated blocks"])
def test_compile(how):
    latte = tiny_latte.latte(num_layers=1)
    expected = call(silent(tiny_latte.pipeline(latte)))
    pipe = silent(tiny_latte.pipeline(ours(latte)))
    torch.compiler.reset()
    if how == "whole":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
    elif hasattr(pipe.transformer, "compile_repeated_blocks"):
        pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    else:
        pytest.skip(f"diffusers {diffusers.__version__} compiles no repeated blocks")
    assert_close(call(pipe), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(latte, theirs, pipe, expected, dtype):
    """As far from the float32 frames as Latte is."""
    pipe = pipe.to(dtype)
    assert pipe.transformer.dtype == dtype
    other = silent(tiny_latte.pipeline(copy.deepcopy(latte))).to(dtype)
    error = (call(other).float() - expected).abs().max()
    assert 0 < error < 0.1
    assert_close(call(pipe).float(), expected, 2 * error)


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_a_pipeline_that_holds_ours(tmp_path, latte):
    pipe = silent(tiny_latte.pipeline(ours(latte, disabled=False, fuse_mode="sum")))
    frames = call(pipe)
    pipe.save_pretrained(tmp_path)
    for kind in (diffusers.LattePipeline, diffusers.DiffusionPipeline):
        loaded = silent(kind.from_pretrained(tmp_path))
        assert type(loaded) is diffusers.LattePipeline and type(loaded.transformer) is models.FrameDiTHT2V
        assert loaded.transformer.config.fuse_mode == "sum"
        assert torch.equal(call(loaded), frames)
    transformer = models.FrameDiTHT2V.from_pretrained(tmp_path, subfolder="transformer")
    assert torch.equal(transformer.proj_out.weight, pipe.transformer.proj_out.weight)


def test_the_pipeline_of_a_latte_with_ours(tmp_path, expected):
    tiny_latte.save_pipeline(tmp_path)
    transformer = ours(tmp_path)
    pipe = silent(diffusers.LattePipeline.from_pretrained(tmp_path, transformer=transformer))
    assert pipe.transformer is transformer
    assert_close(call(pipe), expected)
