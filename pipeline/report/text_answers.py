"""What is shown of texts on which teacher and shipped student differ, and the F1 of every class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from distilledge.models import metrics_text
from distilledge.pipeline.decode import TAB
from distilledge.pipeline.evidence import Evidence
from distilledge.pipeline.outcomes import SINGLE_LABEL, Outcomes
from distilledge.pipeline.record import TextRow
from distilledge.pipeline.report.answers import Pair, Show, Shown
from distilledge.pipeline.report.vocabulary import ClassChange, Line, Piece
from distilledge.pipeline.stats import Floats
from distilledge.targets.base import Predictions

LETTERS = 400
"""Characters of a text that are shown."""
BEFORE = 80
"""Characters shown before the first place that matters."""
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that no page should obey, those that turn the direction of writing among them."""
MARKS = ("truth", "teacher", "student")


def class_changes(
    evidence: Evidence, pair: Pair, rows: Sequence[TextRow], classes: Sequence[str]
) -> tuple[ClassChange, ...]:
    """F1 of the classes, labels or entity types that occur; of answers to questions nothing."""
    task = evidence.recipe.task
    if task == "question-answering":
        return ()
    names = metrics_text.kinds(classes) if task == "token-classification" else tuple(classes)
    sums = [_sums(evidence, p, rows, names) for p in pair]
    support = sums[0][:, 0] + sums[0][:, 2]
    teacher, student = (100 * metrics_text.f1(s) for s in sums)
    return tuple(
        ClassChange(name=name, pictures=int(support[i]), teacher=float(teacher[i]), student=float(student[i]))
        for i, name in enumerate(names)
        if support[i]
    )


def _sums(evidence: Evidence, predictions: Predictions, rows: Sequence[TextRow], names: Sequence[str]) -> Floats:
    """True positives, false positives, false negatives of each name (C, 3)."""
    logits, found = evidence.logits[predictions.name], evidence.outcomes[predictions.name]
    if evidence.recipe.task in SINGLE_LABEL:
        counts = metrics_text.class_counts(logits.argmax(axis=1), evidence.labels, len(names))
    elif evidence.recipe.task == "token-classification":
        truths, answers = ([sentence.split(TAB) for sentence in part] for part in (found.truths, found.answers))
        counts = metrics_text.entity_counts_by_kind(truths, answers, names)
    else:
        held = np.array([[i in row.labels for i in range(len(names))] for row in rows], bool)
        counts = np.stack([held & (logits > 0), ~held & (logits > 0), held & ~(logits > 0)], axis=2)
    return np.asarray(counts.sum(axis=0), np.float64)


def texts(evidence: Evidence, pair: Pair, rows: Sequence[TextRow]) -> Show:
    """Shows a text, with what each file marked in it."""
    teacher, student = (evidence.outcomes[p.name] for p in pair)
    if evidence.recipe.task == "token-classification":
        return lambda row: Shown(lines=_tagged(rows[row], teacher, student, row))
    if evidence.recipe.task == "question-answering":
        return lambda row: Shown(lines=_asked(rows[row], teacher, student, row))
    return lambda row: Shown(lines=(Line(who="", pieces=(Piece(text=_plain(rows[row])),)),))


def shown(text: str) -> str:
    """Without characters that act on a page."""
    return CONTROLS.sub("\ufffd", text)


def _plain(row: TextRow) -> str:
    text = row.text if isinstance(row.text, str) else " ".join(row.text)
    return _cut(text, 0)


def _cut(text: str, start: int) -> str:
    """``LETTERS`` characters from ``start``, with an ellipsis where something is left out."""
    end = start + LETTERS
    return shown(("… " if start else "") + text[start:end] + (" …" if end < len(text) else ""))


# --- tags ------------------------------------------------------------------------------------------------------------


def _tagged(row: TextRow, teacher: Outcomes, student: Outcomes, index: int) -> tuple[Line, ...]:
    """The words three times, entities as pieces: the true ones, the teacher's, the student's."""
    answers = [found.split(TAB) for found in (student.truths[index], teacher.answers[index], student.answers[index])]
    differ = next(i for i, tags in enumerate(zip(*answers, strict=True)) if len(set(tags)) > 1)
    words = tuple(row.text)
    low, high = _window(words, differ)
    return tuple(
        Line(who=who, pieces=_entities(words, tags, low, high)) for who, tags in zip(MARKS, answers, strict=True)
    )


def _window(words: Sequence[str], place: int) -> tuple[int, int]:
    """Words around the one at ``place`` that make about ``LETTERS`` characters."""
    low, letters = place, 0
    while low > 0 and letters + len(words[low - 1]) < BEFORE:
        low -= 1
        letters += len(words[low]) + 1
    high, letters = low, 0
    while high < len(words) and (letters + len(words[high]) < LETTERS or high <= place):
        letters += len(words[high]) + 1
        high += 1
    return low, high


def _entities(words: Sequence[str], tags: Sequence[str], low: int, high: int) -> tuple[Piece, ...]:
    """Words ``low`` to ``high`` cut where an entity begins or ends."""
    pieces = [Piece(text="…")] if low else []
    at = low
    for kind, start, end in metrics_text.entities(tags):
        first, last = max(start, low), min(end + 1, high)
        if first >= last:
            continue
        pieces += [_words(words[at:first]), _words(words[first:last], kind)]
        at = last
    pieces += [_words(words[at:high]), *([Piece(text="…")] if high < len(words) else [])]
    return tuple(p for p in pieces if p.text)


def _words(words: Sequence[str], *marks: str) -> Piece:
    return Piece(text=shown(" ".join(w[:LETTERS] for w in words)), marks=marks)


# --- answers in a context --------------------------------------------------------------------------------------------


def _asked(row: TextRow, teacher: Outcomes, student: Outcomes, index: int) -> tuple[Line, ...]:
    """The question, and the context with the three answers marked."""
    context = row.context or ""
    true = (row.answers[0][0], row.answers[0][0] + len(row.answers[0][1])) if row.answers else (-1, -1)
    spans = [true, *(tuple(int(x) for x in found.spans[index]) for found in (teacher, student))]
    first = min((start for start, _ in spans if start >= 0), default=0)
    low = max(0, first - BEFORE)
    high = min(len(context), low + LETTERS)
    pieces = [Piece(text="… ")] if low else []
    pieces += _segments(context, spans, low, high)
    pieces += [Piece(text=" …")] if high < len(context) else []
    return Line(who="question", pieces=(Piece(text=_plain(row)),)), Line(who="context", pieces=tuple(pieces))


def _segments(context: str, spans: Sequence[tuple[int, ...]], low: int, high: int) -> list[Piece]:
    """The context cut where a span begins or ends, each part with the names of the spans that hold it."""
    edges = sorted({low, high, *(edge for span in spans for edge in span if low < edge < high)})
    return [
        Piece(
            text=shown(context[a:b]),
            marks=tuple(who for who, (start, end) in zip(MARKS, spans, strict=True) if start <= a and b <= end),
        )
        for a, b in pairwise(edges)
    ]
