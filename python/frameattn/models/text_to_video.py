"""FrameDiTHT2V: FrameDiT-H for text to video (arXiv 2603.09721), Latte with Matrix Attention in its temporal blocks.

A model of diffusers, whose import takes seconds; frameattn.models therefore imports this file when it is asked for.
"""

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import LatteTransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import PatchEmbed, PixArtAlphaTextProjection, get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn

from frameattn.functional import modulated_layer_norm
from frameattn.models.latte import copy_latte, is_added_to_latte, latte_arguments, refuse
from frameattn.models.text_to_video_blocks import FUSE_MODES, LatteMatrixAttention, SpatialBlock, TemporalBlock
from frameattn.modules import Linear

LATTE_SUBFOLDER = "transformer"  # in a pipeline's folder
DROPPED = -10_000.0  # added to the logits of a text token that the mask drops


class FrameDiTHT2V(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """FrameDiT-H for text to video: noised latents [B, C, T, H, W] and a text -> noise (and variance).

    It has the weights and the call of diffusers' LatteTransformer3DModel, so it takes its place in LattePipeline; every
    temporal block attends by Matrix Attention, too. N = (sample_size / patch_size)^2 tokens in a frame, D =
    num_row_attn_heads * row_attn_head_dim channels.

    Args:
        col_dim: N.
        num_col_attn_heads, qk_col_attn_head_dim, v_col_attn_head_dim: heads of Matrix Attention along the tokens, and
            tokens of a head of query and key, and of value.
        num_row_attn_heads, row_attn_head_dim: heads along the channels, of all attentions.
        in_channels, out_channels: of the latents; out_channels = 2 in_channels predicts a variance, too.
        num_layers: pairs of a spatial and a temporal block.
        sample_size: side of the latents.
        patch_size: divides sample_size.
        caption_channels: of the text's embedding.
        cross_attention_dim: D; kept because Latte's configuration names it.
        attention_bias: of the query, key and value projections of the dense attentions.
        norm_eps: added to the variance in the LayerNorms of the blocks.
        use_bias, bias_type, u_type, u_norm_eps_outside: of MatrixLinear.
        fuse_mode: ``concat``, ``sum``, ``gated`` or ``local`` as in LocalGlobalAttention; ``global``: Matrix Attention
            alone.
        video_length: T.
        disable_matrix_attention: temporal attention alone, without norms, which is Latte.

    Attributes:
        config: these arguments.
        disable_matrix_attention: may be set at any time.
        num_frames: T.
        checkpointed_layers: with enable_gradient_checkpointing() so many first pairs of blocks are computed again in
            backward; all of them from the start.

    Raises:
        ValueError: sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["SpatialBlock", "TemporalBlock"]
    _repeated_blocks: ClassVar = ["SpatialBlock", "TemporalBlock"]
    _skip_layerwise_casting_patterns: ClassVar = ["pos_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        col_dim: int = 1024,
        num_col_attn_heads: int = 512,
        qk_col_attn_head_dim: int = 1,
        v_col_attn_head_dim: int = 2,
        num_row_attn_heads: int = 16,
        row_attn_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int = 8,
        num_layers: int = 28,
        sample_size: int = 64,
        patch_size: int = 2,
        caption_channels: int = 4096,
        cross_attention_dim: int = 1152,
        attention_bias: bool = True,
        norm_eps: float = 1e-6,
        use_bias: bool = True,
        bias_type: str = "col_row",
        u_type: str = "pure-softmax",
        fuse_mode: str = "concat",
        video_length: int = 16,
        disable_matrix_attention: bool = False,
        u_norm_eps_outside: bool = False,
    ):
        super().__init__()
        self._check_config()
        dim = num_row_attn_heads * row_attn_head_dim
        self.disable_matrix_attention = disable_matrix_attention
        self.num_frames = video_length
        self.gradient_checkpointing = False
        self.checkpointed_layers = num_layers

        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            interpolation_scale=max(1, sample_size // 64),
        )
        frames = torch.arange(video_length).unsqueeze(1)
        table = get_1d_sincos_pos_embed_from_grid(dim, frames, output_type="pt").float().unsqueeze(0)
        self.register_buffer("temp_pos_embed", table, persistent=False)
        self.adaln_single = AdaLayerNormSingle(dim)
        self.caption_projection = PixArtAlphaTextProjection(in_features=caption_channels, hidden_size=dim)

        self.transformer_blocks = nn.ModuleList(
            SpatialBlock(dim, num_row_attn_heads, attention_bias, norm_eps) for _ in range(num_layers)
        )
        self.temporal_transformer_blocks = nn.ModuleList()
        for _ in range(num_layers):
            attention = LatteMatrixAttention(
                dim,
                col_dim,
                qk_col_dim=num_col_attn_heads * qk_col_attn_head_dim,
                v_col_dim=num_col_attn_heads * v_col_attn_head_dim,
                num_row_heads=num_row_attn_heads,
                num_col_heads=num_col_attn_heads,
                attention_bias=attention_bias,
                fuse_mode=fuse_mode,
                bias=use_bias,
                bias_type=bias_type,
                u_type=u_type,
                u_norm_eps_outside=u_norm_eps_outside,
            )
            self.temporal_transformer_blocks.append(TemporalBlock(dim, attention, norm_eps))

        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = Linear(dim, patch_size**2 * out_channels)
        self.apply(_initialize_linear)

    @classmethod
    def from_latte(
        cls, latte: LatteTransformer3DModel | str | PathLike, freeze: bool = True, **options: Any
    ) -> "FrameDiTHT2V":
        """Latte's sizes and weights, with Matrix Attention beside them that has yet to be trained.

        With ``disable_matrix_attention`` set to True the model computes what Latte computes.

        Args:
            latte: diffusers' LatteTransformer3DModel, or what load_latte takes.
            freeze: what came from Latte has requires_grad False; the matrix branch, norm_local, norm_global,
                output_linear and the gates are trained.
            options: num_col_attn_heads (default: half of the tokens in a frame), qk_col_attn_head_dim,
                v_col_attn_head_dim, use_bias, bias_type, u_type, fuse_mode, u_norm_eps_outside, video_length (default:
                Latte's).

        Raises:
            ValueError: what in Latte's configuration or weights does not fit, all of it in one message.
            TypeError: another option, or another model.
            OSError: no such folder.
        """
        if isinstance(latte, (str, PathLike)):
            latte = cls.load_latte(latte)
        if not isinstance(latte, LatteTransformer3DModel):
            raise TypeError(
                f"{cls.__name__}: latte must be a LatteTransformer3DModel or its folder, got {type(latte).__name__}"
            )
        of_latte = next(latte.parameters())
        with of_latte.device:
            model = cls(**latte_arguments(latte.config, options))
        for tensor in model.state_dict(keep_vars=True).values():  # not the tables, whose rounding would stay
            tensor.data = tensor.data.to(of_latte.dtype)
        copy_latte(latte.state_dict(), model)
        if freeze:
            model.freeze_latte()
        return model

    @staticmethod
    def load_latte(path: str | PathLike) -> LatteTransformer3DModel:
        """LatteTransformer3DModel from its folder, from that of a pipeline, or from the hub.

        Raises:
            ValueError: weights are missing or of another shape.
            OSError: no such folder.
        """
        folder = Path(path)
        alone = folder.exists() and not (folder / LATTE_SUBFOLDER).is_dir()
        place = {} if alone else {"subfolder": LATTE_SUBFOLDER}
        latte, found = LatteTransformer3DModel.from_pretrained(path, output_loading_info=True, **place)
        refuse([f"missing {name}" for name in found["missing_keys"]], of=f"the Latte in {path}")  # diffusers only warns
        return latte

    def freeze_latte(self) -> None:
        """requires_grad of what Matrix Attention adds to Latte, and of nothing else."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_added_to_latte(name))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_image_num: int = 0,
        enable_temporal_attentions: bool = True,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predicts noise (and variance) of a batch of noised clips.

        Args:
            hidden_states: [B, C, T + use_image_num, H, W]; T at most video_length.
            timestep: [B], diffusion steps.
            encoder_hidden_states: text [B, L, caption_channels]; with images [B, 1 + use_image_num, L,
                caption_channels], the video's first.
            encoder_attention_mask: which tokens of the text there are, 1 or 0: [B, L], with images [B, 1 +
                use_image_num, L].
            use_image_num: so many last frames are still images: they pass the spatial blocks only.
            enable_temporal_attentions: with False no frame passes a temporal block.
            added_cond_kwargs: must be empty; the model knows no conditions on sizes.

        Returns:
            ``sample`` [B, out_channels, T + use_image_num, H, W], or without return_dict a tuple with it.

        Raises:
            ValueError: shapes do not fit the model; the message names what came.
        """
        self._check_input(
            hidden_states,
            timestep,
            encoder_hidden_states,
            encoder_attention_mask,
            use_image_num,
            enable_temporal_attentions,
            added_cond_kwargs,
        )
        assert timestep is not None and encoder_hidden_states is not None  # _check_input saw to it
        clips = len(hidden_states)
        frames = hidden_states.size(2) - use_image_num
        height, width = (size // self.config.patch_size for size in hidden_states.shape[-2:])
        patches = self.pos_embed(hidden_states.transpose(1, 2).flatten(0, 1))
        # PatchEmbed's lie by channels, for which compile_repeated_blocks would compile the first block anew.
        tokens = patches.unflatten(0, (clips, -1)).contiguous()
        modulation, step = self.adaln_single(timestep.expand(clips), batch_size=clips, hidden_dtype=tokens.dtype)
        modulation = modulation.unflatten(1, (6, -1))
        text, bias = self.caption_projection(encoder_hidden_states), None
        if encoder_attention_mask is not None:
            bias = (1 - encoder_attention_mask.to(tokens.dtype)) * DROPPED
        if not use_image_num:
            text, bias = text.unsqueeze(1), None if bias is None else bias.unsqueeze(1)

        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for i, (spatial_block, temporal_block) in enumerate(blocks):
            tokens = self._run(i, spatial_block, tokens, modulation, text, bias)
            if not enable_temporal_attentions:
                continue
            video, images = tokens.split([frames, use_image_num], dim=1)
            if i == 0 and frames > 1:
                video = video + self.temp_pos_embed[:, :frames].unsqueeze(2).to(video.dtype)
            video = self._run(i, temporal_block, video, modulation, self.disable_matrix_attention)
            tokens = torch.cat([video, images], dim=1) if use_image_num else video

        shift, scale = (self.scale_shift_table + step.unsqueeze(1)).chunk(2, dim=1)
        patches = self.proj_out(modulated_layer_norm(tokens, shift, scale))
        output = self._unpatchify(patches, height, width)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _run(self, layer: int, block: nn.Module, *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and layer < self.checkpointed_layers and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def _unpatchify(self, patches: Tensor, height: int, width: int) -> Tensor:
        """[B, F, h w, p p C] -> [B, C, F, H, W]."""
        p = self.config.patch_size
        patches = patches.unflatten(-1, (p, p, -1)).unflatten(2, (height, width))  # B F h w p q C
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _check_config(self) -> None:
        config, name = self.config, type(self).__name__
        for key, value in config.items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name}: {key} must be at least 1, got {value}")
        side, rest = divmod(config.sample_size, config.patch_size)
        dim = config.num_row_attn_heads * config.row_attn_head_dim
        if rest:
            raise ValueError(
                f"{name}: patch_size must divide sample_size = {config.sample_size}, got {config.patch_size}"
            )
        if config.col_dim != side**2:
            raise ValueError(
                f"{name}: col_dim must be the tokens of a frame, (sample_size / patch_size)^2 = {side**2}, got "
                f"{config.col_dim}"
            )
        if config.cross_attention_dim != dim:
            raise ValueError(
                f"{name}: cross_attention_dim must be num_row_attn_heads * row_attn_head_dim = {dim}, got "
                f"{config.cross_attention_dim}"
            )
        if dim % 4:
            raise ValueError(f"{name}: the channels must be a multiple of 4 (sines, cosines of 2 axes), got {dim}")
        if config.fuse_mode not in FUSE_MODES:
            raise ValueError(f"{name}: fuse_mode must be one of {', '.join(FUSE_MODES)}, got {config.fuse_mode!r}")

    def _check_input(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None,
        text: Tensor | None,
        mask: Tensor | None,
        use_image_num: int,
        has_temporal_attentions: bool,
        added_cond_kwargs: dict[str, Any] | None,
    ) -> None:
        config, name = self.config, type(self).__name__
        if use_image_num < 0:
            raise ValueError(f"{name}: use_image_num must be at least 0, got {use_image_num}")
        if any(value is not None for value in (added_cond_kwargs or {}).values()):
            raise ValueError(f"{name}: added_cond_kwargs must be empty, got {', '.join(added_cond_kwargs or {})}")
        p = config.patch_size
        if (
            hidden_states.dim() != 5
            or hidden_states.size(1) != config.in_channels
            or not 1 <= hidden_states.size(2) - use_image_num <= config.video_length
            or hidden_states.size(3) % p
            or hidden_states.size(4) % p
        ):
            images = f" + use_image_num = {use_image_num}" if use_image_num else ""
            raise ValueError(
                f"{name}: hidden_states must be [B, C, T, H, W] with C = {config.in_channels}, T in "
                f"1..{config.video_length}{images}, H and W multiples of {p}, got {list(hidden_states.shape)}"
            )
        tokens = (hidden_states.size(3) // p) * (hidden_states.size(4) // p)
        has_matrices = config.fuse_mode == "global" or not (
            config.fuse_mode == "local" or self.disable_matrix_attention
        )
        if has_temporal_attentions and has_matrices and tokens != config.col_dim:
            raise ValueError(
                f"{name}: Matrix Attention is made for {config.col_dim} tokens in a frame, got {tokens} of "
                f"hidden_states {list(hidden_states.shape)}"
            )
        clips = len(hidden_states)
        if not isinstance(timestep, Tensor) or timestep.shape not in ((), (1,), (clips,)):
            got = list(timestep.shape) if isinstance(timestep, Tensor) else timestep
            raise ValueError(f"{name}: timestep must be steps [B] = [{clips}], got {got}")
        texts = [clips, 1 + use_image_num] if use_image_num else [clips]
        if text is None or text.dim() < 2 or list(text.shape) != [*texts, text.shape[-2], config.caption_channels]:
            raise ValueError(
                f"{name}: encoder_hidden_states must be {_written(*texts, 'L', config.caption_channels)}, got "
                f"{None if text is None else list(text.shape)}"
            )
        if mask is not None and mask.shape != text.shape[:-1]:
            raise ValueError(f"{name}: encoder_attention_mask must be {list(text.shape[:-1])}, got {list(mask.shape)}")


def _initialize_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _written(*shape: int | str) -> str:
    return f"[{', '.join(map(str, shape))}]"
