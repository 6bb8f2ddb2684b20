"""Several tasks judged: the joined logits of every file cut by task, a verdict for each, and the worst of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilledge.models.errors import RejectedError
from distilledge.models.heads import Head, Heads, spans
from distilledge.pipeline import gate
from distilledge.pipeline.data.labels import Labels, read_labels
from distilledge.pipeline.evidence import Arrays
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Check, ExportResult, Measurements, Sample, Scores, Verdict, Verdicts
from distilledge.targets.base import Exported, Predictions

WORDS = ("worse", "inconclusive", "not worse", "better")
"""Of accuracy against the teacher, the worst first."""
DEVICE = (gate.P50, gate.SIZE, gate.RSS)
"""Checks of a file as a whole."""


class TaskScores(NamedTuple):
    """What one task's part of a score stage is: as of a run with this task alone."""

    head: Head
    recipe: Recipe
    scores: Scores
    logits: dict[str, Any]


def apart(recipe: Recipe, scores: Scores, logits: Arrays, heads: Heads, labels: Labels) -> Iterator[TaskScores]:
    """``labels``: (N, tasks), of the samples of ``scores.paths``. The recipes have the task's own limits."""
    for number, (head, columns) in enumerate(zip(heads, spans(heads), strict=True)):
        own = scores.model_copy(update={"labels": tuple(int(label) for label in labels[:, number])})
        cut = {name: array[:, columns] for name, array in logits.items()}
        yield TaskScores(head, with_limit(recipe, head.name), own, cut)


def with_limit(recipe: Recipe, task: str) -> Recipe:
    """The recipe with ``multitask.max_drop_points`` of the task in every budget."""
    given = recipe.multitask.max_drop_points
    if task not in given:
        return recipe
    budgets = {
        name: budget.model_copy(update={"max_drop_points": given[task]}) for name, budget in recipe.budgets.items()
    }
    return recipe.model_copy(update={"budgets": budgets})


def primary(logits: Arrays, heads: Heads, classes: Sequence[str]) -> tuple[Arrays, Sequence[str]]:
    """Logits and classes of the primary task, whose labels are those of the scores; of one task as they are."""
    if not heads:
        return logits, classes
    return {name: array[:, spans(heads)[0]] for name, array in logits.items()}, heads[0].classes


def labels_of(heads: Heads, data: Path, tested: Sequence[Sample]) -> Labels:
    return read_labels(data, tested) if heads else np.zeros((len(tested), 0), np.int64)


def judge_tasks(
    recipe: Recipe,
    scores: Scores,
    logits: Arrays,
    measurements: Measurements,
    exports: Iterable[ExportResult],
    groups: Sequence[str] | None = None,
    *,
    heads: Heads,
    labels: Labels,
) -> Verdicts:
    """``gate.judge`` of each task; a file's verdict is that of its worst task, which it names."""
    results = list(exports)
    found = [
        (
            one.head.name,
            gate.judge(one.recipe, one.scores, one.logits, measurements, _of_head(results, one.head), groups),
        )
        for one in apart(recipe, scores, logits, heads, labels)
    ]
    files = zip(*(verdicts.items for _, verdicts in found), strict=True)
    names = [name for name, _ in found]
    return Verdicts(items=tuple(worst(dict(zip(names, verdicts, strict=True))) for verdicts in files))


def _of_head(results: Sequence[ExportResult], head: Head) -> list[ExportResult]:
    """The files with the classes of one task."""

    def own(file: Exported) -> Exported:
        return file.model_copy(update={"classes": head.classes, "heads": ()})

    return [r.model_copy(update={"files": tuple(own(file) for file in r.files)}) for r in results]


def worst(by_task: Mapping[str, Verdict]) -> Verdict:
    """Checks and alarms of accuracy with their task's name before them, those of the device once."""
    first = next(iter(by_task.values()))
    checks = [_named(task, c) for task, v in by_task.items() for c in v.checks if c.what not in DEVICE]
    alike = [alarm for alarm in first.alarms if all(alarm in v.alarms for v in by_task.values())]
    alarms = [f"{task}: {alarm}" for task, v in by_task.items() for alarm in v.alarms if alarm not in alike]
    order = {outcome: number for number, outcome in enumerate(gate.WORST_FIRST)}
    decided = min(by_task, key=lambda task: (order[by_task[task].outcome], WORDS.index(by_task[task].accuracy_word)))
    return first.model_copy(
        update={
            "outcome": by_task[decided].outcome,
            "accuracy_word": min((v.accuracy_word for v in by_task.values()), key=WORDS.index),
            "checks": (*checks, *(c for c in first.checks if c.what in DEVICE)),
            "alarms": (*alarms, *alike),
            "decided_by": decided if by_task[decided].outcome != "pass" else "",
        }
    )


def _named(task: str, check: Check) -> Check:
    return check.model_copy(update={"what": f"{task}: {check.what}"})


def check_width(item: Predictions, directory: Path, heads: Heads) -> None:
    """That a device gave the outputs of all tasks. Raises ``RejectedError``."""
    if not heads:
        return
    wanted, found = sum(len(head.classes) for head in heads), int(np.load(directory / item.logits).shape[1])
    if found != wanted:
        what = f"the device gave {found} of {wanted} values of {item.name}: it reads one output of several"
        raise RejectedError("E3505", what, "set measure.device to a machine that runs our worker")
