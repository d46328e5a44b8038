"""The configuration of a training run: its keys, their types and defaults."""

from dataclasses import dataclass, field
from typing import Any, Literal

from frameattn._errors import UsageError


@dataclass
class Named:
    """A model or data set: its registered name and the arguments it is created with."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.arguments}


@dataclass
class Diffusion:
    """The arguments of GaussianDiffusion."""

    learn_sigma: bool = True
    predict_xstart: bool = False
    sigma_small: bool = False
    max_snr_weight: float | None = None


@dataclass
class Sampling:
    """Defaults of ``frameattn sample`` that the checkpoint carries."""

    steps: int = 250
    method: Literal["ddpm", "ddim", "dpm"] = "ddpm"
    cfg: float = 1.0


TEXT_SAMPLING = Sampling(steps=50, method="ddim", cfg=7.5)  # of text to video, as Latte's pipeline


@dataclass
class Stage:
    """A part of the training: ``steps`` steps on ``batch`` clips of ``frames`` frames and ``images`` still images."""

    steps: int
    batch: int
    frames: int
    images: int = 0


@dataclass
class Config:
    """A training run. Without ``stages`` it is one, of all the model's frames: ``steps``, ``batch``, ``images``."""

    data: Named
    model: Named = field(default_factory=lambda: Named("FrameDiTG-XL/128-512/2"))
    diffusion: Diffusion = field(default_factory=Diffusion)
    init: str | None = None  # a checkpoint whose weights training starts from
    latte: str | None = None  # text to video: the Latte that the model starts from, a folder or a name on the hub
    freeze_latte: bool | None = None  # train what Matrix Attention adds to it alone; by default where there is a latte
    seed: int = 0
    lora: int = 0  # rank of a LoRA that is trained instead of the weights; 0: none
    lora_alpha: float | None = None  # the rank, if None
    lora_targets: list[str] | None = None  # ends of the names of linear layers; those of the attentions, if None

    stages: list[Stage] | None = None
    steps: int = 1_000_000
    batch: int = 4  # clips of a micro-batch, of all processes together
    images: int = 0
    accumulation: int = 1  # micro-batches of a step
    stratified_timesteps: bool = False  # t spread evenly over the batch

    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    final_fraction: float = 0.01  # where cosine ends, as a fraction of learning_rate
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = 0.1
    clip_start: int = 20_000  # first step whose gradient is clipped
    ema_decay: float = 0.9999
    ema_every: int = 1  # steps between two updates of the average

    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    compile: bool = False
    shard: bool = False  # of several processes each keeps a part of the model (FSDP2), not all of it (DDP)
    checkpoint_blocks: int = 0  # so many first pairs of blocks are computed again in backward
    workers: int = 0  # processes that prepare data

    log_every: int = 100
    save_every: int = 10_000
    checkpoint_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        requirements = {
            "at least 0": [
                (key, getattr(self, key) >= 0) for key in ("seed", "images", "warmup", "checkpoint_blocks", "lora")
            ],
            "at least 1": [
                (key, getattr(self, key) >= 1)
                for key in ("steps", "batch", "accumulation", "ema_every", "log_every", "save_every")
            ],
            "more than 0": [
                ("learning_rate", self.learning_rate > 0),
                ("clip_norm", self.clip_norm is None or self.clip_norm > 0),
            ],
            "in 0..1": [("final_fraction", 0 <= self.final_fraction <= 1)],
            "0 or more, less than 1": [
                ("ema_decay", 0 <= self.ema_decay < 1),
                ("betas", all(0 <= beta < 1 for beta in self.betas)),
            ],
        }
        for requirement, keys in requirements.items():
            for key, met in keys:
                if not met:
                    raise UsageError(f"{key} must be {requirement}, got {getattr(self, key)}")
        if not self.lora and (self.lora_alpha is not None or self.lora_targets is not None):
            raise UsageError("lora_alpha and lora_targets go with lora, the rank")
        for i, stage in enumerate(self.stages or []):
            if min(stage.steps, stage.batch, stage.frames + stage.images) < 1 or min(stage.frames, stage.images) < 0:
                raise UsageError(f"stages[{i}] needs steps >= 1, batch >= 1 and frames + images >= 1, got {stage}")

    def plan(self, num_frames: int) -> list[Stage]:
        """The stages of the run for a model of num_frames frames."""
        return self.stages or [Stage(steps=self.steps, batch=self.batch, frames=num_frames, images=self.images)]
