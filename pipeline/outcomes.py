"""What is judged: counts of every sample for a metric, and the answers beside the truths, in words.

The score stage writes them beside the logits of every file on texts; gate and report read them there. Of pictures the
logits and labels say all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distilledge.models import metrics, metrics_text
from distilledge.pipeline import stats_counts
from distilledge.pipeline.decode import TAB, Answered, Bools, Floats, Ints, Logits, best_span, decode, joined, named
from distilledge.pipeline.recipe import METRICS, MetricName, TaskName
from distilledge.pipeline.record import TextRow
from distilledge.targets.base import Predictions

if TYPE_CHECKING:
    from distilledge.targets.ondevice.text import TextEncoder

ACCURACY: MetricName = "accuracy"
SINGLE_LABEL: tuple[TaskName, ...] = ("image-classification", "text-classification")
Judged = tuple[dict[MetricName, Floats], tuple[str, ...]]
"""Counts by metric, and the truths in words."""


class Outcomes(NamedTuple):
    """Answers of one file to all samples, in their order; fields from ``confidence`` on are those of ``Answered``."""

    counts: Floats
    """(N, k) of one metric; ``stats_counts.value`` is what they add up to."""
    answers: tuple[str, ...]
    truths: tuple[str, ...]
    right: Bools
    """(N,) whether the whole answer is right: every label, every tag, one of the true answers."""
    confidence: Floats
    spans: Ints
    positions: Ints
    others: Mapping[str, float] = {}
    """The task's other metrics, as fractions."""


def outcomes(
    task: TaskName,
    metric: MetricName,
    logits: Logits,
    rows: Sequence[TextRow],
    encoder: TextEncoder | None,
    classes: Sequence[str],
    *,
    labels: Sequence[int] = (),
) -> Outcomes:
    """Counts of ``metric`` and readable answers. ``labels``: of single-label classification, the class of each row.

    ``logits``: (N, C), or (N, L, K) with anything behind the end of a text.
    """
    numbers = np.asarray(labels, np.int64)
    answered = decode(task, logits, rows, encoder, classes)
    counts, truths = _judged(task, answered, rows, classes, numbers)
    return _of_metric(metric, counts, answered, truths, numbers)


def classified(metric: MetricName, logits: Logits, labels: Ints, classes: Sequence[str]) -> Outcomes:
    """Of pictures: needs no text."""
    answered = decode("image-classification", logits, (), None, classes)
    by_metric = {m: _class_counts(m, answered.chosen, labels, len(classes)) for m in dict.fromkeys((metric, ACCURACY))}
    return _of_metric(metric, by_metric, answered, named(labels, classes), labels)._replace(others={})


def of_rows(found: Outcomes, rows: Ints) -> Outcomes:
    """The same of some of the samples; ``others`` stay those of all."""
    return Outcomes(
        counts=found.counts[rows],
        answers=tuple(found.answers[i] for i in rows),
        truths=tuple(found.truths[i] for i in rows),
        right=found.right[rows],
        confidence=found.confidence[rows],
        spans=found.spans[rows],
        positions=found.positions[rows],
        others=found.others,
    )


def distinct(task: TaskName, found: Outcomes) -> tuple[set[str], set[str]]:
    """Answers and truths that differ from each other, in words: of tags those of single words, of answers their places.

    One answer where the truth knows several is a collapse: all ``O``, no label, the same tokens of every context.
    """
    if task == "token-classification":
        return _tags(found.answers), _tags(found.truths)
    if task == "question-answering":
        tokens = {"no answer" if a < 0 else f"tokens {a} to {b}" for a, b in found.positions.tolist()}
        places = {"no answer" if a < 0 else f"characters {a} to {b}" for a, b in found.spans.tolist()}
        return min(tokens, places, key=len), set(found.truths)
    none = {"": "no label"}
    return {none.get(a, a) for a in found.answers}, {none.get(t, t) for t in found.truths}


def _tags(sentences: Sequence[str]) -> set[str]:
    return {tag for sentence in sentences for tag in sentence.split(TAB) if tag}


