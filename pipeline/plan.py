"""``plan``: what a run would do, and why, without doing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.pipeline.recipe import Recipe, Training
from distilledge.pipeline.run import device_card
from distilledge.pipeline.steps import Step, steps
from distilledge.pipeline.store import Store, explain

TRAINING_MACS_PER_SECOND = 5e10
"""A cautious figure for two laptop cores; only used where no earlier run tells better."""
SECONDS_PER_STAGE = {
    "data": 20.0,
    "export": 60.0,
    "verify": 30.0,
    "predict": 30.0,
    "transfer": 30.0,
    "adaptation": 30.0,
    "score": 1.0,
    "gate": 5.0,
}


class PlanRow(NamedTuple):
    stage: str
    cached: bool
    reason: str
    seconds: float | None
    """Estimate; None where nothing is known."""


def plan(recipe: Recipe, work: Path) -> list[PlanRow]:
    """One row for each step, in order. Reads the data's bytes to hash them; builds nothing."""
    store = Store(work / "store")
    previous = _previous(work / "runs" / recipe.name / "run.json")
    return [_row(recipe, store, step, previous.get(step.name)) for step in steps(recipe, device_card(recipe))]


def _previous(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {stage["name"]: stage for stage in json.loads(path.read_text(encoding="utf-8"))["stages"]}


def _row(recipe: Recipe, store: Store, step: Step, before: dict[str, Any] | None) -> PlanRow:
    damaged = store.damage(step.kind, step.fingerprint)
    if damaged is None and store.probe(step.kind, step.fingerprint):
        return PlanRow(step.name, True, "inputs unchanged", 0.0)
    previous = before["inputs"] if before else store.nearest(step.kind, step.inputs)
    if step.lazy and damaged is None:
        return PlanRow(step.name, False, "only if no cheaper rung settles a budget", None)
    reason = f"artefact damaged: {damaged}" if damaged else explain(step.kind, step.inputs, previous)
    seconds = before["seconds"] if before else _estimate(recipe, step)
    return PlanRow(step.name, False, reason, seconds)


def _estimate(recipe: Recipe, step: Step) -> float | None:
    if recipe.is_text and step.kind in ("pretrain", "teacher", "scratch", "source-only", "student", "control"):
        return None  # what a hub name or a teacher's layers weigh is not known before they are there
    if step.kind in ("teacher", "scratch", "source-only", "student", "control", "prune"):
        model = recipe.teacher if step.role == "teacher" else recipe.student
        return _training_seconds(model.model, model.input.size, model.training, _pictures(recipe))
    if step.kind == "measure":
        measure = recipe.measure
        files = sum(len(t.precisions) + len(recipe.export.teacher_precisions) for t in recipe.export.targets)
        return files * len(measure.threads) * (5.0 if measure.quick else max(measure.min_seconds, 10.0))
    return SECONDS_PER_STAGE.get(step.kind)


def _training_seconds(name: str, size: int, training: Training, pictures: int | None) -> float | None:
    """Three forward passes' worth of MACs for each picture and epoch."""
    from distilledge.models.vision import create, profile

    if pictures is None:
        return None
    macs = profile(create(name, classes=2, size=size), size).macs
    return 3 * macs * pictures * training.epochs / TRAINING_MACS_PER_SECOND


def _pictures(recipe: Recipe) -> int | None:
    if recipe.data.format == "synthetic" or recipe.data.path == "synthetic":
        return int(6 * recipe.data.synthetic.per_class * recipe.data.splits.train)
    from distilledge.pipeline.data.describe import describe

    total = describe(recipe.data.path).get("pictures")
    return None if total is None else int(total * recipe.data.splits.train)
