"""The range test for a learning rate (Smith 2017, section 3.3): it rises step by step while the loss is watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from distilledge.models.base import Value
from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.builders import BUILDERS
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.interrupt import graceful
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.run import run_step
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store
from distilledge.pipeline.training import many
from distilledge.pipeline.training.counters import Purpose, torch_seed
from distilledge.pipeline.training.environment import repeatable
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.loop import Plan, Run, Trained
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.pictures import readable
from distilledge.pipeline.training.stage import TRAINER
from distilledge.pipeline.training.watch import resource_errors

SMOOTHING = 0.9
"""Share of the running mean that is kept at each step; its start is corrected for (as Adam's moments are)."""
DIVERGED = 4.0
"""Times its least that the smoothed loss may reach before the test ends."""
SKIPPED = 5
"""First steps whose slope is not looked at: the running mean has no memory yet."""
BEFORE = {"teacher": ("data", "pretrain"), "student": ("data", "pretrain", "teacher")}
"""Kinds of steps that a role's training reads from."""


class LrFound(Value):
    """What a range test has seen."""

    role: Literal["teacher", "student"]
    configured: float
    """The recipe's own learning rate."""
    lr: tuple[float, ...]
    """Of each step that was taken."""
    loss: tuple[float, ...]
    """Smoothed; the training's own loss."""
    steepest: float
    """Where the smoothed loss falls fastest by the logarithm of the learning rate."""
    tenth: float
    """A tenth of the one at which the smoothed loss was least."""
    suggestion: float
    """The smaller of the two."""
    diverged: bool
    """Whether the loss had risen past the limit before the last step; else the range ends too low."""


def range_test(
    step: Callable[[float], float], *, lowest: float, highest: float, steps: int
) -> tuple[list[float], list[float], bool]:
    """Learning rates, smoothed losses, and whether the loss diverged. ``step``: takes one at a learning rate, and gives
    the loss before it (NaN: not finite). The learning rate rises geometrically.
    """
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number in range(steps):
        rate = lowest * (highest / lowest) ** (number / max(1, steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            return rates, losses, True
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(mean / (1 - SMOOTHING ** (number + 1)))
        if number >= SKIPPED and losses[-1] > DIVERGED * min(losses):
            return rates, losses, True
    return rates, losses, False


def suggested(rates: list[float], losses: list[float]) -> tuple[float, float]:
    """The learning rate of the steepest descent before the least loss, and a tenth of that of the least loss.

    Raises ``RejectedError`` where the loss never falls.
    """
    least = int(np.argmin(losses))
    if least <= SKIPPED + 1:
        raise RejectedError(
            "E3580",
            f"the loss does not fall at any learning rate from {rates[0] if rates else 0:.1g} on",
            "start lower (--lowest), or look at the data and the labels",
        )
    slope = np.gradient(np.array(losses[: least + 1]), np.log(rates[: least + 1]))
    return rates[SKIPPED + int(np.argmin(slope[SKIPPED:]))], rates[least] / 10


def find_lr(
    recipe: Recipe,
    work: Path,
    role: Literal["teacher", "student"],
    report: Report,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    count: int = 200,
) -> LrFound:
    """The range test of a recipe's training, on a copy: of the run, the steps before it alone are kept.

    Its optimizer, loss, strategy, batches and views are the training's own. Raises what they raise.
    """
    settings = recipe.teacher.training if role == "teacher" else recipe.student.training
    if many.process_count(settings) > 1:
        raise UsageError("E2585", "lr-find tries on one device", "export CUDA_VISIBLE_DEVICES=0")
    if not 0 < lowest < highest:
        raise UsageError("E2586", f"no range: {lowest:g} to {highest:g}", "give --lowest below --highest")
    chain = Chain(recipe, Store(work / "store"), steps(recipe, {}), report)
    for before in chain.steps:
        if before.name == role:
            break
        if before.kind in BEFORE[role]:
            run_step(chain, before)
    seen: list[tuple[list[float], list[float], bool]] = []

    def trial(objective: Objective, feed: Feed, plan: Plan, *, partial: Path, report: Report) -> Trained:
        run = Run(objective, feed, plan, partial, report)
        seen.append(_of_run(run, lowest=lowest, highest=highest, count=count))
        return _left(run)

    token = TRAINER.set(trial)
    try:
        with TemporaryDirectory() as place:
            out, partial = Path(place) / "out", Path(place) / "partial"
            out.mkdir()
            partial.mkdir()
            BUILDERS[before.kind][1](chain, before, out, partial)
    finally:
        TRAINER.reset(token)
    if not seen:
        raise UsageError("E2584", "this strategy trains nothing", "choose another head or strategy")
    rates, losses, diverged = seen[0]
    steepest, tenth = suggested(rates, losses)
    return LrFound(
        role=role,
        configured=settings.lr,
        lr=tuple(rates),
        loss=tuple(losses),
        steepest=steepest,
        tenth=tenth,
        suggestion=min(steepest, tenth),
        diverged=diverged,
    )


def _of_run(run: Run, *, lowest: float, highest: float, count: int) -> tuple[list[float], list[float], bool]:
    """As many epochs of the feed as the steps need."""
    plan, learner = run.plan, run.learner
    rate = 0.0
    learner.schedule = lambda _number: rate / plan.settings.lr
    batches = _batches(run)
    with repeatable(run.accelerator.device), readable(), graceful() as interrupt, learner.objective.tapped():

        def step(asked: float) -> float:
            nonlocal rate
            rate, loaded, position = asked, next(batches), run.position
            counters = (position.epoch, position.step, 0)
            batch = run.feed.batch(loaded, counters, run.accelerator)
            loss = learner.step(batch, 0, torch_seed(Purpose.STEP, plan.seed, *counters))
            position.step += 1
            interrupt.raise_if_requested()
            return loss

        with resource_errors(run.next_names):
            return range_test(step, lowest=lowest, highest=highest, steps=count)


def _batches(run: Run) -> Iterator[Loaded]:
    """Epoch after epoch."""
    while True:
        run.steps.epoch, run.steps.first = run.position.epoch, 0
        run.learner.train_mode(run.position.epoch, [0.0] * run.position.epoch)
        yield from run.loader
        run.position.begin_epoch(run.position.epoch + 1)


def _left(run: Run) -> Trained:
    """What is thrown away with the temporary folder."""
    row = {"epoch": 1.0, "train_loss": 0.0, "lr": 0.0, "seconds": 0.0, "samples_per_second": 0.0}
    return Trained(run.learner.kept(), [row], 0, 0.0, 0.0, 0, ())


def plotted(found: LrFound, *, width: int = 64, height: int = 12) -> str:
    """The smoothed curve in characters; ``v`` stands above the suggestion, ``|`` at the recipe's own."""
    logs, losses = np.log10(found.lr), np.array(found.loss)
    low, high = float(losses.min()), float(min(losses.max(), losses[0] * 1.5))
    columns = np.clip(((logs - logs[0]) / max(1e-9, logs[-1] - logs[0]) * (width - 1)).round(), 0, width - 1).astype(
        int
    )
    rows = np.clip(((high - losses) / max(1e-12, high - low) * (height - 1)).round(), 0, height - 1).astype(int)
    canvas = [[" "] * width for _ in range(height)]
    for row, column in zip(rows, columns, strict=True):
        canvas[row][column] = "*"
    marks = [" "] * width
    for value, mark in ((found.configured, "|"), (found.suggestion, "v")):
        place = round((math.log10(value) - logs[0]) / max(1e-9, logs[-1] - logs[0]) * (width - 1))
        if 0 <= place < width:
            marks[place] = mark
    lines = [f"{'':9s} {''.join(marks)}"]
    for number, line in enumerate(canvas):
        label = f"{high - (high - low) * number / (height - 1):9.3f}" if number in (0, height - 1) else " " * 9
        lines.append(f"{label} {''.join(line)}".rstrip())
    ends = f"{found.lr[0]:.1e}", f"{found.lr[-1]:.1e}"
    return "\n".join([*lines, f"{'':9s} {ends[0]}{ends[1]:>{width - len(ends[0])}s}"])
