"""FrameDiT-G and FrameDiT-H (arXiv 2603.09721): diffusion transformers of videos [B, T, C, H, W].

Even blocks attend in each frame; odd blocks attend over time, G by Matrix Attention and H by local temporal attention
beside Matrix Attention. Parameter names and shapes are those of the official code. Tokens stay [B, T, N, D] throughout,
and the modulation by time step and condition is computed once per clip.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frameattn.functional import gated_add, gelu_tanh, modulated_layer_norm
from frameattn.models.embeddings import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    position_embedding,
    temporal_embedding,
)
from frameattn.modules import Linear, LocalGlobalAttention, MatrixAttention, SpatialAttention

NO_CONDITION, CLASSES, TEXT = 1, 2, 78  # values of `extras`
TEXT_TOKENS, TEXT_CHANNELS = 77, 768  # CLIP
TEMPORAL_MLP_RATIO = 4.0


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form. On a GPU inductor may join torch's own with what stands beside it."""
    return gelu_tanh(x) if x.is_cpu else F.gelu(x, approximate="tanh")


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class Modulation(nn.Sequential):
    """Condition [B, K, D] -> ``parts`` tensors [B, K, D], or [B, F, D] of F frames: shifts, scales, gates of tokens."""

    def __init__(self, dim: int, parts: int):
        super().__init__(nn.SiLU(), Linear(dim, parts * dim))
        self.parts = parts

    def forward(  # type: ignore[override]  # a Sequential for the official names of its parameters alone
        self, condition: Tensor, condition_of_frame: Tensor | None
    ) -> tuple[Tensor, ...]:
        parts = super().forward(condition)
        if condition_of_frame is not None:
            parts = parts.index_select(1, condition_of_frame)
        return parts.chunk(self.parts, dim=-1)


class Block(nn.Module):
    """x + gate attention(LN(x) (1 + scale) + shift), then the same with an MLP (adaLN-Zero)."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float):
        super().__init__()
        self.attn = attention
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, condition: Tensor, condition_of_frame: Tensor | None) -> Tensor:
        modulation = self.adaLN_modulation(condition, condition_of_frame)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        x = gated_add(x, gate_attention, self.attn(modulated_layer_norm(x, shift_attention, scale_attention)))
        return gated_add(x, gate_mlp, self.mlp(modulated_layer_norm(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Tokens [B, F, N, D] -> [B, F, N, p p C]."""

    def __init__(self, dim: int, out_features: int):
        super().__init__()
        self.linear = Linear(dim, out_features)
        self.adaLN_modulation = Modulation(dim, 2)

    def forward(self, x: Tensor, condition: Tensor, condition_of_frame: Tensor | None) -> Tensor:
        return self.linear(modulated_layer_norm(x, *self.adaLN_modulation(condition, condition_of_frame)))


