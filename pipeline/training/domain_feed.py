"""Steps of pairs: a picture of the source and one of the target, or two views of one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distilledge.models.losses import one_hot
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.training.counters import IntArray, Purpose, epoch_order, generator
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.picture_feed import PictureFeed
from distilledge.pipeline.training.pictures import Pictures, Uint8Array
from distilledge.pipeline.training.views import Steps, Views, view_loader

SECOND = 1
"""Counter that tells the order of the second of a pair from that of the first."""


def drawn(random: np.random.Generator, count: int, wanted: int) -> IntArray:
    """So many of ``range(count)``, all before any again."""
    rounds = [random.permutation(count) for _ in range(math.ceil(wanted / count))]
    return np.asarray(np.concatenate(rounds)[:wanted])


def paired_batch(loaded: Loaded, labels: IntArray, classes: int, *, progress: float, accelerator: Accelerator) -> Batch:
    """Of source and target as they lie, none of them mixed: targets (N, classes), zeros where there is no label."""
    targets = one_hot(torch.from_numpy(labels)[loaded.indices], classes)
    inputs, targets = (t.to(accelerator.device, non_blocking=True) for t in (loaded.inputs, targets))
    return Batch(inputs, targets, progress=progress)


class Pairs(Steps):
    """Steps of ``Steps`` with a partner behind each picture, so that every piece of a step holds both.

    ``partners``: for an epoch and indices in their order, as many others. Of one process.
    """

    def __init__(
        self, labels: IntArray, size: int, partners: Callable[[int, IntArray], IntArray], *, seed: int, balanced: bool
    ) -> None:
        super().__init__(labels, size, seed=seed, balanced=balanced)
        self._partners = partners
        self.first_size, self.step_size = self.step_size, 2 * self.step_size

    def __len__(self) -> int:
        return math.ceil(len(self._labels) / self.first_size)

    def order(self, epoch: int) -> IntArray:
        """(steps, 2 x size) indices: first, partner, first, partner, ..."""
        own = np.resize(
            epoch_order(self._labels, self._seed, epoch, balanced=self._balanced), (len(self), self.first_size)
        )
        others = self._partners(epoch, own.ravel()).reshape(own.shape)
        return np.stack([own, others], 2).reshape(len(self), -1)


class Joined:
    """Two collections one behind the other."""

    def __init__(self, first: Pictures, second: Pictures) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Uint8Array:
        behind = index - len(self._first)
        return self._first[index] if behind < 0 else self._second[behind]


@dataclass(frozen=True)
class DomainFeed:
    """Source pictures with labels and as many of the target without, in each step; see ``Feed``.

    An epoch is one pass over the source. Target pictures come in an order of their own, drawn again for each epoch and
    repeated where they are fewer. Validation is on the source: the target has no labels.
    """

    source: PictureFeed
    views: Views
    """Of the source's pictures, then the target's."""
    target_names: tuple[str, ...]
    _steps: list[int] = field(default_factory=list)
    """Of an epoch, and of the whole training: known once the steps are made."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.source.names, *self.target_names)

    @property
    def labels(self) -> IntArray:
        return np.concatenate([self.source.labels, np.full(len(self.target_names), -1, np.int64)])

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:  # noqa: ARG002 (one process)
        first, count = len(self.source.labels), len(self.target_names)

        def partners(epoch: int, own: IntArray) -> IntArray:
            return first + drawn(generator(Purpose.ORDER, seed, epoch, SECOND), count, len(own))

        made = Pairs(
            self.source.labels,
            settings.batch_size * settings.accumulate,
            partners,
            seed=seed,
            balanced=settings.sampling == "balanced",
        )
        self._steps[:] = [len(made), settings.epochs * len(made)]
        return made

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return view_loader(self.views, steps, workers=self.source.workers, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        epoch, step, *_ = counters
        done = (epoch * self._steps[0] + step) / self._steps[1]
        return paired_batch(loaded, self.labels, self.source.classes, progress=done, accelerator=accelerator)

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        return self.source.validate(model, to_input, accelerator, poll)
