"""Steps of pairs of texts: one of the source and one of the target, of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from accelerate import Accelerator
from torch import nn

from distilledge.models.errors import RejectedError
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.record import read_texts
from distilledge.pipeline.training.counters import IntArray, Purpose, generator
from distilledge.pipeline.training.domain_feed import drawn, paired_batch
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.stage import Stage
from distilledge.pipeline.training.text_feed import LengthSteps, Padded, TextFeed, Texts, encode, like_length
from distilledge.pipeline.training.views import Steps
from distilledge.targets.ondevice.text import TextEncoder

TARGETS = 2
"""Counter that tells the order of the target's texts from those of the source's texts and of the steps."""


class TextPairs(Steps):
    """The steps of ``own``, a text of the target behind each of its texts, so that every piece of a step holds both.

    The target's come in an order of their own, drawn again for each epoch and repeated where they are fewer. They are
    sorted as the source's are, so the two halves of a step have the same rank in length: what tells them apart is not
    that one half is long. Of one process.
    """

    def __init__(self, own: LengthSteps, lengths: IntArray, *, labels: IntArray, seed: int) -> None:
        """``lengths``: of the target's texts, which stand behind the source's."""
        super().__init__(labels, own.step_size, seed=seed, balanced=False)
        self._own, self._lengths = own, lengths
        self.step_size = 2 * own.step_size

    def __len__(self) -> int:
        return len(self._own)

    def order(self, epoch: int) -> IntArray:
        """(steps, 2 x size) indices: source, target, source, target, ..."""
        first = self._own.order(epoch)
        partners = drawn(generator(Purpose.ORDER, self._seed, epoch, TARGETS), len(self._lengths), first.size)
        second = self._own.shuffled(like_length(partners.reshape(first.shape), self._lengths), epoch)
        return np.stack([first, len(self._labels) + second], 2).reshape(len(first), -1)


@dataclass(frozen=True)
class TextDomainFeed:
    """Source texts with labels and as many of the target without, in each step; see ``Feed``.

    An epoch is one pass over the source, in the steps that it has without a target. Validation is on the source.
    """

    source: TextFeed
    target: Texts
    _steps: list[int] = field(default_factory=list)
    """Of an epoch, and of the whole training: known once the steps are made."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.source.names, *self.target.names)

    @property
    def labels(self) -> IntArray:
        return np.concatenate([self.source.labels, self.target.labels])

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
        own = self.source.steps(settings, seed, accelerator)
        lengths = np.array([len(ids) for ids in self.target.ids], np.int64)
        made = TextPairs(own, lengths, labels=self.source.labels, seed=seed)
        self._steps[:] = [len(made), settings.epochs * len(made)]
        return made

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return Padded(self.source.train.ids + self.target.ids, steps, self.source.pad_id, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        epoch, step, *_ = counters
        done = (epoch * self._steps[0] + step) / self._steps[1]
        return paired_batch(loaded, self.labels, len(self.source.classes), progress=done, accelerator=accelerator)

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        return self.source.validate(model, to_input, accelerator, poll)


def text_domain_feed(stage: Stage, feed: TextFeed, encoder: TextEncoder) -> TextDomainFeed:
    """``feed`` with the target's texts beside the source's. Raises ``RejectedError`` without a target."""
    pairs = read_texts(stage.data_dir, "target")
    if not pairs:
        raise RejectedError("E3693", "the data has no texts of a target", "set data.target.path")
    return TextDomainFeed(feed, encode(pairs, encoder, stage.recipe.task, len(stage.splits.classes)))
