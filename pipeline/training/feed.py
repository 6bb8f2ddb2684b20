"""What a training learns from and is validated on: the seam between the loop and pictures or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from accelerate import Accelerator
from torch import nn

from distilledge.pipeline.recipe import Training
from distilledge.pipeline.training.counters import IntArray
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.views import Steps


def steps_of(labels: IntArray, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
    """All samples in the order of ``Steps``, this process's share of them."""
    return Steps(
        labels,
        settings.batch_size * settings.accumulate,
        seed=seed,
        balanced=settings.sampling == "balanced",
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )


class Feed(Protocol):
    """Samples by index; ``names`` are for messages, ``labels`` are class indices, -1 where there is none."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> IntArray: ...

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
        """The order of the samples; see ``Steps``."""

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        """Iterates over ``steps``, from their current epoch and step on, each time it is started."""

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        """On the accelerator's device, with targets. ``counters``: epoch, step, process."""

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        """The task's metrics and ``loss``, of all processes together; ``poll`` is called for each batch and may raise.

        Raises ``RejectedError`` where the loss is not finite.
        """
