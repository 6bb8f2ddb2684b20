"""What the teacher and the shipped student answer, picture by picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from distilledge.pipeline import stats
from distilledge.pipeline.gate import Evidence
from distilledge.pipeline.report.results import metric
from distilledge.pipeline.report.vocabulary import (
    ClassChange,
    Confusion,
    Disagreement,
    Gallery,
    Reliability,
    TeacherWorth,
)
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Predictions
from distilledge.targets.ondevice.preprocess import BadPicture, InputSpec, preprocess

CLASSES_SHOWN = 100
"""Above this many classes a confusion matrix is not kept."""
THUMBNAIL = 128
"""Pixels of the longer side of a picture in the gallery."""


class Pair(NamedTuple):
    """The two files that are compared picture by picture."""

    teacher: Predictions
    student: Predictions


class Pictures(NamedTuple):
    """Where the pictures of ``Evidence.labels`` lie, and how the student sees them."""

    root: Path
    paths: Sequence[str]
    spec: InputSpec


def confusions(evidence: Evidence, pair: Pair, classes: Sequence[str]) -> tuple[Confusion, ...]:
    if len(classes) > CLASSES_SHOWN:
        return ()
    return tuple(Confusion(name=p.name, matrix=_matrix(evidence, p, len(classes))) for p in pair)


def _matrix(evidence: Evidence, predictions: Predictions, classes: int) -> tuple[tuple[int, ...], ...]:
    answers = evidence.logits[predictions.name].argmax(axis=1)
    counts = np.bincount(evidence.labels * classes + answers, minlength=classes * classes)
    return tuple(tuple(int(x) for x in row) for row in counts.reshape(classes, classes))


def class_changes(evidence: Evidence, pair: Pair, classes: Sequence[str]) -> tuple[ClassChange, ...]:
    """Recalls of the classes that occur, in the order of the classes."""
    teacher, student = (evidence.correct(p) for p in pair)
    found = []
    for index, name in enumerate(classes):
        rows = evidence.labels == index
        if rows.any():
            found.append(
                ClassChange(
                    name=name,
                    pictures=int(rows.sum()),
                    teacher=100 * float(teacher[rows].mean()),
                    student=100 * float(student[rows].mean()),
                )
            )
    return tuple(found)


def reliabilities(evidence: Evidence, pair: Pair) -> tuple[Reliability, ...]:
    return tuple(_reliability(evidence, p) for p in pair)


def _reliability(evidence: Evidence, predictions: Predictions) -> Reliability:
    confidence = probabilities(evidence.logits[predictions.name]).max(axis=1)
    bins, error = stats.reliability(confidence, evidence.correct(predictions))
    return Reliability(name=predictions.name, bins=bins, error=100 * error)


def probabilities(logits: npt.NDArray[Any]) -> stats.Floats:
    """Softmax over the classes; an answer that is not finite counts as no preference."""
    finite = np.nan_to_num(logits.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    powers = np.exp(finite - finite.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def gallery(evidence: Evidence, pair: Pair, classes: Sequence[str], pictures: Pictures, limit: int) -> Gallery:
    """Disagreements, those first that only the teacher gets right, the student's surest first."""
    teacher, student = (probabilities(evidence.logits[p.name]) for p in pair)
    first, second = teacher.argmax(axis=1), student.argmax(axis=1)
    rows = np.flatnonzero(first != second)
    kind = np.where(first == evidence.labels, 0, np.where(second == evidence.labels, 1, 2))
    order = rows[np.lexsort((-student.max(axis=1)[rows], kind[rows]))]
    counts = np.bincount(kind[rows], minlength=3)
    shown = [
        Disagreement(
            path=pictures.paths[row],
            label=classes[evidence.labels[row]],
            teacher=classes[first[row]],
            teacher_probability=float(teacher[row].max()),
            student=classes[second[row]],
            student_probability=float(student[row].max()),
            picture=_data_uri(pictures.root / pictures.paths[row], pictures.spec),
        )
        for row in _each_kind(order, kind, limit)
    ]
    return Gallery(
        shown=tuple(shown), teacher_right=int(counts[0]), student_right=int(counts[1]), both_wrong=int(counts[2])
    )


def _each_kind(order: stats.Ints, kind: stats.Ints, limit: int) -> list[int]:
    """At most ``limit`` rows; half of them go to what only the teacher gets right, if there are others."""
    lost = [int(r) for r in order if kind[r] == 0]
    others = [int(r) for r in order if kind[r] != 0]
    room = max(limit - len(others), limit // 2)
    return lost[:room] + others[: limit - len(lost[:room])]


def _data_uri(path: Path, spec: InputSpec) -> str:
    try:
        image = Image.fromarray(preprocess(path, spec))
    except (OSError, BadPicture):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def teacher_worth(evidence: Evidence) -> TeacherWorth | None:
    """The student's fp32 file against the control's in the control's runtime; None without a control."""
    control = next((p for p in evidence.predictions if p.role == "control"), None)
    if control is None or not len(evidence.labels):
        return None
    student = evidence.find("student", control.runtime, control.precision)
    teacher = evidence.find("teacher", control.runtime, "fp32")
    if student is None or teacher is None:
        return None
    with_teacher, without = evidence.correct(student), evidence.correct(control)
    return TeacherWorth(
        runtime=control.runtime,
        student=_metric(evidence, student),
        control=_metric(evidence, control),
        teacher=_metric(evidence, teacher),
        gain=evidence.drop(student, control),
        p_value=stats.mcnemar(with_teacher, without),
        only_student=int((with_teacher & ~without).sum()),
        only_control=int((without & ~with_teacher).sum()),
    )


def _metric(evidence: Evidence, predictions: Predictions) -> Estimate:
    found = metric(evidence, predictions)
    assert found is not None  # the caller has seen labels
    return found
