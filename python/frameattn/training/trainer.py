"""The training loop: AdamW on the diffusion loss, an exponential moving average of the weights, files to resume from.

A run is a function of its configuration: state.pt holds weights, average, optimizer and the step's number, and all
that is random is seeded by that number (draws.py). Stopped and resumed on a CPU it gives the same bits.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frameattn._errors import UsageError
from frameattn._optional import require
from frameattn.data import LatentClips, VideoDataset
from frameattn.diffusion import GaussianDiffusion
from frameattn.models import save_checkpoint
from frameattn.models.framedit import FrameDiT
from frameattn.models.lora import FILE_NAME, default_targets, save_lora, without_lora
from frameattn.training.config import Config
from frameattn.training.config_io import config_values
from frameattn.training.draws import Draw, Draws, TextDraws, seed_of, stage_at
from frameattn.training.files import check_same_latents, replacing
from frameattn.training.log import Log
from frameattn.training.signals import leave_signals_to_parent, stop_signals

if TYPE_CHECKING:
    from frameattn.models import FrameDiTHT2V


class Trainer:
    """Trains model on dataset as config says and keeps its files in folder.

    A FrameDiT takes clips [B, T, C, H, W] and the labels of its data set; FrameDiTHT2V takes [B, C, T, H, W] and texts.
    """

    def __init__(
        self,
        config: Config,
        model: "FrameDiT | FrameDiTHT2V",
        dataset: VideoDataset | LatentClips,
        folder: Path,
        device: torch.device,
    ):
        self.config = config
        self.model = model.to(device).train()
        self.folder = folder
        self.device = device
        takes_text = not isinstance(model, FrameDiT)
        self.stages = config.plan(model.num_frames)
        self.total_steps = sum(stage.steps for stage in self.stages)
        self.diffusion = GaussianDiffusion(**vars(config.diffusion), channel_dim=1 if takes_text else 2)
        timesteps = self.diffusion.num_timesteps
        if takes_text:
            self.draws: Draws = TextDraws(dataset, config, self.stages, timesteps)
        else:
            self.draws = Draws(dataset, config, self.stages, timesteps, model.config["extras"])
        self.encoded: dict[str, Any] = getattr(dataset, "facts", {})  # what the latents are
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.step = 0
        self.seconds = 0.0

    def run(self) -> int | None:
        """Trains to the last step or to a signal, whose number is returned."""
        log = Log(self.folder, self.step)
        totals, steps_in_totals, started = None, 0, time.monotonic() - self.seconds
        bar = require("tqdm").tqdm(total=self.total_steps, initial=self.step, unit="step", disable=None)
        with stop_signals() as received, bar:
            batches = self._batches()
            stopping = False
            while self.step < self.total_steps and not stopping:
                losses, gradient_norm = self._train_step(batches)
                self.step += 1
                self.seconds = time.monotonic() - started
                totals = losses if totals is None else totals + losses
                steps_in_totals += 1
                bar.update()

                stopping = bool(received)  # once a step: a signal that comes later ends the next step
                saving = stopping or self.step == self.total_steps or self.step % self.config.save_every == 0
                if saving or self.step % self.config.log_every == 0:
                    means = dict(zip(self._loss_names(), (totals / steps_in_totals).tolist(), strict=True))
                    totals, steps_in_totals = None, 0
                    self._report(log, bar, means, gradient_norm.item())
                if saving:  # after the report, which refuses weights that are not finite
                    self.save()
                    log.plot()
        return received[0] if stopping and self.step < self.total_steps else None

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, ...: linear warmup, then constant or cosine over the whole run."""
        config = self.config
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
        if config.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
            rate *= config.final_fraction + (1 - config.final_fraction) * fall
        return rate

    def save(self) -> None:
        """Writes state.pt, to resume from, and checkpoint.safetensors, the averaged weights to sample from."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "config": config_values(self.config),
            "encoded": self.encoded,
        }
        with replacing(self.folder / "state.pt") as path:
            torch.save(state, path)
        dtype = getattr(torch, self.config.checkpoint_dtype)
        weights = {**self.model.state_dict(), **self.ema}
        weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
        if rank := self.config.lora:
            alpha, targets = self.config.lora_alpha, self.config.lora_targets
            with replacing(self.folder / FILE_NAME) as path:
                save_lora(weights, path, rank, alpha or rank, targets or default_targets(self.model))
        with replacing(self.folder / "checkpoint.safetensors") as path:
            save_checkpoint(
                without_lora(weights),
                path,
                name=self.config.model.name,
                arguments=self.config.model.arguments,
                diffusion=vars(self.config.diffusion),
                data=self.config.data.flat(),
                fps=getattr(self.draws.dataset, "frame_rate", None),
                sampling=vars(self.config.sampling),
                step=self.step,
                encoded=self.encoded,
            )

    def load(self, state: dict[str, Any]) -> None:
        """Continues from the contents of state.pt.

        Raises:
            UsageError: the run was trained on latents of another VAE, or trained other weights.
        """
        if state["ema"].keys() != self.ema.keys():
            raise UsageError(
                f"{self.folder} trains {len(state['ema'])} tensors, not {len(self.ema)}: freeze_latte is another one"
            )
        check_same_latents(self.encoded, state.get("encoded", {}), f"{self.folder} was trained")
        self.model.load_state_dict(state["model"])
        for name, average in self.ema.items():
            average.copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.seconds = state["seconds"]

    def _batches(self) -> Iterator[Draw]:
        accumulation = self.config.accumulation
        return iter(
            DataLoader(
                self.draws,
                batch_size=None,
                sampler=range(self.step * accumulation, self.total_steps * accumulation),
                num_workers=self.config.workers,
                worker_init_fn=leave_signals_to_parent,
                pin_memory=self.device.type == "cuda",
            )
        )

    def _train_step(self, batches: Iterator[Draw]) -> tuple[Tensor, Tensor]:
        """One step of the optimizer. Returns the means of the losses and the norm of the gradient before clipping."""
        config, stage = self.config, stage_at(self.stages, self.step)
        self.model.num_frames = stage.frames  # which FrameDiT asks for
        totals = torch.zeros(len(self._loss_names()), device=self.device)
        for micro in range(config.accumulation):
            x, conditions, t, noise = self._moved(next(batches))
            if stage.images:
                conditions["use_image_num"] = stage.images
            torch.manual_seed(seed_of(config.seed, self.step, micro, 1))  # for what the model draws: dropped labels
            losses = self.diffusion.training_losses(self._autocast_model, x, t, conditions, noise)
            means = torch.stack([losses[name].mean() for name in self._loss_names()]) / config.accumulation
            means[0].backward()
            totals = totals + means.detach()

        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if config.clip_norm is not None and self.step >= config.clip_start:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), config.clip_norm, gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        return totals, gradient_norm

    def _autocast_model(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.forward(x, t, **kwargs)

    def _moved(self, batch: Draw) -> tuple[Tensor, dict[str, Any], Tensor, Tensor]:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        conditions = {name: moved(tensor) for name, tensor in batch.conditions.items()}
        return moved(batch.x), conditions, moved(batch.t), moved(batch.noise)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average follows faster: the first weights would otherwise stay in it for 1 / (1 - decay) steps.
        every = self.config.ema_every
        if (self.step + 1) % every:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step)) ** every
        torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)

    def _loss_names(self) -> list[str]:
        return ["loss", "mse", "vb"] if self.config.diffusion.learn_sigma else ["loss", "mse"]

    def _report(self, log: Log, bar: Any, means: dict[str, float], gradient_norm: float) -> None:
        if not all(map(math.isfinite, [*means.values(), gradient_norm])):
            raise UsageError(
                f"loss or gradient is not finite at step {self.step} (loss {means['loss']}, gradient norm "
                f"{gradient_norm}): lower learning_rate or clip_norm; {self.folder / 'state.pt'} is of an earlier step"
            )
        rate = self.learning_rate(self.step - 1)
        log.append(step=self.step, **means, learning_rate=rate, gradient_norm=gradient_norm, seconds=self.seconds)
        text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        if bar.disable:
            print(f"step {self.step}/{self.total_steps} {text} lr {rate:.2e} {self.seconds:.0f} s", flush=True)
        else:
            bar.set_postfix_str(text)
