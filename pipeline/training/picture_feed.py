"""Pictures for the training loop: views, one-hot targets, mixing, validation at the model's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilledge.models.losses import one_hot
from distilledge.pipeline.recipe import Augment, Training
from distilledge.pipeline.training.counters import IntArray, Purpose, generator
from distilledge.pipeline.training.evaluate import validate
from distilledge.pipeline.training.feed import steps_of
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch, mix
from distilledge.pipeline.training.pictures import Pictures
from distilledge.pipeline.training.views import Steps, Views, view_loader


@dataclass(frozen=True)
class PictureFeed:
    """See ``Feed``."""

    views: Views
    labels: IntArray
    names: tuple[str, ...]
    validation: Pictures
    """At the model's own size."""
    validation_labels: IntArray
    classes: int
    workers: int
    augment: Augment
    seed: int
    watch: bool = False
    """Stop the training at the epoch that answers one class to everything."""

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
        return steps_of(self.labels, settings, seed, accelerator)

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return view_loader(self.views, steps, workers=self.workers, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        device = accelerator.device
        pictures = loaded.inputs.to(device, non_blocking=True)
        targets = self.targets(loaded).to(device, non_blocking=True)
        return mix(Batch(pictures, targets), self.augment, generator(Purpose.MIX, self.seed, *counters))

    def targets(self, loaded: Loaded) -> Tensor:
        """(N, classes)."""
        return one_hot(torch.from_numpy(self.labels)[loaded.indices], self.classes)

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        return validate(
            model,
            to_input,
            self.validation,
            self.validation_labels,
            accelerator=accelerator,
            workers=self.workers,
            poll=poll,
            watch=self.watch,
        )
