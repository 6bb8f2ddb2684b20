"""What a training minimises: views and targets -> loss. Holds the model and the learned parts of its losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from distilledge.models.features import FeatureTap, Outputs
from distilledge.models.losses_total import DistillationLoss
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.views import ToInput

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Guide:
    """A teacher that answers: in eval mode, without gradients, in its own precision; neither trained nor saved."""

    def __init__(self, model: nn.Module, to_input: ToInput, loss: DistillationLoss, *, precision: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.to_input, self._dtype = to_input, AUTOCAST[precision]
        self.tap = FeatureTap(model, [p.teacher.module for p in loss.pairs], embedding=loss.needs("embedding"))

    def to(self, device: torch.device, *, channels_last: bool, compiled: bool) -> None:
        self.model.to(device)
        self.to_input.to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            self.model.compile()

    @torch.no_grad()  # not inference mode: the student's loss keeps these tensors for its gradient
    def __call__(self, views: Tensor) -> Outputs:
        lower = self._dtype != torch.float32
        with torch.autocast(views.device.type, dtype=self._dtype if lower else torch.bfloat16, enabled=lower):
            logits = self.model(self.to_input(views))
        return in_float(self.tap.outputs(logits))


class Objective(nn.Module):
    """``loss`` of the model's outputs, and of the guide's for the same views; without a guide, of the labels alone."""

    def __init__(self, model: nn.Module, to_input: ToInput, loss: DistillationLoss, guide: Guide | None = None) -> None:
        super().__init__()
        self.model, self.to_input, self.loss = model, to_input, loss
        self._guides = () if guide is None else (guide,)  # in a tuple, so that it is no submodule
        self._tap = FeatureTap(model, [p.student.module for p in loss.pairs], embedding=loss.needs("embedding"))

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
        theirs = None if self.guide is None else self.guide(batch.pictures)
        ours = in_float(self._tap.outputs(self.model(self.to_input(batch.pictures))))
        with torch.autocast(batch.pictures.device.type, enabled=False):
            total: Tensor = self.loss(ours, theirs, batch.targets)["total"]
        return total

    def extra_parameters(self) -> Iterator[nn.Parameter]:
        """Learned parts of the losses."""
        return self.loss.parameters()


def in_float(outputs: Outputs) -> Outputs:
    embedding = None if outputs.embedding is None else outputs.embedding.float()
    return Outputs(outputs.logits.float(), tuple(f.float() for f in outputs.features), embedding)


def balanced_weights(labels: Tensor, classes: int) -> list[float]:
    """n / (classes * n_c) for each class, so that every class weighs the same; 0 for a class without pictures."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    weights: list[float] = torch.where(counts > 0, counts.sum() / (classes * counts.clamp(min=1)), 0.0).tolist()
    return weights