def _of_metric(
    metric: MetricName, counts: Mapping[MetricName, Floats], answered: Answered, truths: tuple[str, ...], labels: Ints
) -> Outcomes:
    whole = counts.get("exact_match", counts.get(ACCURACY))
    assert whole is not None  # every task has one of the two
    return Outcomes(
        counts=counts[metric],
        answers=answered.answers,
        truths=truths,
        right=whole[:, 0] >= (whole[:, 1] if whole.shape[1] > 1 else 1),
        confidence=answered.confidence,
        spans=answered.spans,
        positions=answered.positions,
        others={m: stats_counts.value(c, labels, metric=m) for m, c in counts.items() if m != metric},
    )


# --- counts: answers against truths ----------------------------------------------------------------------------------


def _judged(
    task: TaskName, answered: Answered, rows: Sequence[TextRow], classes: Sequence[str], labels: Ints
) -> Judged:
    if task in SINGLE_LABEL:
        counts = {m: _class_counts(m, answered.chosen, labels, len(classes)) for m in METRICS[task]}
        return counts, named(labels, classes)
    return COUNTS[task](answered, rows, classes)


def _class_counts(metric: MetricName, chosen: Ints, labels: Ints, classes: int) -> Floats:
    """Rows without a label count nothing."""
    known = labels >= 0
    if metric == "macro_f1":
        table = metrics_text.class_counts(chosen, np.maximum(labels, 0), classes) * known[:, None, None]
        return table.reshape(len(labels), -1)
    return np.asarray((chosen == labels) & known, np.float64)[:, None]


def _count_labels(answered: Answered, rows: Sequence[TextRow], classes: Sequence[str]) -> Judged:
    truth = np.zeros((len(rows), len(classes)), bool)
    for marks, row in zip(truth, rows, strict=True):
        marks[list(row.labels)] = True
    equal = (truth == answered.chosen).all(axis=1)
    counts = metrics_text.label_counts(truth, answered.chosen)
    return {"micro_f1": counts, "exact_match": equal[:, None].astype(np.float64)}, joined(truth, classes)


def _count_tags(answered: Answered, rows: Sequence[TextRow], classes: Sequence[str]) -> Judged:
    truth = [[classes[i] for i in row.labels] for row in rows]
    pairs = list(zip(truth, answered.chosen, strict=True))
    right = [(sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0])) for pair in pairs]
    words = np.array(right, np.float64).reshape(-1, 2)
    return {"entity_f1": metrics_text.entity_counts(truth, answered.chosen), "accuracy": words}, tuple(
        TAB.join(tags) for tags in truth
    )


def _count_answers(answered: Answered, rows: Sequence[TextRow], _classes: Sequence[str]) -> Judged:
    truths = [[text for _, text in row.answers] for row in rows]
    pairs = list(zip(answered.answers, truths, strict=True))
    overlap = np.array([metrics_text.answer_f1(*pair) for pair in pairs], np.float64)
    equal = np.array([metrics_text.exact_match(*pair) for pair in pairs], np.float64)
    words = tuple(texts[0] if texts else "" for texts in truths)
    return {"answer_f1": overlap[:, None], "exact_match": equal[:, None]}, words


COUNTS: dict[TaskName, Callable[[Answered, Sequence[TextRow], Sequence[str]], Judged]] = {
    "multi-label-classification": _count_labels,
    "token-classification": _count_tags,
    "question-answering": _count_answers,
}


# --- on disk ---------------------------------------------------------------------------------------------------------


def write_outcomes(
    path: Path,
    task: TaskName,
    logits: Logits,
    rows: Sequence[TextRow],
    encoder: TextEncoder | None,
    classes: Sequence[str],
    *,
    labels: Sequence[int] = (),
) -> None:
    """Counts of every metric of the task, and the answers, as one .npz."""
    numbers = np.asarray(labels, np.int64)
    answered = decode(task, logits, rows, encoder, classes)
    counts, truths = _judged(task, answered, rows, classes, numbers)
    arrays: dict[str, Any] = {f"counts.{metric}": table for metric, table in counts.items()}
    arrays |= {"answers": np.array(answered.answers, np.str_), "truths": np.array(truths, np.str_), "labels": numbers}
    arrays |= {"confidence": answered.confidence, "spans": answered.spans, "positions": answered.positions}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_outcomes(path: Path, metric: MetricName) -> Outcomes:
    """What ``write_outcomes`` wrote, with the counts of one metric."""
    with np.load(path) as file:
        counts: dict[Any, Floats] = {n.removeprefix("counts."): file[n] for n in file.files if n.startswith("counts.")}
        answers, truths = (tuple(file[name].tolist()) for name in ("answers", "truths"))
        answered = Answered(None, answers, file["confidence"], file["spans"], file["positions"])
        return _of_metric(metric, counts, answered, truths, file["labels"])