class FrameDiT(nn.Module):
    """What G and H share: all but the attention of the odd blocks. Use FrameDiTG or FrameDiTH.

    Args:
        input_size: side of a frame (of the latent, for a latent model); patch_size divides it.
        in_channels: C.
        hidden_size: D.
        qk_col_dim, v_col_dim, num_col_heads, num_row_heads: of MatrixAttention; num_row_heads also of the spatial and
            local temporal attention.
        depth: number of blocks, even.
        mlp_ratio: hidden channels of the spatial blocks' MLPs are so many times D. Those of the temporal blocks are 4 D
            whatever it is, as in the official code.
        num_frames: T.
        class_dropout_prob: how often a label becomes the null class in training; 0: there is none.
        learn_sigma: predict a variance too, in as many channels again.
        extras: 1 no condition, 2 classes, 78 text (CLIP's 77 x 768).
        u_type, bias_type, sparse_bandwidth, u_norm_eps_outside: of MatrixLinear.
        gradient_checkpointing: compute blocks again in backward instead of keeping their activations.

    Attributes:
        config: these arguments, all of them.
        num_frames: frames of a clip; may be set to fewer than the model was made for.
        checkpointed_layers: with gradient_checkpointing so many first pairs of blocks; all of them from the start.

    Raises:
        ValueError: arguments do not fit together.
    """

    pos_embed: Tensor
    temp_embed: Tensor

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        qk_col_dim: int = 64,
        v_col_dim: int = 64,
        depth: int = 28,
        num_col_heads: int = 16,
        num_row_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_frames: int = 16,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        extras: int = NO_CONDITION,
        u_type: str = "param",
        bias_type: str = "matrix",
        sparse_bandwidth: int = 16,
        u_norm_eps_outside: bool = False,
        gradient_checkpointing: bool = False,
        *,
        _temporal_attention: Callable[..., nn.Module] | None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__", "_temporal_attention")}
        super().__init__()
        self.config: dict[str, Any] = config
        self._check_config()
        side = input_size // patch_size
        self.num_frames = num_frames
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.gradient_checkpointing = gradient_checkpointing
        self.checkpointed_layers = depth // 2

        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if extras == CLASSES:
            self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        elif extras == TEXT:
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), Linear(TEXT_TOKENS * TEXT_CHANNELS, hidden_size))
        self.register_buffer("pos_embed", position_embedding(side, hidden_size))
        self.register_buffer("temp_embed", temporal_embedding(num_frames, hidden_size))

        self.blocks = nn.ModuleList(self._create_blocks(side * side, _temporal_attention))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)
        self._initialize()

    def _create_blocks(self, tokens: int, temporal_attention: Callable[..., nn.Module] | None) -> list[nn.Module]:
        """For frames of so many tokens."""
        assert temporal_attention is not None
        config, dim = self.config, self.config["hidden_size"]
        if config["depth"] % 2:
            raise ValueError(
                f"{type(self).__name__}: depth must be even (a spatial and a temporal block each), "
                f"got {config['depth']}"
            )
        matrix_options = {k: v for k, v in config.items() if k in inspect.signature(MatrixAttention).parameters}
        blocks: list[nn.Module] = []
        for _ in range(0, config["depth"], 2):
            spatial = SpatialAttention(dim, config["num_row_heads"])
            temporal = temporal_attention(dim, tokens, **matrix_options)
            blocks += [Block(dim, spatial, config["mlp_ratio"]), Block(dim, temporal, TEMPORAL_MLP_RATIO)]
        return blocks

    def _check_config(self) -> None:
        config, name = self.config, type(self).__name__
        for key in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_frames", "num_classes"):
            if config[key] < 1:
                raise ValueError(f"{name}: {key} must be at least 1, got {config[key]}")
        if config["extras"] not in (NO_CONDITION, CLASSES, TEXT):
            raise ValueError(f"{name}: extras must be 1 (none), 2 (classes) or 78 (text), got {config['extras']}")
        if not 0 <= config["class_dropout_prob"] <= 1:
            raise ValueError(f"{name}: class_dropout_prob must be in 0..1, got {config['class_dropout_prob']}")
        if config["input_size"] % config["patch_size"]:
            raise ValueError(
                f"{name}: patch_size must divide input_size = {config['input_size']}, got {config['patch_size']}"
            )
        if config["hidden_size"] % 4:
            raise ValueError(
                f"{name}: hidden_size must be a multiple of 4 (sines, cosines of 2 axes), got {config['hidden_size']}"
            )

    def _initialize(self) -> None:
        """Linear layers Xavier uniform with zero bias; every block starts as the identity, the output as zero."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear) or name.startswith("t_embedder"):
                continue
            if "adaLN_modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        text_embedding: Tensor | None = None,
        y_image: Tensor | None = None,
        use_image_num: int = 0,
    ) -> Tensor:
        """Predicts noise (and variance) of a batch of noised clips.

        Args:
            x: [B, T, C, H, W] with T = num_frames + use_image_num.
            t: [B], diffusion steps.
            y: [B], classes (extras = 2); num_classes is the null class. In training mode a label is dropped with
                class_dropout_prob.
            text_embedding: [B, 77, 768] (extras = 78).
            y_image: [B, use_image_num], classes of the images (extras = 2).
            use_image_num: so many last frames of x are still images: they pass the spatial blocks only.

        Returns:
            [B, T, C_out, H, W]; with learn_sigma C_out = 2 C, prediction and variance.

        Raises:
            ValueError: shapes do not fit the model, or a condition is missing; the message names what came.
        """
        self._check_input(x, t, y, text_embedding, y_image, use_image_num)
        condition, final_condition, condition_of_frame = self._conditions(t, y, text_embedding, y_image, use_image_num)
        tokens = self.x_embedder(x.flatten(0, 1)).unflatten(0, x.shape[:2]) + self.pos_embed
        tokens = self._run_blocks(tokens, condition, condition_of_frame, use_image_num)
        return self._unpatchify(self.final_layer(tokens, final_condition, condition_of_frame))

    def _run_blocks(
        self, tokens: Tensor, condition: Tensor, condition_of_frame: Tensor | None, use_image_num: int
    ) -> Tensor:
        video_frames = self.num_frames
        # One condition for all frames, or one for each: the video's frames then have the first.
        video_condition = condition[:, :1]
        for i, block in enumerate(self.blocks):
            if i % 2 == 0:
                tokens = self._run(i // 2, block, tokens, condition, condition_of_frame)
            elif video_frames:
                video = tokens[:, :video_frames]
                if i == 1:
                    video = video + self.temp_embed[:, :video_frames].unsqueeze(2)
                video = self._run(i // 2, block, video, video_condition, None)
                tokens = torch.cat([video, tokens[:, video_frames:]], dim=1) if use_image_num else video
        return tokens

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        cfg_scale: float = 7.0,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """Classifier-free guidance as the official code samples with.

        Args:
            x: [2 B, T, C, H, W]; only the first half is read.
            y, text_embedding: [2 B, ...]: conditions, then null conditions.

        Returns:
            [2 B, T, C_out, H, W]. The first 4 channels of the prediction are uncond + cfg_scale (cond - uncond) in both
            halves; the others, and the variance, are what each half gives.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y, text_embedding)
        channels = min(4, self.config["in_channels"])
        conditional, unconditional = out[:, :, :channels].chunk(2)
        guided = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat([torch.cat([guided, guided]), out[:, :, channels:]], dim=2)

    def _check_input(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        text_embedding: Tensor | None,
        y_image: Tensor | None,
        use_image_num: int,
    ) -> None:
        config, name = self.config, type(self).__name__
        size, channels, made_for = config["input_size"], config["in_channels"], self.temp_embed.size(1)
        if use_image_num < 0 or self.num_frames + use_image_num < 1:
            raise ValueError(
                f"{name}: use_image_num must be at least 0, and there must be a frame, got {use_image_num}"
            )
        if self.num_frames > made_for:
            raise ValueError(f"{name}: num_frames may be set to {made_for} at most, got {self.num_frames}")
        frames = self.num_frames + use_image_num
        if x.dim() != 5 or x.shape[1:] != (frames, channels, size, size):
            images = f" + use_image_num = {frames}" if use_image_num else ""
            raise ValueError(
                f"{name}: x must be [B, T, C, H, W] with T = num_frames = {self.num_frames}{images}, C = {channels}, "
                f"H = W = {size}, got {list(x.shape)}"
            )

        def check_shape(argument: str, tensor: Tensor | None, what: str, *shape: int) -> None:
            if not isinstance(tensor, Tensor) or tensor.shape != shape:
                got = list(tensor.shape) if isinstance(tensor, Tensor) else tensor
                raise ValueError(f"{name}: {argument} must be {what} = {list(shape)}, got {got}")

        batch = x.size(0)  # len(x) is a plain int, of which torch.export makes a constant
        check_shape("t", t, "steps [B]", batch)
        if config["extras"] == TEXT:
            check_shape("text_embedding", text_embedding, "[B, tokens, channels]", batch, TEXT_TOKENS, TEXT_CHANNELS)
        elif config["extras"] == CLASSES:
            if self.num_frames:
                check_shape("y", y, "labels [B]", batch)
            if use_image_num:
                check_shape("y_image", y_image, "labels [B, use_image_num]", batch, use_image_num)

    def _conditions(
        self,
        t: Tensor,
        y: Tensor | None,
        text_embedding: Tensor | None,
        y_image: Tensor | None,
        use_image_num: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Conditions [B, K, D] of the blocks and of the final layer; which of the K each frame has (None: K = 1)."""
        step = self.t_embedder(t).unsqueeze(1)
        if self.config["extras"] == TEXT:
            assert text_embedding is not None  # _check_input saw to this and the other two
            text = self.text_embedding_projection(text_embedding.flatten(1)).unsqueeze(1)
            return step + text, step, None
        if self.config["extras"] != CLASSES:
            return step, step, None
        embedded = []
        if self.num_frames:
            assert y is not None
            embedded.append(self.y_embedder(y.unsqueeze(1)))
        if use_image_num:
            embedded.append(self.y_embedder(y_image))
        condition = step + torch.cat(embedded, dim=1)
        if not use_image_num:
            return condition, condition, None
        index = torch.arange(self.num_frames + use_image_num, device=t.device)
        return condition, condition, (index - max(0, self.num_frames - 1)).clamp(min=0)

    def _run(self, layer: int, block: nn.Module, *arguments: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and layer < self.checkpointed_layers and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, F, N, p p C] -> [B, F, C, H, W]."""
        p = self.config["patch_size"]
        side = self.config["input_size"] // p
        patches = tokens.unflatten(-1, (p, p, self.out_channels)).unflatten(2, (side, side))  # B F h w p q C
        return patches.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


class FrameDiTG(FrameDiT):
    """FrameDiT-G: the temporal blocks attend by Matrix Attention alone. Arguments: see FrameDiT."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs, _temporal_attention=MatrixAttention)


class FrameDiTH(FrameDiT):
    """FrameDiT-H: the temporal blocks fuse local temporal attention and Matrix Attention.

    Args:
        fuse_mode: of LocalGlobalAttention: ``concat``, ``sum``, ``gated`` or ``local``.

    The other arguments are those of FrameDiT.
    """

    def __init__(self, *args: Any, fuse_mode: str = "concat", **kwargs: Any):
        super().__init__(*args, **kwargs, _temporal_attention=partial(LocalGlobalAttention, fuse_mode=fuse_mode))
        self.config["fuse_mode"] = fuse_mode
