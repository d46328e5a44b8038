"""FrameDiT-G and -H beside the official figures: sizes, fresh weights, conditions, guidance, images, dtypes, errors."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import tiny
from frameattn.models import FrameDiTG, FrameDiTH, create_model
from frameattn.models.embeddings import LabelEmbedder
from oracle import randn
from tiny import CLASSES, FRAMES, IMAGES, KINDS, NULL, TEXT, Y_IMAGE, D, Y, conditions, create, steps, text, videos


def gradients(model, *arguments, autocast=False, **options):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(*arguments, **options)
    loss = (out.double() * randn(*out.shape, seed=77)).sum()
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


# ---- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, dims, millions",
    [
        ("G", "64-256", (35, 134, 467, 687)),
        ("G", "128-512", (37, 137, 474, 695)),
        ("H", "64-256", (40, 155, 543, 798)),
        ("H", "128-512", (42, 158, 549, 807)),
    ],
)
def test_parameter_counts_of_the_paper(family, dims, millions):
    """Counted with pos_embed and temp_embed, which the official code keeps as parameters."""
    for size, million in zip(("S", "B", "L", "XL"), millions, strict=True):
        name = f"FrameDiT{family}-{size}/{dims}/2{'-concat' if family == 'H' else ''}"
        with torch.device("meta"):
            model = create_model(name, input_size=32, num_frames=16, extras=CLASSES, num_classes=101)
        assert round(sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6) == million
        embeddings = model.pos_embed.numel() + model.temp_embed.numel()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters + embeddings == sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [0, IMAGES])
@pytest.mark.parametrize("extras", [1, CLASSES, TEXT])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_shapes(kind, images, extras, learn_sigma):
    model = create(kind, extras=extras, learn_sigma=learn_sigma, in_channels=3, depth=2)
    x = randn(2, FRAMES + images, 3, 4, 4)
    out = model(x, steps(), **conditions(extras, images))
    assert out.shape == (2, FRAMES + images, 6 if learn_sigma else 3, 4, 4)
    assert model.out_channels == out.size(2)


@pytest.mark.parametrize("patch_size, input_size", [(1, 3), (4, 8), (8, 8)])
def test_patch_sizes(patch_size, input_size):
    model = create(patch_size=patch_size, input_size=input_size, depth=2)
    assert model(randn(1, FRAMES, 4, input_size, input_size), steps(1)).shape == (1, FRAMES, 8, input_size, input_size)


@pytest.mark.parametrize("kind", KINDS)
def test_config_rebuilds_the_model(kind):
    model = kind(**{**tiny.CONFIG, "extras": CLASSES, "u_type": "softmax", "bias_type": "col", "depth": 2})
    again = kind(**model.config)
    assert again.config == model.config and set(tiny.CONFIG) < set(model.config)
    assert ("fuse_mode" in model.config) == (kind is FrameDiTH)
    again.load_state_dict(model.state_dict())
    with torch.device("meta"):
        assert kind(*list(tiny.CONFIG.values())[:3], depth=2).config["in_channels"] == 4  # positional arguments too
        assert kind(depth=2).config["hidden_size"] == 1152


@pytest.mark.parametrize("kind", KINDS)
def test_mlp_ratio_is_of_spatial_blocks(kind):
    """As in the official code, whose temporal blocks are made without it and have 4."""
    model = create(kind, mlp_ratio=1.5)
    hidden = [[block.mlp.fc1.out_features, block.mlp.fc2.in_features] for block in model.blocks]
    assert hidden == [[12, 12], [32, 32]] * 2 and D == 8
    assert model(videos(), steps()).shape == (2, FRAMES, 8, 4, 4)
    assert [block.mlp.fc1.out_features for block in create(kind).blocks] == [32] * 4


# ---- Fresh models ----------------------------------------------------------------------------------------------------


def assert_uniform(tensor, bound, what):
    assert tensor.abs().max() <= bound, what
    assert tensor.abs().max() > 0.9 * bound, what
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), what


@pytest.mark.parametrize("extras", [1, CLASSES, TEXT])
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_model(kind, extras):
    torch.manual_seed(0)
    model = kind(**{**tiny.CONFIG, "hidden_size": 32, "num_classes": 50, "extras": extras, "u_type": "softmax"})
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all() and module.bias.eq(0).all(), name
        if not isinstance(module, nn.Linear):
            continue
        assert not module.bias.any(), name
        if "adaLN_modulation" in name or name == "final_layer.linear":
            assert not module.weight.any(), name
        elif name.startswith("t_embedder"):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert_uniform(module.weight, math.sqrt(6 / (module.in_features + module.out_features)), name)
    weight = model.x_embedder.proj.weight.flatten(1)
    assert_uniform(weight, math.sqrt(6 / (32 + 16)), "x_embedder")
    assert not model.x_embedder.proj.bias.any()
    if extras == CLASSES:
        table = model.y_embedder.embedding_table.weight
        assert table.shape == (51, 32)
        assert table.std().item() == pytest.approx(0.02, rel=0.1) and abs(table.mean().item()) < 2e-3
    matrix_parts = [m for m in model.modules() if hasattr(m, "u_temperature")]
    assert len(matrix_parts) == 4 * tiny.CONFIG["depth"] // 2
    for part in matrix_parts:
        assert_uniform(part.w, math.sqrt(6 / 64), "w")
        assert part.u.abs().max() <= math.sqrt(6 / sum(part.u.shape)) and part.u.abs().min() > 0
        assert not part.bias.any() and part.u_temperature.eq(1).all()
    out = model(videos(dtype=torch.float32), steps(), **conditions(extras, dtype=torch.float32))
    assert out.shape == (2, FRAMES, 8, 4, 4) and not out.any()


def test_fresh_gates():
    attention = FrameDiTH(**{**tiny.CONFIG, "depth": 2, "fuse_mode": "gated"}).blocks[1].attn
    assert (
        attention.alpha.eq(0).all() and attention.gamma_local.eq(1e-4).all() and attention.gamma_global.eq(1e-4).all()
    )


def test_fresh_model_learns_from_its_first_step():
    model = FrameDiTG(**tiny.CONFIG)
    model(videos(dtype=torch.float32), steps()).add(1).square().sum().backward()
    assert model.final_layer.linear.bias.grad.any()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert model(videos(dtype=torch.float32), steps()).any()


@pytest.mark.parametrize("input_size, dim", [(4, 8), (12, 32)])
def test_position_embeddings(input_size, dim):
    model = FrameDiTG(**{**tiny.CONFIG, "input_size": input_size, "hidden_size": dim, "num_frames": 5})

    def encode(position, dim):
        angles = [position * 10_000 ** (-2 * i / dim) for i in range(dim // 2)]
        return [*map(math.sin, angles), *map(math.cos, angles)]

    side = input_size // 2
    grid = [encode(column, dim // 2) + encode(row, dim // 2) for row in range(side) for column in range(side)]
    torch.testing.assert_close(model.pos_embed, torch.tensor(grid).unsqueeze(0), rtol=1e-6, atol=1e-7)
    time = [encode(frame, dim) for frame in range(5)]
    torch.testing.assert_close(model.temp_embed, torch.tensor(time).unsqueeze(0), rtol=1e-6, atol=1e-7)
    assert not {"pos_embed", "temp_embed"} & dict(model.named_parameters()).keys()
    assert {"pos_embed", "temp_embed"} < model.state_dict().keys()


# ---- Time step and labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sinusoid_of_the_step_is_computed_in_float32(dtype):
    seen = []
    model = create(dtype=dtype)
    model.t_embedder.mlp[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    t = torch.tensor([0, 1, 500, 998, 999])
    model.t_embedder(t)
    model.t_embedder(t.float())
    angles = t.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
    exact = torch.cat([angles.cos(), angles.sin()], 1)
    assert torch.equal(seen[0], seen[1]) and seen[0].dtype == dtype
    assert (seen[0] - exact).abs().max() < {torch.bfloat16: 4e-3}.get(dtype, 1e-4)


def test_label_dropout_one_is_the_null_label():
    options = dict(extras=CLASSES, class_dropout_prob=1.0)
    model, x = create(**options), videos(2, FRAMES + IMAGES)
    nothing = model(x, steps(), torch.full((2,), NULL), y_image=torch.full((2, IMAGES), NULL), use_image_num=IMAGES)
    labelled = model(x, steps(), **conditions(CLASSES, IMAGES))
    assert (labelled - nothing).abs().max() > 1e-3  # evaluation drops nothing
    torch.testing.assert_close(model(x, steps(), **conditions(CLASSES, IMAGES)), labelled, rtol=0, atol=0)
    torch.testing.assert_close(model.train()(x, steps(), **conditions(CLASSES, IMAGES)), nothing)


def test_without_label_dropout_training_drops_nothing():
    model = create(extras=CLASSES, class_dropout_prob=0.0)
    assert model.y_embedder.embedding_table.weight.shape == (NULL, D)  # no null class
    options = {"y": Y, "y_image": Y_IMAGE.clamp(max=NULL - 1), "use_image_num": IMAGES}
    x = videos(2, FRAMES + IMAGES)
    expected = model(x, steps(), **options)
    torch.testing.assert_close(model.train()(x, steps(), **options), expected, rtol=0, atol=0)


def test_images_of_a_clip_are_dropped_together():
    torch.manual_seed(0)
    embedder = LabelEmbedder(num_classes=7, dim=4, dropout=0.3)
    labels = torch.randint(0, 7, (2000, 3))
    kept = labels.clone()
    out = embedder(labels)
    null = embedder.embedding_table.weight[7]
    dropped = out.eq(null).all(-1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert dropped.all(1).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(out[~dropped], embedder.embedding_table.weight[labels[~dropped]])
    assert torch.equal(labels, kept)  # those of the caller
    assert torch.equal(embedder.eval()(labels), embedder.embedding_table.weight[labels])


def test_labels_and_text_matter_and_without_condition_labels_do_not():
    x = videos()
    model = create(extras=CLASSES)
    assert (model(x, steps(), Y) - model(x, steps(), Y.flip(0))).abs().max() > 1e-3
    model = create(extras=TEXT)
    assert (model(x, steps(), text_embedding=text()) - model(x, steps(), text_embedding=-text())).abs().max() > 1e-3
    model = create()
    torch.testing.assert_close(model(x, steps(), Y), model(x, steps()), rtol=0, atol=0)


# ---- Guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg_scale", [1.0, 3.5])
@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("extras", [CLASSES, TEXT])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_with_cfg(kind, extras, learn_sigma, cfg_scale):
    model, half = create(kind, extras=extras, learn_sigma=learn_sigma), videos()
    if extras == CLASSES:
        with_condition, without = {"y": Y}, {"y": torch.full_like(Y, NULL)}
    else:
        with_condition, without = {"text_embedding": text()}, {"text_embedding": torch.zeros_like(text())}
    both = {key: torch.cat([with_condition[key], without[key]]) for key in with_condition}
    x = torch.cat([half, torch.full_like(half, torch.nan)])  # the second half is not read
    out = model.forward_with_cfg(x, torch.cat([steps(), steps()]), cfg_scale=cfg_scale, **both)
    conditional, unconditional = model(half, steps(), **with_condition), model(half, steps(), **without)
    guided = unconditional + cfg_scale * (conditional - unconditional)
    for part, own in zip(out.chunk(2), (conditional, unconditional), strict=True):
        torch.testing.assert_close(part[:, :, :4], guided[:, :, :4], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(part[:, :, 4:], own[:, :, 4:], rtol=1e-11, atol=1e-11)
    assert (conditional - unconditional).abs().max() > 1e-3
    assert torch.equal(out, model.forward_with_cfg(x, torch.cat([steps(), steps()]), **both, cfg_scale=cfg_scale))


def test_cfg_scale_is_seven_by_default():
    model, x = create(extras=CLASSES), torch.cat([videos(), videos()])
    arguments = x, torch.cat([steps(), steps()]), torch.cat([Y, torch.full_like(Y, NULL)])
    assert torch.equal(model.forward_with_cfg(*arguments), model.forward_with_cfg(*arguments, cfg_scale=7.0))


# ---- Frames and clips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_frames(kind):
    model, short = create(kind), create(kind, num_frames=2)
    short.load_state_dict(model.state_dict() | {"temp_embed": model.temp_embed[:, :2]})
    model.num_frames = 2
    torch.testing.assert_close(model(videos(2, 2), steps()), short(videos(2, 2), steps()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"T = num_frames = 2, .* got \[2, 3, 4, 4, 4\]"):
        model(videos(), steps())
    model.num_frames = FRAMES
    model(videos(), steps())


def test_frames_have_an_order():
    model, x = create(), videos()
    out = model(x, steps())
    assert (model(x.flip(1), steps()).flip(1) - out).abs().max() > 1e-3
    model.temp_embed.zero_()  # which temp_embed alone gives
    torch.testing.assert_close(model(x.flip(1), steps()).flip(1), model(x, steps()), rtol=1e-11, atol=1e-11)


def test_clips_do_not_see_each_other():
    model = create(FrameDiTH, extras=CLASSES)
    together = model(videos(), steps(), Y)
    for i in range(2):
        alone = model(videos()[i : i + 1], steps()[i : i + 1], Y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-11)


def test_no_clips():
    assert create(FrameDiTH, extras=CLASSES)(videos()[:0], steps()[:0], Y[:0]).shape == (0, FRAMES, 8, 4, 4)


# ---- Ways to run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, IMAGES])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind, images):
    model, counted = create(kind, extras=CLASSES), create(kind, extras=CLASSES, gradient_checkpointing=True)
    arguments, options = (videos(2, FRAMES + images), steps()), conditions(CLASSES, images)
    runs = []
    for block in counted.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    for (name, expected), actual in zip(
        gradients(model, *arguments, **options).items(), gradients(counted, *arguments, **options).values(), strict=True
    ):
        assert torch.equal(actual, expected), name
    assert len(runs) == 2 * len(counted.blocks)
    runs.clear()
    with torch.no_grad():
        counted(*arguments, **options)
    assert len(runs) == len(counted.blocks)
    model.gradient_checkpointing = True  # may be turned on later
    assert gradients(model, *arguments, **options).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extras", [1, CLASSES, TEXT])
def test_every_parameter_learns(kind, extras):
    for name, gradient in gradients(create(kind, extras=extras), videos(), steps(), **conditions(extras)).items():
        if "linear_k.bias" in name:  # cancels in the softmax
            assert gradient.abs().max() < 1e-12, name
        else:
            assert gradient.abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_float64(kind):
    model, x = create(kind, depth=2), videos(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, steps(1)), x, fast_mode=True)
    parameters = {name: p for name, p in model.named_parameters() if "linear_k.bias" not in name}

    def forward(*values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (videos(1), steps(1)))

    assert torch.autograd.gradcheck(forward, tuple(parameters.values()), fast_mode=True)


def relative_error(actual, exact):
    return ((actual.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("extras", [1, CLASSES, TEXT])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, extras):
    exact = create(kind, extras=extras)(videos(), steps(), **conditions(extras))
    assert exact.dtype == torch.float64
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 0.08), (torch.float16, 0.01)):
        model = create(kind, extras=extras, dtype=dtype)
        out = model(videos(dtype=dtype), steps(), **conditions(extras, dtype=dtype))
        assert out.dtype == dtype
        assert relative_error(out, exact) < allowed, dtype
        assert all(tensor.dtype == dtype for tensor in model.state_dict().values())


@pytest.mark.parametrize("images", [0, IMAGES])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind, images):
    t, options = steps(), conditions(CLASSES, images)
    model, exact = create(kind, extras=CLASSES, dtype=torch.float32), create(kind, extras=CLASSES)
    x = videos(2, FRAMES + images)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x.float(), t, **options)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact(x, t, **options)) < 0.05
    expected = gradients(exact, x, t, **options)
    for name, gradient in gradients(model, x.float(), t, **options, autocast=True).items():
        assert gradient.dtype == torch.float32
        if "linear_k.bias" in name:  # nothing but rounding
            assert gradient.abs().max() < 0.1, name
        else:
            error = torch.linalg.vector_norm(gradient.double() - expected[name])
            assert error < 0.25 * torch.linalg.vector_norm(expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_meta(kind):
    with torch.device("meta"):
        model = kind(**tiny.CONFIG, extras=CLASSES)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        x = torch.empty(2, FRAMES + IMAGES, 4, 4, 4)
        t, y, y_image = (torch.zeros(*shape, dtype=torch.int64) for shape in ((2,), (2,), (2, IMAGES)))
        out = model(x, t, y, y_image=y_image, use_image_num=IMAGES)
    assert out.is_meta and out.shape == (2, FRAMES + IMAGES, 8, 4, 4)
    real = create(kind, extras=CLASSES, dtype=torch.float32)
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    arguments = videos(dtype=torch.float32), steps(), Y
    torch.testing.assert_close(model.eval()(*arguments), real(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("images", [0, IMAGES])
@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind, images):
    model = create(kind, extras=CLASSES, depth=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    arguments, options = (videos(2, FRAMES + images), steps()), conditions(CLASSES, images)
    torch.testing.assert_close(compiled(*arguments, **options), model(*arguments, **options), rtol=1e-11, atol=1e-11)
    expected = gradients(model, *arguments, **options)
    out = compiled(*arguments, **options)
    actual = torch.autograd.grad((out * randn(*out.shape, seed=77)).sum(), list(model.parameters()))
    for (name, gradient), ours in zip(expected.items(), actual, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-9, msg=name)


def test_compile_with_gradient_checkpointing_and_label_dropout():
    model = create(FrameDiTH, extras=CLASSES, depth=2, gradient_checkpointing=True).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(videos(), steps(), Y).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_deepcopy_and_pickle(kind):
    model = create(kind, extras=CLASSES)
    expected = model(videos(), steps(), Y)
    with torch.inference_mode():
        assert torch.equal(model(videos(), steps(), Y), expected)
    clone = copy.deepcopy(model)
    for other in (clone, pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(videos(), steps(), Y), expected) and other.config == model.config
    tiny.randomize(clone, seed=5)
    clone.config["num_frames"] = clone.num_frames = 1
    assert torch.equal(model(videos(), steps(), Y), expected) and model.config["num_frames"] == FRAMES


def test_non_contiguous_input():
    model, x = create(FrameDiTH), videos()
    strided = x.permute(3, 1, 4, 0, 2).contiguous().permute(3, 1, 4, 0, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(model(strided, steps()), model(x, steps()), rtol=1e-11, atol=1e-11)


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(depth=3), r"depth must be even \(a spatial and a temporal block each\), got 3"),
        (dict(extras=3), r"extras must be 1 \(none\), 2 \(classes\) or 78 \(text\), got 3"),
        (dict(patch_size=3), "patch_size must divide input_size = 4, got 3"),
        (dict(input_size=0), "input_size must be at least 1, got 0"),
        (dict(patch_size=0), "patch_size must be at least 1, got 0"),
        (dict(depth=-2), "depth must be at least 1, got -2"),
        (dict(num_frames=0), "num_frames must be at least 1, got 0"),
        (dict(class_dropout_prob=1.5), r"class_dropout_prob must be in 0\.\.1, got 1.5"),
        (dict(input_size=1), "patch_size must divide input_size = 1, got 2"),
        (dict(hidden_size=6), r"hidden_size must be a multiple of 4 \(sines, cosines of 2 axes\), got 6"),
    ],
)
def test_rejects_a_configuration(kind, options, message):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}$"):
        kind(**{**tiny.CONFIG, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_row_heads=3), "SpatialAttention: num_heads must divide dim = 8, got 3"),
        (dict(num_col_heads=3), "MatrixAttention: num_col_heads must divide qk_col_dim = 4, got 3"),
        (dict(num_col_heads=4), "MatrixAttention: num_col_heads must divide v_col_dim = 6, got 4"),
        (dict(u_type="identity"), "MatrixLinear: u_type 'identity' keeps the number of tokens, got 4 in and 6 out"),
        (dict(u_type="dense"), "MatrixLinear: u_type must be one of .*, got 'dense'"),
        (dict(bias_type="dense"), "MatrixLinear: bias_type must be one of .*, got 'dense'"),
        (dict(fuse_mode="mean"), "LocalGlobalAttention: fuse_mode must be one of .*, got 'mean'"),
    ],
)
def test_rejects_a_configuration_of_the_attention(options, message):
    with pytest.raises(ValueError, match=message):
        FrameDiTH(**{**tiny.CONFIG, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4, 4, 4), (2, 3, 3, 4, 4), (2, 3, 4, 8, 4), (2, 3, 4, 4, 2)])
def test_rejects_x_of_another_shape(kind, shape):
    message = (
        rf"^{kind.__name__}: x must be \[B, T, C, H, W\] with T = num_frames = 3, C = 4, H = W = 4, "
        rf"got \[{', '.join(map(str, shape))}\]$"
    )
    with pytest.raises(ValueError, match=message):
        create(kind)(randn(*shape), steps())


@pytest.mark.parametrize("t", [torch.tensor(3), torch.zeros(3), torch.zeros(1), 3])
def test_rejects_steps_of_another_shape(t):
    with pytest.raises(ValueError, match=r"^FrameDiTG: t must be steps \[B\] = \[2\], got "):
        create()(videos(), t)


def test_rejects_numbers_of_frames_that_cannot_be():
    model = create()
    with pytest.raises(ValueError, match="use_image_num must be at least 0, and there must be a frame, got -1"):
        model(videos(2, FRAMES - 1), steps(), use_image_num=-1)
    model.num_frames = 0
    with pytest.raises(ValueError, match="there must be a frame, got 0"):
        model(videos(2, 0), steps())
    model.num_frames = FRAMES + 1
    with pytest.raises(ValueError, match="num_frames may be set to 3 at most, got 4"):
        model(videos(2, FRAMES + 1), steps())


def test_cfg_leaves_the_variance_of_few_channels_alone():
    model = create(in_channels=1)
    x, t = videos()[:, :, :1], steps()
    out = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), cfg_scale=9.0)
    torch.testing.assert_close(out[:2], model(x, t))  # without a condition both halves are the same


def test_rejects_x_without_its_images():
    with pytest.raises(ValueError, match=r"T = num_frames = 3 \+ use_image_num = 5, C = 4, .* got \[2, 3, 4, 4, 4\]"):
        create()(videos(), steps(), use_image_num=2)


@pytest.mark.parametrize(
    "extras, options, message",
    [
        (CLASSES, dict(), r"y must be labels \[B\] = \[2\], got None"),
        (CLASSES, dict(y=torch.zeros(3)), r"y must be labels \[B\] = \[2\], got \[3\]"),
        (CLASSES, dict(y=torch.zeros(2, 1)), r"y must be labels \[B\] = \[2\], got \[2, 1\]"),
        (CLASSES, dict(y=Y, use_image_num=2), r"y_image must be labels \[B, use_image_num\] = \[2, 2\], got None"),
        (
            CLASSES,
            dict(y=Y, use_image_num=2, y_image=torch.zeros(2, 1)),
            r"y_image must be labels \[B, use_image_num\] = \[2, 2\], got \[2, 1\]",
        ),
        (TEXT, dict(), r"text_embedding must be \[B, tokens, channels\] = \[2, 77, 768\], got None"),
        (
            TEXT,
            dict(text_embedding=torch.zeros(1, 77, 768)),
            r"text_embedding must be \[B, tokens, channels\] = \[2, 77, 768\], got \[1, 77, 768\]",
        ),
    ],
)
def test_rejects_conditions(extras, options, message):
    x = videos(2, FRAMES + options.get("use_image_num", 0))
    with pytest.raises(ValueError, match=f"^FrameDiTG: {message}$"):
        create(extras=extras, depth=2)(x, steps(), **options)