def read_all(items: Iterable[Predictions], directory: Path, metric: MetricName) -> dict[str, Outcomes]:
    """Outcomes of every file of a score stage, by its name."""
    return {item.name: read_outcomes(directory / item.outcomes, metric) for item in items if item.outcomes}


# --- during training -------------------------------------------------------------------------------------------------


def validation_metrics(
    task: TaskName, logits: Sequence[Logits] | Logits, targets: Sequence[Ints] | Ints, classes: Sequence[str]
) -> dict[str, float]:
    """The task's metrics, as fractions, and ``loss``: the mean negative log-likelihood, nats.

    Of each row logits and targets: (C,) and a class; (C,) and 0 or 1 for each label; (L, C) and a class for each first
    piece; (L, 2) and the first and last token of the answer. Targets below 0 are left out.
    """
    return VALIDATION[task](logits, targets, classes)


def _validate_classes(logits: Any, targets: Any, classes: Sequence[str]) -> dict[str, float]:
    labels = np.asarray(targets, np.int64)
    z, labels = np.asarray(logits)[labels >= 0], labels[labels >= 0]
    predicted = metrics.top1(z)
    return {
        "accuracy": metrics.accuracy(predicted, labels),
        "balanced_accuracy": metrics.balanced_accuracy(predicted, labels, len(classes)),
        "macro_f1": float(metrics_text.macro_f1(metrics_text.class_counts(predicted, labels, len(classes)).sum(0))),
        "loss": metrics.negative_log_likelihood(z, labels),
    }


def _validate_labels(logits: Any, targets: Any, _classes: Sequence[str]) -> dict[str, float]:
    z, truth = np.asarray(logits, np.float64), np.asarray(targets)
    known = (truth >= 0).all(axis=1)
    z, truth = z[known], truth[known] > 0
    return {
        "micro_f1": float(metrics_text.f1(metrics_text.label_counts(truth, z > 0).sum(0))),
        "exact_match": float(((z > 0) == truth).all(axis=1).mean()),
        "loss": float(np.logaddexp(0, np.where(truth, -z, z)).mean()),
    }


def _validate_tags(logits: Any, targets: Any, classes: Sequence[str]) -> dict[str, float]:
    marked = [np.asarray(t) >= 0 for t in targets]
    z = [np.asarray(row)[: len(here)][here] for row, here in zip(logits, marked, strict=True)]
    truth = [np.asarray(t, np.int64)[here] for t, here in zip(targets, marked, strict=True)]
    tags = [[[classes[i] for i in row] for row in rows] for rows in (truth, [row.argmax(axis=1) for row in z])]
    flat, labels = np.concatenate(z), np.concatenate(truth)
    return {
        "entity_f1": float(metrics_text.f1(metrics_text.entity_counts(*tags).sum(0))),
        "accuracy": metrics.accuracy(metrics.top1(flat), labels),
        "loss": metrics.negative_log_likelihood(flat, labels),
    }


def _validate_spans(logits: Any, targets: Any, _classes: Sequence[str]) -> dict[str, float]:
    pairs = [(np.asarray(z, np.float64), np.asarray(t, np.int64)) for z, t in zip(logits, targets, strict=True)]
    pairs = [(z, t) for z, t in pairs if (t >= 0).all()]
    truth = np.array([t for _, t in pairs]).reshape(-1, 2)
    found = np.array([best_span(z, np.ones(len(z), bool)) for z, _ in pairs]).reshape(-1, 2)
    losses = [-metrics.log_softmax(z.T)[(0, 1), t] for z, t in pairs]
    return {
        "answer_f1": float(metrics_text.span_f1(found, truth).mean()),
        "exact_match": float((found == truth).all(axis=1).mean()),
        "loss": float(np.mean(losses)),
    }


VALIDATION: dict[TaskName, Callable[[Any, Any, Sequence[str]], dict[str, float]]] = {
    "image-classification": _validate_classes,
    "text-classification": _validate_classes,
    "multi-label-classification": _validate_labels,
    "token-classification": _validate_tags,
    "question-answering": _validate_spans,
}
