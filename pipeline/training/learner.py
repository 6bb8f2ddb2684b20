"""One model being trained: its objective, optimizer and average, and what a single optimizer step does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilledge.models import training
from distilledge.models.errors import ResourceError
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.training.average import Average
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.schedule import lr_factor, make_optimizer, set_lr
from distilledge.pipeline.training.watch import is_out_of_memory

log = logging.getLogger("distilledge.training")


class Learner:
    """``steps``: optimizer steps of the whole training; ``warmup_steps``: those with a rising learning rate."""

    def __init__(
        self, objective: Objective, settings: Training, accelerator: Accelerator, *, steps: int, warmup_steps: int
    ) -> None:
        self.objective, self.settings, self.accelerator = objective, settings, accelerator
        self.schedule: Callable[[int], float] = lambda number: lr_factor(
            number, steps, warmup_steps, settings.min_lr_ratio
        )
        """Step of the whole training -> share of the peak learning rate."""
        self.parts = 1
        optimizer = make_optimizer(objective.model, list(objective.extra_parameters()), settings, objective.tuning)
        if settings.channels_last:
            objective.to(memory_format=torch.channels_last)
        objective.to(accelerator.device)
        if objective.guide is not None:
            objective.guide.to(accelerator.device, channels_last=settings.channels_last, compiled=settings.compile)
        self.average = Average(objective.model, settings.ema) if settings.ema is not None else None
        if settings.compile:
            objective.model.compile()
        self._forward, self._optimizer = accelerator.prepare(objective, optimizer)
        self._trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._buffers = [b for b in objective.model.buffers() if b.is_floating_point()]

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.objective.model if self.average is None else self.average.model

    def kept(self) -> dict[str, Tensor]:
        """A copy of the evaluated model's state on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.evaluated.state_dict().items()}

    def train_mode(self, epoch: int, values: Sequence[float]) -> None:
        """``values``: the metric of each epoch before this one."""
        self.objective.train()
        if self.objective.tuning is not None:
            self.objective.tuning.begin_epoch(self.objective.model, epoch, values)
        else:
            training.train_mode(self.objective.model, freeze_backbone=self.settings.freeze_backbone)
        if self.settings.batch_norm == "frozen":
            training.freeze_norms(self.objective.model)

    def step(self, batch: Batch, number: int, seed: int) -> float:
        """One optimizer step, ``number`` of the whole training (from 0); returns the loss.

        Where the loss or the gradient is not finite, nothing is changed (batch statistics neither) and NaN is returned.
        Raises ``ResourceError`` when memory ends, unless ``auto_batch`` finds a size that fits.
        """
        set_lr(self._optimizer.optimizer, self.schedule(number))
        before = [b.clone() for b in self._buffers] if self.settings.on_nan == "skip" else []
        loss = self._gradients(batch, seed)
        if not math.isfinite(loss):
            self._optimizer.zero_grad()
            for buffer, value in zip(self._buffers, before, strict=False):
                buffer.copy_(value)
            return math.nan
        self._optimizer_step()
        if self.average is not None:
            self.average.update(self.objective.model, number)
        return loss

    @property
    def lr(self) -> float:
        """The largest learning rate of the last step."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def _gradients(self, batch: Batch, seed: int) -> float:
        """Gradients of the mean loss, in ``parts`` pieces of the batch; more of them each time memory ends."""
        while True:
            try:
                return self._accumulate(batch, seed)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._halve(len(batch.inputs), failure)

    def _accumulate(self, batch: Batch, seed: int) -> float:
        self._seed(seed)
        total = len(batch.inputs)
        size = math.ceil(total / self.parts)
        losses = []
        for start in range(0, total, size):
            piece = batch.part(slice(start, start + size))
            last = start + size >= total
            with nullcontext() if last else self.accelerator.no_sync(self._forward):
                losses.append(self._piece(piece, len(piece.inputs) / total))
        return self._checked(losses)

    def _piece(self, piece: Batch, share: float) -> Tensor:
        """Add the gradients of a piece that is ``share`` of the step; returns its part of the loss."""
        loss: Tensor = self._forward(piece) * share
        if self.accelerator.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(loss)
        return loss.detach()

    def _optimizer_step(self) -> None:
        """The same as Accelerate's, which looks for packages on the disk in each step, where no scaler is in use."""
        optimizer = self._optimizer if self.accelerator.scaler is not None else self._optimizer.optimizer
        optimizer.step()
        optimizer.zero_grad()

    def _seed(self, seed: int) -> None:
        """Of the devices in use: ``torch.manual_seed`` keeps a stack trace for each of the others, in each step."""
        if self.accelerator.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _checked(self, losses: list[Tensor]) -> float:
        """The step's loss; NaN where it or (but for fp16, whose scaler sees to that) the gradient is not finite.

        The only point of a step at which a GPU is waited for. Processes agree, because gradients are shared.
        """
        norm = self.accelerator.clip_grad_norm_(self._trained, self.settings.max_grad_norm or math.inf)
        loss = torch.stack(losses).sum()
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "mean")
        total, size = torch.stack([loss, norm.to(loss)]).tolist()
        return float(total) if self.settings.precision == "fp16" or math.isfinite(size) else math.nan

    def _halve(self, samples: int, failure: str) -> None:
        size = math.ceil(samples / self.parts)
        if not self.settings.auto_batch or size == 1 or self.accelerator.num_processes > 1:
            fitted = (
                f"{math.ceil(samples / (self.parts // 2))} fitted before" if self.parts > 1 else "none has fitted yet"
            )
            raise ResourceError(
                "E9602",
                f"out of memory with {size} samples at a time ({fitted}): {failure}",
                f"set `batch_size: {max(1, size // 2)}` with `accumulate: {2 * self.parts}`, or `auto_batch: true`",
            )
        self.parts *= 2
        self._optimizer.zero_grad()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("out of memory with %d samples at a time: going on in %d pieces of a step", size, self.parts)

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers, for ``restore``."""
        scaler = self.accelerator.scaler
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
