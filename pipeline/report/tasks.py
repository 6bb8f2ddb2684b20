"""Several tasks in a report: each file by task, what the teacher was worth to each, how losses were weighed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilledge.pipeline import gate
from distilledge.pipeline.data.labels import read_labels
from distilledge.pipeline.evidence import Evidence, gather_evidence
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Measurements, Sample, Scores, Splits, Verdicts
from distilledge.pipeline.report.answers import teacher_worth
from distilledge.pipeline.report.results import metric
from distilledge.pipeline.report.task_content import TaskContent, TaskFile, TaskWorth
from distilledge.pipeline.task_scores import apart

WEIGHTINGS = {
    "fixed": "fixed weights",
    "uncertainty": "weights learnt as uncertainties (Kendall et al. 2018)",
    "gradnorm": "weights by GradNorm (Chen et al. 2018)",
}


def task_content(
    recipe: Recipe,
    splits: Splits,
    scores: Scores,
    logits: Mapping[str, Any],
    verdicts: Verdicts,
    *,
    tested: tuple[Path, Sequence[Sample]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> TaskContent:
    """``tested``: the data stage's directory and its test samples; ``curves``: lines of curves.jsonl by training."""
    files: list[TaskFile] = []
    worth: list[TaskWorth] = []
    groups = [s.group for s in tested[1]] if any(s.group for s in tested[1]) else None
    labels = read_labels(tested[0], tested[1])
    none = Measurements(items=())
    for one in apart(recipe, scores, logits, splits.heads, labels) if scores.items else ():
        found = gather_evidence(one.recipe, one.scores, one.logits, none, groups, classes=one.head.classes)
        files += _files(found, one.head.name, verdicts)
        gained = teacher_worth(found)
        if gained is not None:
            worth.append(
                TaskWorth(
                    task=one.head.name,
                    student=gained.student.value,
                    control=gained.control.value,
                    gain=gained.gain,
                    p_value=gained.p_value,
                )
            )
    names = tuple(head.name for head in splits.heads)
    return TaskContent(
        names=names,
        files=tuple(sorted(files, key=lambda f: f.role != "teacher")),
        worth=tuple(worth),
        weighting=WEIGHTINGS[recipe.multitask.weighting],
        weights=tuple((training, weight_words(rows, names)) for training, rows in curves.items() if rows),
    )


def _files(evidence: Evidence, task: str, verdicts: Verdicts) -> Iterator[TaskFile]:
    judged = {v.name: v for v in verdicts.items}
    shipped = {t.shipped.name for t in gate.by_target(verdicts)}
    for predictions in evidence.predictions:
        value = metric(evidence, predictions)
        if predictions.role == "control" or value is None:
            continue
        verdict = judged.get(predictions.name)
        drops = [c for c in verdict.checks if c.what == f"{task}: {gate.DROP_TEACHER}"] if verdict else []
        yield TaskFile(
            task=task,
            file=predictions.name,
            role=predictions.role,
            samples=len(evidence.labels),
            metric=value,
            drop=next(iter(drops), None),
            shipped=predictions.name in shipped,
        )


def weight_words(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Such as ``defect 1.00 to 1.24``: after the first epoch and after the last."""
    words = []
    for name in names:
        first, last = (float(row.get(f"weight.{name}", 1.0)) for row in (rows[0], rows[-1]))
        words.append(f"{name} {first:.3g}" + ("" if first == last else f" to {last:.3g}"))
    return ", ".join(words)
