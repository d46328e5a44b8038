"""The training loop: AdamW on the diffusion loss, an exponential moving average of the weights, files to resume from.

A run is a function of its configuration: state.pt holds weights, average, optimizer and the step's number, and all
that is random is seeded by that number (draws.py). Stopped and resumed on a CPU it gives the same bits, and several
processes (processes.py) give what one does but for the order of sums: a batch is shared out among them.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
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
from frameattn.models.framedit import CLASSES, NO_CONDITION, FrameDiT
from frameattn.models.lora import FILE_NAME, default_targets, save_lora, without_lora
from frameattn.training.config import Config
from frameattn.training.config_io import config_values
from frameattn.training.draws import Draw, Draws, TextDraws, stage_at
from frameattn.training.files import check_same_latents, replacing
from frameattn.training.log import Log
from frameattn.training.processes import ALONE, Processes, gathered, local, scattered, whole, without_averaging
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
        processes: Processes = ALONE,
    ):
        self.config = config
        self.model = model.train()
        self.folder = folder
        self.device = device
        self.processes = processes
        takes_text = not isinstance(model, FrameDiT)
        self.stages = config.plan(model.num_frames)
        self.total_steps = sum(stage.steps for stage in self.stages)
        self.diffusion = GaussianDiffusion(**vars(config.diffusion), channel_dim=1 if takes_text else 2)
        kind, extras = (TextDraws, NO_CONDITION) if takes_text else (Draws, model.config["extras"])
        null_class, dropout = 0, 0.0
        if extras == CLASSES:
            null_class, dropout = model.config["num_classes"], model.config["class_dropout_prob"]
            model.y_embedder.eval()  # labels are dropped when they are drawn, each clip's by its own seed
        timesteps, share = self.diffusion.num_timesteps, (processes.rank, processes.count)
        self.draws: Draws = kind(dataset, config, self.stages, timesteps, extras, null_class, dropout, *share)
        self.encoded: dict[str, Any] = getattr(dataset, "facts", {})  # what the latents are
        all_used = all(stage.frames for stage in self.stages)  # images pass no temporal block
        self.forward = processes.distribute(self.model, device, config.shard, config.compile, all_used)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0

    def run(self) -> int | None:
        """Trains to the last step or to a signal, whose number is returned."""
        processes = self.processes
        log = Log(self.folder, self.step) if processes.first else None
        totals, steps_in_totals, started = None, 0, time.monotonic() - self.seconds
        disable = None if processes.first else True
        bar = require("tqdm").tqdm(total=self.total_steps, initial=self.step, unit="step", disable=disable)
        with stop_signals(repeated=processes.count > 1) as received, bar:
            batches = self._batches()
            stopping = 0  # the number of a signal
            while self.step < self.total_steps and not stopping:
                losses, gradient_norm = self._train_step(batches)
                self.step += 1
                self.seconds = time.monotonic() - started
                totals = losses if totals is None else totals + losses
                steps_in_totals += 1
                bar.update()

                # Once a step: a signal that comes later ends the next step.
                stopping = processes.largest(received[0] if received else 0)
                saving = stopping or self.step == self.total_steps or self.step % self.config.save_every == 0
                if saving or self.step % self.config.log_every == 0:
                    means = processes.mean(totals / steps_in_totals).tolist()
                    totals, steps_in_totals = None, 0
                    self._report(log, bar, dict(zip(self._loss_names(), means, strict=True)), gradient_norm.item())
                if saving:  # after the report, which refuses weights that are not finite
                    self.save()
                    if log:
                        log.plot()
        return stopping if self.step < self.total_steps else None

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, ...: linear warmup, then constant or cosine over the whole run."""
        config = self.config
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
        if config.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
            rate *= config.final_fraction + (1 - config.final_fraction) * fall
        return rate

    def save(self) -> None:
        """Writes state.pt, to resume from, and checkpoint.safetensors, the averaged weights to sample from.

        Several processes call it together and the first one writes. Where they shard the model, it gathers all of the
        state in its own CPU memory: 16 bytes for each trained parameter. The files are those of a single process.
        """
        tensors = {"model": self.model.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict()}
        state = gathered(tensors, keep=self.processes.first)
        if self.processes.first:
            self._write(state)
        self.processes.largest(0)  # those that wait here do not wait in a collective of a GPU, which times out

    def _write(self, tensors: dict[str, Any]) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": config_values(self.config),
            "encoded": self.encoded,
        }
        with replacing(self.folder / "state.pt") as path:
            torch.save({**tensors, **state}, path)
        dtype = getattr(torch, self.config.checkpoint_dtype)
        weights = {**tensors["model"], **tensors["ema"]}
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
                lora=self.config.lora,
            )

    def load(self, state: dict[str, Any]) -> None:
        """Continues from the contents of state.pt, whatever number of processes wrote it.

        Raises:
            UsageError: the run was trained on latents of another VAE, or trained other weights.
        """
        if state["ema"].keys() != self.ema.keys():
            raise UsageError(
                f"{self.folder} trains {len(state['ema'])} tensors, not {len(self.ema)}: freeze_latte is another one"
            )
        check_same_latents(self.encoded, state.get("encoded", {}), f"{self.folder} was trained")
        own = self.model.state_dict()
        self.model.load_state_dict({k: scattered(v, own[k]) if k in own else v for k, v in state["model"].items()})
        for name, average in self.ema.items():
            average.copy_(scattered(state["ema"][name], average))
        parameters = list(self.parameters.values())
        moments = {
            i: {key: scattered(value, parameters[i]) for key, value in of_parameter.items()}
            for i, of_parameter in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
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
        count = self.processes.count
        self.model.num_frames = stage.frames  # which FrameDiT asks for
        totals = torch.zeros(len(self._loss_names()), device=self.device)
        for micro in range(config.accumulation):
            x, conditions, t, noise = self._moved(next(batches))
            if stage.images:
                conditions["use_image_num"] = stage.images
            last = micro == config.accumulation - 1
            with nullcontext() if last else without_averaging(self.forward):
                losses = self.diffusion.training_losses(self._autocast_model, x, t, conditions, noise)
                sums = torch.stack([losses[name].sum() for name in self._loss_names()])
                # The mean over processes is that of all clips, also where some have one more of them.
                means = sums * (count / (stage.batch * config.accumulation))
                means[0].backward()
            totals = totals + means.detach()

        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        gradient_norm = whole(nn.utils.get_total_norm(gradients))
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
        averages, parameters = ([local(tensor) for tensor in d.values()] for d in (self.ema, self.parameters))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def _loss_names(self) -> list[str]:
        return ["loss", "mse", "vb"] if self.config.diffusion.learn_sigma else ["loss", "mse"]

    def _report(self, log: Log | None, bar: Any, means: dict[str, float], gradient_norm: float) -> None:
        if not all(map(math.isfinite, [*means.values(), gradient_norm])):
            raise UsageError(
                f"loss or gradient is not finite at step {self.step} (loss {means['loss']}, gradient norm "
                f"{gradient_norm}): lower learning_rate or clip_norm; {self.folder / 'state.pt'} is of an earlier step"
            )
        if log is None:
            return
        rate = self.learning_rate(self.step - 1)
        log.append(step=self.step, **means, learning_rate=rate, gradient_norm=gradient_norm, seconds=self.seconds)
        text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        if bar.disable:
            print(f"step {self.step}/{self.total_steps} {text} lr {rate:.2e} {self.seconds:.0f} s", flush=True)
        else:
            bar.set_postfix_str(text)
