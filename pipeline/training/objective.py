"""What a training minimises: views and targets -> loss. Holds the model and the learned parts of its losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from distilledge.models.features import FeatureTap, Outputs
from distilledge.models.losses_total import DistillationLoss
from distilledge.models.penalties import Penalty
from distilledge.models.tasks import IGNORED, TASKS, Task
from distilledge.models.transfer import Tuning
from distilledge.pipeline.training.mixing import Batch

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tap(Protocol):
    """Records what the losses look at inside of a model: ``FeatureTap`` of pictures, ``TextTap`` of texts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def outputs(self, logits: Tensor) -> Outputs: ...


class Guide:
    """A teacher that answers: in eval mode, without gradients, in its own precision; neither trained nor saved."""

    def __init__(
        self, model: nn.Module, to_input: nn.Module, tap: Tap, *, precision: str, columns: Tensor | None = None
    ) -> None:
        """``columns``: of the logits that are kept, in order; None: all."""
        self.model = model.eval().requires_grad_(False)
        self.to_input, self.tap, self._dtype, self._columns = to_input, tap, AUTOCAST[precision], columns

    def to(self, device: torch.device, *, channels_last: bool, compiled: bool) -> None:
        self.model.to(device)
        self.to_input.to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            self.model.compile()

    @torch.no_grad()  # not inference mode: the student's loss keeps these tensors for its gradient
    def __call__(self, inputs: Tensor, where: Tensor | None) -> Outputs:
        lower = self._dtype != torch.float32
        with torch.autocast(inputs.device.type, dtype=self._dtype if lower else torch.bfloat16, enabled=lower):
            logits = answer(self.model, self.to_input(inputs), where)
        if self._columns is not None:
            logits = logits[:, self._columns.to(logits.device)]
        return in_float(self.tap.outputs(logits))


class Objective(nn.Module):
    """``loss`` of the model's outputs, and of the guide's for the same views; without a guide, of the labels alone.

    ``task`` says which rows of the outputs are compared with which targets; ``tuning``, which parts are trained (None:
    by the training's settings); ``penalty`` is added to the loss, and so is ``auxiliary``, a function of the embedding,
    the targets and the share of the training that is done, with parameters of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        to_input: nn.Module,
        loss: DistillationLoss,
        guide: Guide | None = None,
        *,
        tap: Tap | None = None,
        task: str = "image-classification",
        tuning: Tuning | None = None,
        penalty: Penalty | None = None,
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.to_input, self.loss = model, to_input, loss
        self._guides = () if guide is None else (guide,)  # in a tuple, so that it is no submodule
        self._tap = tap or feature_tap(model, loss, "student")
        self.task: Task = TASKS[task]
        self.tuning, self.penalty, self.auxiliary = tuning, penalty, auxiliary

    @property
    def guide(self) -> Guide | None:
        return self._guides[0] if self._guides else None

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """Inside, the feature maps that the losses look at are recorded."""
        with ExitStack() as stack:
            for tap in (self._tap, *(guide.tap for guide in self._guides)):
                stack.enter_context(tap)
            yield

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of the batch: a float32 scalar, whatever the precision of the model."""
        where = batch.targets != IGNORED if self.task.language else None
        theirs = self._theirs(batch, where)
        ours = in_float(self._tap.outputs(answer(self.model, self.to_input(batch.inputs), where)))
        with torch.autocast(batch.inputs.device.type, enabled=False):
            targets = self.task.rows(ours.logits, batch.targets)[1]
            total: Tensor = self.loss(self._rows(ours, batch.targets), theirs, targets)["total"]
            if self.auxiliary is not None:
                total = total + self.auxiliary(ours.embedding, batch.targets, batch.progress)
            return total if self.penalty is None else total + self.penalty(self.model)

    def _theirs(self, batch: Batch, where: Tensor | None) -> Outputs | None:
        if batch.answers is not None:
            return self._rows(Outputs(batch.answers.float()), batch.targets)
        if self.guide is None:
            return None
        seen = batch.inputs if batch.guide_inputs is None else batch.guide_inputs
        return self._rows(self.guide(seen, where), batch.targets)

    def _rows(self, outputs: Outputs, targets: Tensor) -> Outputs:
        return outputs._replace(logits=self.task.rows(outputs.logits, targets)[0])

    def extra_parameters(self) -> Iterator[nn.Parameter]:
        """Learned parts of the losses."""
        yield from self.loss.parameters()
        if self.auxiliary is not None:
            yield from self.auxiliary.parameters()


def answer(model: nn.Module, inputs: Tensor, where: Tensor | None) -> Tensor:
    """Logits; of a language model (T, V) at the positions ``where`` (N, L)."""
    logits: Tensor = model(inputs) if where is None else model.language_model(inputs, where)  # type: ignore[operator]
    return logits


def feature_tap(model: nn.Module, loss: DistillationLoss, side: str) -> FeatureTap:
    """The tap of an image model: ``side`` is student or teacher."""
    modules = [getattr(pair, side).module for pair in loss.pairs]
    return FeatureTap(model, modules, embedding=loss.needs("embedding"))


def in_float(outputs: Outputs) -> Outputs:
    return Outputs(*(_float(part) for part in outputs))


def _float(part: object) -> Any:
    if isinstance(part, Tensor):
        return part.float() if part.is_floating_point() else part
    return tuple(_float(item) for item in part) if isinstance(part, tuple) else part


def balanced_weights(labels: Tensor, classes: int) -> list[float]:
    """n / (classes * n_c) for each class, so that every class weighs the same; 0 for a class without pictures."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    weights: list[float] = torch.where(counts > 0, counts.sum() / (classes * counts.clamp(min=1)), 0.0).tolist()
    return weights
