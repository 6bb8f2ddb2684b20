"""The rounds: every student that may fit is trained for a while, the better ones go on from where they were.

All train on the schedule of the recipe's whole training: a student that is stopped after 5 of 20 epochs has then seen
the learning rates of the first 5 of 20, not a short schedule of its own. So going on changes nothing (the same bits as
an undisturbed training, which ``run`` finds in the store), and students are compared at the same point of the same
schedule; at high learning rates, which is a noisier comparison than one of finished trainings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distilledge.models.base import Value
from distilledge.pipeline.chain import Chain, Report
from distilledge.pipeline.run import run_step
from distilledge.pipeline.search.candidates import Candidate
from distilledge.pipeline.search.halving import Judged, survivors
from distilledge.pipeline.steps import Step
from distilledge.pipeline.store import fingerprint

log = logging.getLogger("distilledge")
CURVES = "curves.jsonl"
VERSION = 1
NEEDED = ("data", "teacher")
"""Kinds of the steps that a student's training reads from."""


class Paused(Exception):  # noqa: N818 (no error: the training is meant to stop here)
    """Raised out of a training at the first step after the last epoch of a round."""


class Round(Value):
    """What the store keeps of a round of one student."""

    judged: Judged


def halve(
    chains: Mapping[Candidate, Chain], schedule: tuple[int, ...], eta: int, told: Callable[[str], None]
) -> dict[Candidate, list[Judged]]:
    """Rounds of every student; those that have one for each entry of ``schedule`` are trained to the end."""
    going, found = list(chains), {one: list[Judged]() for one in chains}
    for number, epochs in enumerate(schedule):
        for place, one in enumerate(going):
            told(f"round {number + 1}/{len(schedule)}, student {place + 1}/{len(going)}: {one.name}, {epochs} epochs")
            found[one].append(train_until(chains[one], epochs))
        if number + 1 < len(schedule):
            kept = survivors({one: found[one][-1] for one in going}, eta)
            going = [one for one in going if one in kept]
    return found


def train_until(chain: Chain, epochs: int) -> Judged:
    """Train the chain's student up to the end of that epoch, going on from what there is; to the end if it is the last.

    What comes before it, data and teacher, is made or found first.
    """
    step = next(s for s in chain.steps if s.kind == "student")
    whole = epochs >= chain.recipe.student.training.epochs
    inputs = {"student": step.fingerprint, "epochs": epochs}
    key = fingerprint("round", VERSION, inputs)
    if chain.store.probe("round", key) and not whole:
        stored = chain.store.lookup("round", key, Round)
        if stored is not None:
            return stored.value.judged
    for before in chain.steps[: chain.steps.index(step)]:
        if before.kind in NEEDED and before.name not in chain.done:
            run_step(chain, before)
    judged = _judged(chain, _rows(chain, step, epochs), epochs)
    return chain.store.once("round", VERSION, inputs, Round, lambda _out, _partial: Round(judged=judged)).value.judged


def _rows(chain: Chain, step: Step, epochs: int) -> list[dict[str, float]]:
    """Curves of the training up to that epoch, or to where it ended by itself (early stopping)."""
    usual = chain.report
    before = _read(chain.store.partial(step.kind, step.fingerprint) / CURVES)
    if len(before) >= epochs and epochs < chain.recipe.student.training.epochs:
        return before[:epochs]  # it was going on when it was killed
    chain.report = _pausing(usual, epochs)
    try:
        run_step(chain, step)
    except Paused:
        return _read(chain.store.partial(step.kind, step.fingerprint) / CURVES)[:epochs]
    finally:
        chain.report = usual
    return _read(chain.done[step.name].path / CURVES)[:epochs]


def _pausing(usual: Report, epochs: int) -> Report:
    """Ends a training once that many epochs are validated and saved, at the cost of one step."""

    def told(event: Any) -> None:
        if event.stage == "student" and event.epoch > epochs:
            raise Paused
        usual(event)

    return told


def _read(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _judged(chain: Chain, rows: list[dict[str, float]], epochs: int) -> Judged:
    """By the epoch that ``select`` keeps of these."""
    metric = chain.recipe.metric
    kept = rows[-1]
    if chain.recipe.student.training.select == "best":
        kept = max(rows, key=lambda row: (row[metric], -row["loss"]))
    return Judged(epochs=min(epochs, len(rows)), metric=kept[metric], loss=kept["loss"])
