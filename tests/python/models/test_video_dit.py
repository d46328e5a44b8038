"""VideoDiT: shapes, that all tokens see one another, images as clips of one frame, checkpoints, and the swap."""

import pytest
import torch
from torch.nn import functional as F

import frameattn
from frameattn import reference
from frameattn.models import VideoDiT, create_model, from_checkpoint, save_checkpoint
from frameattn.models.video_dit import dense_attention, rotary_angles
from oracle import randn
from tiny import CLASSES, IMAGES, Y_IMAGE, Y, conditions, randomize, steps

CONFIG = dict(
    input_size=6, patch_size=2, in_channels=2, hidden_size=24, depth=3, num_heads=2, num_frames=4, num_classes=5
)
FRAMES = CONFIG["num_frames"]


def create(dtype=torch.float64, **arguments) -> VideoDiT:
    return randomize(VideoDiT(**{**CONFIG, **arguments}).to(dtype)).eval()


def clips(frames: int = FRAMES, count: int = 2, dtype=torch.float64):
    return randn(count, frames, 2, 6, 6, dtype=dtype, seed=11)


@pytest.mark.parametrize("images", [0, IMAGES])
@pytest.mark.parametrize("extras", [1, CLASSES, 78])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_shapes(images, extras, learn_sigma):
    model = create(extras=extras, learn_sigma=learn_sigma)
    out = model(clips(FRAMES + images), steps(), **conditions(extras, images))
    assert out.shape == (2, FRAMES + images, 4 if learn_sigma else 2, 6, 6)


def test_every_pixel_depends_on_every_other_and_every_parameter_matters():
    model, x = create(), clips(count=1).requires_grad_()
    out = model(x, steps(1))
    for frame in range(FRAMES):
        (gradient,) = torch.autograd.grad(out[0, frame, 0, 0, 0], x, retain_graph=True)
        assert (gradient != 0).all()
    gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    assert all((gradient != 0).any() for gradient in gradients)


def test_images_are_clips_of_one_frame():
    model, x = create(extras=CLASSES), clips(FRAMES + IMAGES)
    out = model(x, steps(), y=Y, y_image=Y_IMAGE, use_image_num=IMAGES)
    torch.testing.assert_close(out[:, :FRAMES], model(x[:, :FRAMES], steps(), y=Y))
    model.num_frames = 0
    for i in range(IMAGES):
        alone = model(x[:, FRAMES + i : FRAMES + i + 1], steps(), y_image=Y_IMAGE[:, i : i + 1], use_image_num=1)
        torch.testing.assert_close(out[:, FRAMES + i : FRAMES + i + 1], alone)


def test_fewer_frames_than_it_was_made_for():
    model = create()
    model.num_frames = 2
    assert model(clips(2), steps()).shape == (2, 2, 4, 6, 6)
    model.num_frames = FRAMES + 1
    with pytest.raises(ValueError, match="VideoDiT: num_frames may be set to 4 at most, got 5"):
        model(clips(FRAMES + 1), steps())


def test_dense_attention():
    query, key, value = (randn(2, 3, 10, 8, seed=i) for i in range(3))
    torch.testing.assert_close(dense_attention(query, key, value), F.scaled_dot_product_attention(query, key, value))


def test_logits_depend_on_distances_alone():
    cos, sin = (function(rotary_angles((3, 4, 5), 16)) for function in (torch.cos, torch.sin))
    query, key = randn(16, seed=1), randn(16, seed=2)

    def turned(x):
        return x * cos + torch.cat([-x[8:], x[:8]]) * sin

    logits = (turned(query) @ turned(key).T).view(3, 4, 5, 3, 4, 5)
    assert torch.allclose(logits[0, 1, 2, 1, 3, 4], logits[1, 0, 0, 2, 2, 2])
    for other in (logits[0, 1, 2, 2, 3, 4], logits[0, 1, 2, 1, 2, 4], logits[0, 1, 2, 1, 3, 3]):
        assert not torch.isclose(logits[0, 1, 2, 1, 3, 4], other)  # time, height and width each count


