"""The one training loop: teacher, student and control, on a CPU, a GPU or many.

Accelerate's ``skip_first_batches`` is not used: it does not give the same bits again. Every step is a function of
(seed, epoch, step), so going on from a saved state needs nothing but the position.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distilledge.models.errors import RejectedError
from distilledge.pipeline.disk import atomic_write
from distilledge.pipeline.failpoints import failpoint
from distilledge.pipeline.interrupt import Interrupt, Interrupted, graceful
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.training.counters import Purpose, torch_seed
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.events import ProgressEvent, Report
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.learner import Learner
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.pictures import readable
from distilledge.pipeline.training.state import Position, Row, load_state, save_state
from distilledge.pipeline.training.watch import EtaClock, non_finite, resource_errors

__all__ = ["Plan", "ProgressEvent", "Trained", "curves", "train"]

MAX_SKIPPED_IN_A_ROW = 10
OWN_COLUMNS = ("epoch", "train_loss", "lr", "seconds", "samples_per_second")
"""Of a row of the curves; the others are what validation found."""


@dataclass(frozen=True)
class Plan:
    """How it is learned."""

    stage: str
    settings: Training
    seed: int
    metric: str
    identity: str
    """A saved state with another is not gone on from."""
    save_seconds: float = 0.0
    """At an epoch's end the state is saved if the last time is so long ago: an epoch of a head takes less than that."""


@dataclass(frozen=True)
class Trained:
    """``state`` is that of the kept epoch; ``rows`` are the curves."""

    state: dict[str, Tensor]
    rows: list[Row]
    best_epoch: int
    samples_per_second: float
    seconds: float
    skipped_steps: int
    metrics: tuple[str, ...]
    """Names in ``rows`` that validation gave."""


class Run:
    """A training under way: what ``train`` puts together, passed from step to step."""

    def __init__(self, objective: Objective, feed: Feed, plan: Plan, partial: Path, report: Report) -> None:
        self.feed, self.plan, self.partial, self.report = feed, plan, partial, report
        settings = plan.settings
        self.accelerator = prepare_accelerator(settings, partial)
        self.steps = feed.steps(settings, plan.seed, self.accelerator)
        self.learner = Learner(
            objective,
            settings,
            self.accelerator,
            steps=settings.epochs * len(self.steps),
            warmup_steps=round(settings.warmup_epochs * len(self.steps)),
        )
        # a step's batch holds all its accumulated batches; they are taken one after another
        self.learner.parts = settings.accumulate
        self.position = Position(parts=self.learner.parts)
        on_gpu = self.accelerator.device.type == "cuda"
        self.loader = feed.loader(self.steps, pin=on_gpu)
        self.clock = EtaClock()
        self.saved = time.monotonic()

    def restore(self) -> None:
        saved = load_state(self.partial, self.plan.identity)
        if saved is not None:
            self.position, learner = saved
            self.learner.restore(learner)
            self.learner.parts = self.position.parts

    def next_names(self) -> list[str]:
        """Samples of the step that is under way."""
        order = self.steps.order(self.position.epoch)
        return [self.feed.names[i] for i in order[min(self.position.step, len(order) - 1)]]

    def save(self) -> None:
        self.position.parts = self.learner.parts
        if self.accelerator.is_main_process:
            save_state(self.partial, self.plan.identity, self.position, self.learner.state())
        self.saved = time.monotonic()


def train(objective: Objective, feed: Feed, plan: Plan, *, partial: Path, report: Report) -> Trained:
    """Train ``objective.model`` on ``feed``; goes on from the state in ``partial`` if there is one.

    Raises ``RejectedError`` for a loss that is not finite, ``ResourceError`` for memory or a dead loader process,
    ``MissingPackageError`` for a device that is not there, ``Interrupted`` after SIGINT or SIGTERM, the state saved.
    """
    run = Run(objective, feed, plan, partial, report)
    with repeatable(run.accelerator.device), graceful() as interrupt, objective.tapped(), _trackers(run):
        run.restore()
        with readable(), resource_errors(run.next_names):
            while run.position.epoch < plan.settings.epochs and not _stalled(run):
                try:
                    _run_epoch(run, interrupt)
                    _finish_epoch(run, interrupt)
                except Interrupted:
                    run.save()
                    raise
    return _trained(run)


def _run_epoch(run: Run, interrupt: Interrupt) -> None:
    """The steps of the current epoch, from the current one on."""
    position, steps, settings = run.position, run.steps, run.plan.settings
    steps.epoch, steps.first = position.epoch, position.step
    run.learner.train_mode(position.epoch, [row[run.plan.metric] for row in position.rows])
    run.clock.restart()
    for loaded in run.loader:
        _run_step(run, loaded)
        interrupt.raise_if_requested()
        if position.step % settings.checkpoint_every == 0 and position.step < len(steps):
            run.save()


