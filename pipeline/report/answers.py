"""What teacher and shipped student answer, sample by sample. What texts alone have is in ``text_answers.py``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.decode import TAB
from distilledge.pipeline.evidence import Evidence
from distilledge.pipeline.outcomes import SINGLE_LABEL, Outcomes
from distilledge.pipeline.report.results import metric
from distilledge.pipeline.report.vocabulary import (
    ClassChange,
    Confusion,
    Disagreement,
    Gallery,
    Line,
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


class Shown(NamedTuple):
    """What the gallery shows of one sample."""

    picture: str = ""
    lines: tuple[Line, ...] = ()


Show = Callable[[int], Shown]


class Pair(NamedTuple):
    """The two files that are compared sample by sample."""

    teacher: Predictions
    student: Predictions


class Pictures(NamedTuple):
    """Where the pictures of the evidence lie, and how the student sees them."""

    root: Path
    paths: Sequence[str]
    spec: InputSpec


def confusions(evidence: Evidence, pair: Pair, classes: Sequence[str]) -> tuple[Confusion, ...]:
    """Of classes by sample, of tags by word."""
    task = evidence.recipe.task
    if len(classes) > CLASSES_SHOWN or task not in (*SINGLE_LABEL, "token-classification"):
        return ()
    separator = TAB if task == "token-classification" else None
    return tuple(Confusion(name=p.name, matrix=_matrix(evidence.outcomes[p.name], classes, separator)) for p in pair)


def _matrix(found: Outcomes, classes: Sequence[str], separator: str | None) -> tuple[tuple[int, ...], ...]:
    pairs = list(zip(found.truths, found.answers, strict=True))
    if separator:
        tags = [zip(truth.split(separator), answer.split(separator), strict=True) for truth, answer in pairs]
        pairs = [pair for sentence in tags for pair in sentence if pair[0]]
    place = {name: i for i, name in enumerate(classes)}
    cells = [place[truth] * len(classes) + place[answer] for truth, answer in pairs]
    counts = np.bincount(np.array(cells, np.int64), minlength=len(classes) ** 2)
    return tuple(tuple(int(x) for x in row) for row in counts.reshape(len(classes), -1))


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
    """Where an answer is one class."""
    return tuple(_reliability(evidence, p) for p in pair) if evidence.recipe.task in SINGLE_LABEL else ()


def _reliability(evidence: Evidence, predictions: Predictions) -> Reliability:
    found = evidence.outcomes[predictions.name]
    bins, error = stats.reliability(found.confidence, found.right)
    return Reliability(name=predictions.name, bins=bins, error=100 * error)


def gallery(evidence: Evidence, pair: Pair, paths: Sequence[str], show: Show, limit: int) -> Gallery:
    """Disagreements, those first that only the teacher gets right, the student's surest first.

    ``show``: what is shown of a sample beside the answers.
    """
    teacher, student = (evidence.outcomes[p.name] for p in pair)
    differ = np.array([a != b for a, b in zip(teacher.answers, student.answers, strict=True)], bool)
    rows = np.flatnonzero(differ & ~(teacher.right & student.right))  # two spellings may both be right
    kind = np.where(teacher.right, 0, np.where(student.right, 1, 2))
    order = rows[np.lexsort((-student.confidence[rows], kind[rows]))]
    counts = np.bincount(kind[rows], minlength=3)
    return Gallery(
        shown=tuple(
            _disagreement(teacher, student, row, paths[row], show(row)) for row in _each_kind(order, kind, limit)
        ),
        teacher_right=int(counts[0]),
        student_right=int(counts[1]),
        both_wrong=int(counts[2]),
    )


def _disagreement(teacher: Outcomes, student: Outcomes, row: int, path: str, shown: Shown) -> Disagreement:
    words = [found.replace(TAB, " ") for found in (student.truths[row], teacher.answers[row], student.answers[row])]
    return Disagreement(
        path=path,
        label=words[0],
        teacher=words[1],
        teacher_probability=float(teacher.confidence[row]),
        teacher_right=bool(teacher.right[row]),
        student=words[2],
        student_probability=float(student.confidence[row]),
        student_right=bool(student.right[row]),
        picture=shown.picture,
        lines=shown.lines,
    )


def pictured(pictures: Pictures) -> Show:
    """Shows a picture."""
    return lambda row: Shown(picture=_data_uri(pictures.root / pictures.paths[row], pictures.spec))


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
    exact = stats_counts.closed(evidence.counts(student), evidence.recipe.metric)
    return TeacherWorth(
        runtime=control.runtime,
        student=_metric(evidence, student),
        control=_metric(evidence, control),
        teacher=_metric(evidence, teacher),
        gain=evidence.drop(student, control),
        p_value=evidence.p_value(student, control),
        test="McNemar, exact" if exact else "answers swapped at random",
        only_student=int((with_teacher & ~without).sum()),
        only_control=int((without & ~with_teacher).sum()),
    )


def _metric(evidence: Evidence, predictions: Predictions) -> Estimate:
    found = metric(evidence, predictions)
    assert found is not None  # the caller has seen labels
    return found