def test_gradient_checkpointing_changes_nothing():
    model, x = create(), clips()
    expected = torch.autograd.grad(model(x, steps()).square().sum(), list(model.parameters()))
    model.gradient_checkpointing = True
    torch.testing.assert_close(
        torch.autograd.grad(model(x, steps()).square().sum(), list(model.parameters())), expected
    )


def test_checkpoint(tmp_path):
    model = create(torch.float32)
    arguments = {**CONFIG, "extras": 1}
    save_checkpoint(model.state_dict(), tmp_path / "model.safetensors", name="VideoDiT-S/2", arguments=arguments)
    loaded = from_checkpoint(tmp_path / "model.safetensors")
    assert type(loaded) is VideoDiT and loaded.config == model.config
    x = clips(dtype=torch.float32)
    assert torch.equal(loaded(x, steps()), model(x, steps()))


@pytest.mark.parametrize("size, depth, dim, heads", [("S", 12, 384, 6), ("XL", 28, 1152, 16)])
def test_names(size, depth, dim, heads):
    with torch.device("meta"):
        model = create_model(f"VideoDiT-{size}/2", num_frames=8)
    expected = dict(depth=depth, hidden_size=dim, num_heads=heads, patch_size=2, num_frames=8)
    assert {key: model.config[key] for key in expected} == expected
    assert len(model.blocks) == depth and model.blocks[0].attn.num_heads == heads


def test_says_what_does_not_fit():
    with pytest.raises(ValueError, match="even number of channels, at least 6: num_heads = 5 of hidden_size = 24"):
        create(num_heads=5)
    with pytest.raises(ValueError, match="VideoDiT: patch_size must divide input_size = 6, got 4"):
        create(patch_size=4)
    with pytest.raises(TypeError, match="VideoDiT has no argument 'num_row_heads': did you mean 'num_"):
        create_model("VideoDiT-S/2", num_row_heads=4)


# ---- The swap --------------------------------------------------------------------------------------------------------


def test_swapped_is_the_reference(monkeypatch):
    model, x = create(), clips()
    with frameattn.adapters.apply(model, iterations=3, mass_floor=0.2) as handle:
        swapped = model(x, steps())
    assert handle.counts.vmonarch == handle.counts.calls == 1

    def expected(query, key, value):
        return reference.vmonarch_attention(query, key, value, FRAMES, iterations=3, mass_floor=0.2)

    dense = model(x, steps())
    monkeypatch.setattr("frameattn.models.video_dit.dense_attention", expected)
    torch.testing.assert_close(swapped, model(x, steps()))
    assert not torch.allclose(swapped, dense)


def test_one_frame_and_images_stay_dense():
    model, x = create(extras=CLASSES), clips(1 + IMAGES)
    model.num_frames = 1
    options = dict(y=Y, y_image=Y_IMAGE, use_image_num=IMAGES)
    dense = model(x, steps(), **options)
    with frameattn.adapters.apply(model):
        assert torch.equal(model(x, steps(), **options), dense)


def test_dense_layers_and_dense_steps():
    model, x = create(), clips()
    dense = model(x, steps())
    handle = frameattn.adapters.apply(model, dense_layers=1, dense_steps=2)
    assert handle.swapped == ["blocks.1.attn", "blocks.2.attn"]
    assert list(handle.declined) == ["blocks.0.attn"]
    for timestep, is_dense in ((900, True), (800, True), (700, False)):
        out = model(x, torch.full((2,), timestep))
        assert (handle.counts.vmonarch == 0) == is_dense, out.shape
    handle.remove()
    assert torch.equal(model(x, steps()), dense)


def test_trains_swapped():
    model, x = create().train(), clips()
    with frameattn.adapters.apply(model) as handle:
        gradients = torch.autograd.grad(model(x, steps()).square().sum(), list(model.parameters()))
    assert handle.counts.vmonarch == 1
    assert all(gradient.isfinite().all() and (gradient != 0).any() for gradient in gradients)