def _run_step(run: Run, loaded: Loaded) -> None:
    position, plan = run.position, run.plan
    counters = (position.epoch, position.step, run.accelerator.process_index)
    batch = run.feed.batch(loaded, counters, run.accelerator)
    number = position.epoch * len(run.steps) + position.step
    loss = run.learner.step(batch, number, torch_seed(Purpose.STEP, plan.seed, *counters))
    if math.isfinite(loss):
        position.loss_sum += loss
        position.loss_count += 1
        position.skipped_in_a_row = 0
    else:
        _refuse_or_skip(run)
    position.step += 1
    position.samples += run.steps.step_size
    position.seconds += run.clock.lap()
    failpoint("train.step")
    run.report(_event(run))


def _refuse_or_skip(run: Run) -> None:
    """Leave the step out (``on_nan: skip``), or stop and name its pictures; the last saved state stays."""
    position, settings = run.position, run.plan.settings
    position.skipped += 1
    position.skipped_in_a_row += 1
    if settings.on_nan == "skip" and position.skipped_in_a_row <= MAX_SKIPPED_IN_A_ROW:
        return
    raise non_finite(run.plan.stage, position, run.next_names(), run.partial)


def _event(run: Run) -> ProgressEvent:
    position, settings = run.position, run.plan.settings
    left = (settings.epochs - position.epoch) * len(run.steps) - position.step
    evaluations = (settings.epochs - position.epoch) * position.evaluation_seconds
    return ProgressEvent(
        stage=run.plan.stage,
        epoch=position.epoch + 1,
        epochs=settings.epochs,
        step=position.step,
        steps=len(run.steps),
        loss=position.mean_loss,
        samples_per_second=position.samples / max(position.seconds, 1e-9),
        eta_seconds=left * position.seconds / position.step + evaluations,
    )


def _finish_epoch(run: Run, interrupt: Interrupt) -> None:
    """Validate, keep the weights if they are the best, write the curves and the state."""
    position, learner = run.position, run.learner
    started = time.monotonic()
    found = run.feed.validate(
        learner.evaluated, learner.objective.to_input, run.accelerator, interrupt.raise_if_requested
    )
    position.evaluation_seconds = time.monotonic() - started
    position.rows.append(_row(run, found))
    if run.plan.settings.select == "last" or _better(position, run.plan.metric):
        position.best, position.best_epoch = run.learner.kept(), position.epoch
    run.accelerator.log({k: v for k, v in position.rows[-1].items() if k != "epoch"}, step=position.epoch + 1)
    position.begin_epoch(position.epoch + 1)
    if time.monotonic() - run.saved >= run.plan.save_seconds:
        if run.accelerator.is_main_process:
            atomic_write(run.partial / "curves.jsonl", curves(position.rows))
        run.save()
    failpoint("train.epoch")


def _row(run: Run, found: dict[str, float]) -> Row:
    position = run.position
    return {
        "epoch": position.epoch + 1,
        "train_loss": position.mean_loss,
        "lr": run.learner.lr,
        **found,
        **run.learner.objective.loss.told(),
        "seconds": position.seconds + position.evaluation_seconds,
        "samples_per_second": position.samples / max(position.seconds, 1e-9),
    }


def _better(position: Position, metric: str) -> bool:
    """Whether the last epoch beats the kept one: by the metric, by the loss where that is equal."""
    if position.best is None:
        return True
    last, kept = position.rows[-1], position.rows[position.best_epoch]
    return (last[metric], -last["loss"]) > (kept[metric], -kept["loss"])


def _stalled(run: Run) -> bool:
    """Whether the metric has not risen for ``early_stopping`` epochs."""
    patience, rows = run.plan.settings.early_stopping, run.position.rows
    if patience is None or not rows:
        return False
    values = [row[run.plan.metric] for row in rows]
    return len(rows) - 1 - values.index(max(values)) >= patience


def _trained(run: Run) -> Trained:
    position = run.position
    if position.best is None or not position.rows:
        raise RejectedError("E3604", f"{run.plan.stage}: no epoch was finished", "raise training.epochs")
    rows = position.rows
    seconds = sum(row["seconds"] for row in rows)
    speed = float(np.median([row["samples_per_second"] for row in rows]))
    metrics = tuple(name for name in rows[-1] if name not in OWN_COLUMNS)
    return Trained(position.best, rows, position.best_epoch, speed, seconds, position.skipped, metrics)


def curves(rows: list[Row]) -> str:
    """JSON lines, one for each epoch."""
    return "".join(json.dumps(row) + "\n" for row in rows)


class _trackers:  # noqa: N801
    """Accelerate's trackers for the length of a block."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        if self._run.plan.settings.tracker != "none":
            self._run.accelerator.init_trackers(self._run.plan.stage)

    def __exit__(self, *_: Any) -> None:
        if self._run.plan.settings.tracker != "none":
            self._run.accelerator.end_training()
