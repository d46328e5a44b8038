"""The 66 official names and VideoDiT, what they build, and what is said about names and arguments that do not exist."""

import itertools
import re

import pytest
import torch

from frameattn.models import FrameDiTG, FrameDiTH, create_model, list_models

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
TEXT_TO_VIDEO = "FrameDiTHT2V-XL/256-2-1-2-concat"
OURS = [f"VideoDiT-{size}/2" for size in SIZES]
OLD_NAME = "FusedMatLatteIMG-XL/128-512/2-concat"
RULED = [
    f"FrameDiT{family}{images}-{size}/{dims}/2{u}{'-concat' if family == 'H' else ''}"
    for family, images, size, dims, u in itertools.product(
        "GH", ("", "IMG"), SIZES, ("64-256", "128-512"), ("", "-softmax_u")
    )
]


def create_on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


def test_names():
    names = list_models()
    assert len(names) == len(set(names)) == 70
    assert set(names) == {*RULED, OLD_NAME, TEXT_TO_VIDEO, *OURS}
    names.clear()  # a list of the caller's own
    assert len(list_models()) == 70


@pytest.mark.parametrize("name", RULED)
def test_what_a_name_builds(name):
    family, size, qk, v, u = re.fullmatch(
        r"FrameDiT([GH])(?:IMG)?-(\w+)/(\d+)-(\d+)/2(-softmax_u)?(?:-concat)?", name
    ).groups()
    model = create_on_meta(name)
    depth, dim, heads = SIZES[size]
    assert type(model) is {"G": FrameDiTG, "H": FrameDiTH}[family]
    expected = dict(depth=depth, hidden_size=dim, num_row_heads=heads, num_col_heads=64, patch_size=2, mlp_ratio=4.0)
    expected |= dict(qk_col_dim=int(qk), v_col_dim=int(v), u_type="softmax" if u else "param", bias_type="matrix")
    expected |= dict(fuse_mode="concat") if family == "H" else {}
    assert {key: model.config[key] for key in expected} == expected
    # the defaults of the official code for what the name leaves open
    left_open = dict(input_size=32, num_frames=16, in_channels=4, learn_sigma=True, extras=1, num_classes=1000)
    assert {key: model.config[key] for key in left_open} == left_open
    assert all(tensor.is_meta for tensor in model.state_dict().values())

    assert len(model.blocks) == depth
    temporal = model.blocks[1].attn.matrix_attention if family == "H" else model.blocks[1].attn
    assert model.blocks[0].attn.num_heads == temporal.num_row_heads == heads and temporal.num_col_heads == 64
    assert temporal.linear_q.u.shape == temporal.linear_k.u.shape == (256, int(qk))
    assert temporal.linear_v.u.shape == temporal.proj_v.u.T.shape == (256, int(v))
    assert temporal.linear_q.w.shape == (dim, dim)
    assert ("u_temperature" in dict(temporal.linear_q.named_parameters())) == bool(u)
    assert model.pos_embed.shape == (1, 256, dim) and model.temp_embed.shape == (1, 16, dim)


def test_the_old_name():
    old, new = create_on_meta(OLD_NAME), create_on_meta("FrameDiTHIMG-XL/128-512/2-concat")
    assert type(old) is type(new) and old.config == new.config


def test_overrides():
    model = create_model(
        "FrameDiTH-XL/128-512/2-concat", depth=2, hidden_size=8, num_row_heads=2, num_col_heads=2, qk_col_dim=2,
        v_col_dim=4, input_size=4, num_frames=3, extras=2, num_classes=7, u_type="pure-softmax", bias_type="col_row",
        fuse_mode="gated", learn_sigma=False, gradient_checkpointing=True,
    )  # fmt: skip
    out = model(torch.randn(1, 3, 4, 4, 4), torch.tensor([5]), torch.tensor([7]))
    assert out.shape == (1, 3, 4, 4, 4)
    assert model.config["fuse_mode"] == "gated" and "alpha" in dict(model.blocks[1].attn.named_parameters())
    assert create_on_meta("FrameDiTH-XL/128-512/2-concat").config["depth"] == 28  # the registry is as it was


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("FrameDiTH-XL/128-512/2", "FrameDiTH-XL/128-512/2-concat"),  # so in four official configs
        ("FrameDiTH-S/64-256/2-softmax_u", "FrameDiTH-S/64-256/2-softmax_u-concat"),
        ("FrameDiTHIMG-XL/128-512/2", "FrameDiTHIMG-XL/128-512/2-concat"),
        ("FrameDiTG-XL/128-521/2", "FrameDiTG-XL/128-512/2"),
        ("FrameDiTG-L/64-256", "FrameDiTG-L/64-256/2"),
        ("FrameDiTHT2V-XL", TEXT_TO_VIDEO),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name, nearest):
    with pytest.raises(KeyError, match=re.escape(f"unknown model '{name}': did you mean '{nearest}'?")):
        create_model(name)


def test_any_unknown_name_is_a_key_error():
    for name in ("", "Latte-XL/2", "g"):
        with pytest.raises(KeyError, match=re.escape(f"unknown model {name!r}: did you mean '")):
            create_model(name)


@pytest.mark.parametrize(
    "name, key, message",
    [
        ("FrameDiTG-S/64-256/2", "num_frame", "FrameDiTG has no argument 'num_frame': did you mean 'num_frames'?"),
        ("FrameDiTH-S/64-256/2-concat", "fuse", "FrameDiTH has no argument 'fuse': did you mean 'fuse_mode'?"),
        ("FrameDiTG-S/64-256/2", "fuse_mode", "FrameDiTG has no argument 'fuse_mode': did you mean '"),
        (
            "FrameDiTG-S/64-256/2",
            "_temporal_attention",
            "FrameDiTG has no argument '_temporal_attention': did you mean '",
        ),
        ("FrameDiTG-S/64-256/2", "hiden_size", "FrameDiTG has no argument 'hiden_size': did you mean 'hidden_size'?"),
    ],
)
def test_an_unknown_argument_is_told_the_nearest(name, key, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        create_model(name, **{key: 1})


def test_text_to_video():
    pytest.importorskip("diffusers")
    assert TEXT_TO_VIDEO in list_models()
    model = create_on_meta(TEXT_TO_VIDEO)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 1372
    with pytest.raises(TypeError, match="FrameDiTHT2V has no argument 'num_frames': did you mean 'num_layers'"):
        create_model(TEXT_TO_VIDEO, num_frames=16)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="MatrixAttention: num_col_heads must divide qk_col_dim = 64, got 60"):
        create_on_meta("FrameDiTG-S/64-256/2", num_col_heads=60)
    with pytest.raises(ValueError, match="LocalGlobalAttention: fuse_mode must be one of .*, got 'mean'"):
        create_on_meta("FrameDiTH-S/64-256/2-concat", fuse_mode="mean")
