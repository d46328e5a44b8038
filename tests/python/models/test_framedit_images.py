"""Images beside a video, or alone: they pass the spatial blocks only, with labels of their own."""

import math

import pytest
import torch

from frameattn.models import FrameDiTH
from tiny import CLASSES, FRAMES, IMAGES, KINDS, TEXT, Y_IMAGE, D, conditions, create, steps, text, videos


def spatial_blocks_alone(model, frame, condition, final_condition):
    """One frame [C, H, W] through the model without its temporal blocks, patch by patch and formula by formula."""
    p, side = model.config["patch_size"], model.config["input_size"] // model.config["patch_size"]

    def normalized(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def modulation(layer, condition, parts):
        silu = condition / (1 + torch.exp(-condition))
        return (layer.adaLN_modulation[1].weight @ silu + layer.adaLN_modulation[1].bias).chunk(parts)

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    patches = [frame[:, p * row : p * (row + 1), p * col : p * (col + 1)] for row in range(side) for col in range(side)]
    proj = model.x_embedder.proj
    x = torch.stack([torch.einsum("dcij,cij->d", proj.weight, patch) + proj.bias for patch in patches])
    x = x + model.pos_embed[0]
    for block in model.blocks[::2]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation(block, condition, 6)
        query, key, value = linear(block.attn.qkv, normalized(x) * (1 + scale) + shift).chunk(3, -1)
        heads = []
        for q, k, v in zip(*(y.chunk(block.attn.num_heads, -1) for y in (query, key, value)), strict=True):
            heads.append(torch.softmax(q @ k.T / math.sqrt(q.size(-1)), -1) @ v)
        x = x + gate * linear(block.attn.proj, torch.cat(heads, -1))
        hidden = linear(block.mlp.fc1, normalized(x) * (1 + scale_mlp) + shift_mlp)
        hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + gate_mlp * linear(block.mlp.fc2, hidden)
    shift, scale = modulation(model.final_layer, final_condition, 2)
    x = linear(model.final_layer.linear, normalized(x) * (1 + scale) + shift)
    out = frame.new_empty(model.out_channels, *frame.shape[1:])
    for token, values in enumerate(x):
        row, col = divmod(token, side)
        out[:, p * row : p * (row + 1), p * col : p * (col + 1)] = values.view(p, p, -1).permute(2, 0, 1)
    return out


@pytest.mark.parametrize("video_frames", [FRAMES, 1, 0])
@pytest.mark.parametrize("extras", [1, CLASSES, TEXT])
@pytest.mark.parametrize("kind", KINDS)
def test_images_beside_a_video(kind, extras, video_frames):
    model = create(kind, extras=extras)
    model.num_frames = video_frames
    x, t, options = videos(2, video_frames + IMAGES), steps(), conditions(extras, IMAGES)
    if video_frames == 0:
        options.pop("y", None)  # only images have labels then
    out = model(x, t, **options)
    assert out.shape == (2, video_frames + IMAGES, 8, 4, 4)
    if video_frames:
        alone = model(x[:, :video_frames], t, **conditions(extras))
        torch.testing.assert_close(out[:, :video_frames], alone, rtol=1e-11, atol=1e-11)
    step = model.t_embedder(t)
    for clip in range(2):
        for image in range(IMAGES):
            condition = final = step[clip]
            if extras == CLASSES:
                condition = final = step[clip] + model.y_embedder.embedding_table.weight[Y_IMAGE[clip, image]]
            elif extras == TEXT:
                silu = torch.nn.functional.silu(text()[clip].flatten())
                condition = step[clip] + model.text_embedding_projection[1](silu)
            expected = spatial_blocks_alone(model, x[clip, video_frames + image], condition, final)
            torch.testing.assert_close(out[clip, video_frames + image], expected, rtol=1e-10, atol=1e-10)


def test_images_and_video_do_not_see_each_other():
    model, options = create(FrameDiTH, extras=CLASSES), conditions(CLASSES, IMAGES)
    x = videos(2, FRAMES + IMAGES)
    before = model(x, steps(), **options)
    x[:, 0] += 1
    changed = (model(x, steps(), **options) - before).abs().amax((0, 2, 3, 4)) > 1e-9
    assert changed.tolist() == [True, True, True, False, False]
    x[:, 0] -= 1
    x[:, -1] += 1
    changed = (model(x, steps(), **options) - before).abs().amax((0, 2, 3, 4)) > 1e-9
    assert changed.tolist() == [False, False, False, False, True]
    x[:, -1] -= 1
    options["y_image"] = torch.tensor([[1, 3], [0, 2]])
    changed = (model(x, steps(), **options) - before).abs().amax((0, 2, 3, 4)) > 1e-9
    assert changed.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("images", [0, IMAGES])
def test_images_skip_the_temporal_blocks_and_conditions_are_modulated_once_a_clip(images):
    model = create(FrameDiTH, extras=CLASSES)
    layers, frames = {}, []
    for name, module in model.named_modules():
        if name.endswith("adaLN_modulation.1"):
            module.register_forward_hook(
                lambda module, inputs, out, name=name: layers.setdefault(name, []).append(tuple(inputs[0].shape))
            )
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, inputs, out: frames.append(inputs[0].size(1)))
    model(videos(2, FRAMES + images), steps(), **conditions(CLASSES, images))
    every, video = [(2, 1 + images, D)], [(2, 1, D)]
    assert layers == {
        "blocks.0.adaLN_modulation.1": every,
        "blocks.1.adaLN_modulation.1": video,
        "blocks.2.adaLN_modulation.1": every,
        "blocks.3.adaLN_modulation.1": video,
        "final_layer.adaLN_modulation.1": every,
    }
    assert frames == [FRAMES + images, FRAMES, FRAMES + images, FRAMES]


@pytest.mark.parametrize("images", [0, IMAGES])
def test_temp_embed_is_added_once_to_the_video_before_the_first_temporal_block(images):
    model, seen = create(FrameDiTH, extras=CLASSES), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out)))
    model(videos(2, FRAMES + images), steps(), **conditions(CLASSES, images))
    (_, first), (second, second_out), (third, third_out), (fourth, _) = seen
    assert torch.equal(second, first[:, :FRAMES] + model.temp_embed[0][None, :, None])
    assert torch.equal(third, torch.cat([second_out, first[:, FRAMES:]], dim=1))
    assert torch.equal(fourth, third_out[:, :FRAMES])
