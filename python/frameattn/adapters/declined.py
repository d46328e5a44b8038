"""Models whose attention stays dense, and why. The reason is what apply() raises, behind the name of the class."""

_IMAGE = "makes images, and attention within one frame is what VMonarch computes densely"
_AUDIO = "makes sound; its tokens are no frames"

_VIDEO = {
    "AnyFlowFARTransformer3DModel": "attends causally to a cache of chunks, under a mask over video keys",
    "Cosmos3OmniTransformer": "packs text, images and videos of several sizes into one sequence, causal in part",
    "HeliosTransformer3DModel": "puts history frames of three patch sizes ahead of the video: no grid of tokens",
    "HunyuanVideoFramepackTransformer3DModel": "puts history frames of several patch sizes ahead: no grid of tokens",
    "Kandinsky6SRTransformer3DModel": "attends under a block mask that it chooses at every call",
    "Kandinsky6Transformer3DModel": "attends jointly with further streams, under a mask",
    "LatteTransformer3DModel": "attends within frames and between them in turn, where VMonarch equals dense attention; "
    "Matrix Attention is for such models (frameattn.models)",
    "SanaVideoTransformer3DModel": "its self-attention is linear already",
    "SanaWMLTX2RefinerTransformer3DModel": "attends to context frames beside the video, under a mask",
    "SanaWMTransformer3DModel": "its self-attention is linear or recurrent already",
    "TransformerTemporalModel": "attends between the frames at one position, where VMonarch equals dense attention",
    "WanAnimate2Transformer3DModel": "attends to cached reference tokens, under a block mask",
}

_IMAGES = (
    "AuraFlowTransformer2DModel",
    "BriaFibo2Transformer2DModel",
    "BriaFiboTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "CogView3PlusTransformer2DModel",
    "CogView4Transformer2DModel",
    "DiTTransformer2DModel",
    "DreamLiteTransformer2DModel",
    "ErnieImageTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "GlmImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Krea2Transformer2DModel",
    "LongCatImageTransformer2DModel",
    "LuminaNextDiT2DModel",
    "Lumina2Transformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "OmniGenTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "Transformer2DModel",
    "UNet2DConditionModel",
    "UVit2DModel",
    "ZImageTransformer2DModel",
)

_SOUNDS = (
    "AceStepTransformer1DModel",
    "LongCatAudioDiTTransformer",
    "MiniMaxMusic3Transformer1DModel",
    "StableAudioDiTModel",
)

DECLINED: dict[str, str] = {
    f"diffusers.{name}": why
    for name, why in {**_VIDEO, **dict.fromkeys(_IMAGES, _IMAGE), **dict.fromkeys(_SOUNDS, _AUDIO)}.items()
}
