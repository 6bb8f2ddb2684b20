"""From a file's raw logits to its answers: classes, label sets, tags of words, spans of a context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distilledge.models import metrics
from distilledge.pipeline.recipe import TaskName
from distilledge.pipeline.record import TextRow

if TYPE_CHECKING:
    from distilledge.targets.ondevice.text import Encoded, TextEncoder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Logits = npt.NDArray[Any]

LONGEST_ANSWER = 30
"""Tokens of an answer at most, as the SQuAD script of BERT has it."""
TAB = "\t"
"""Between the tags of a sentence's words."""


class Answered(NamedTuple):
    """The answers of one file. ``chosen``: class indices (N,), label sets (N, C), or the tags of each row's words."""

    chosen: Any
    answers: tuple[str, ...]
    """In words: a class; labels; tags with ``TAB`` between; the text of an answer."""
    confidence: Floats
    """Probability of the answer (N,): of all its labels, of its least sure word, of its start and its end."""
    spans: Ints
    """Of question-answering: first and last + 1 character of the answer in the context (N, 2); else -1."""
    positions: Ints
    """Of question-answering: first and last token of the answer (N, 2); else -1."""


def decode(
    task: TaskName, logits: Logits, rows: Sequence[TextRow], encoder: TextEncoder | None, classes: Sequence[str]
) -> Answered:
    """Answers to all rows; a logit that is not a number counts as 0. Tags and spans need the file's tokenizer."""
    finite = np.nan_to_num(np.asarray(logits, np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    return ANSWERS[task](finite, rows, encoder, classes)


def named(labels: Ints, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of class indices; of -1 none."""
    return tuple(classes[int(i)] if i >= 0 else "" for i in labels)


def _no_spans(count: int) -> tuple[Ints, Ints]:
    return np.full((count, 2), -1), np.full((count, 2), -1)


def _classes(logits: Logits, _rows: Any, _encoder: Any, classes: Sequence[str]) -> Answered:
    chosen = metrics.top1(logits)
    confidence = np.exp(metrics.log_softmax(logits).max(axis=1))
    return Answered(chosen, named(chosen, classes), confidence, *_no_spans(len(logits)))


def _label_sets(logits: Logits, _rows: Any, _encoder: Any, classes: Sequence[str]) -> Answered:
    chosen = logits > 0
    sure = -np.logaddexp(0, -np.abs(logits)).sum(axis=1)  # log of the product of sigmoids
    return Answered(chosen, joined(chosen, classes), np.exp(sure), *_no_spans(len(logits)))


def joined(chosen: Bools, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(", ".join(classes[i] for i in np.flatnonzero(row).tolist()) for row in chosen)


def _tags(logits: Logits, rows: Sequence[TextRow], encoder: TextEncoder | None, classes: Sequence[str]) -> Answered:
    """A word has the tag of its first piece; a word that was cut off has the first class, ``O``."""
    tags: list[list[str]] = []
    confidence = np.ones(len(rows))
    for index, (row, encoded) in enumerate(zip(rows, _encoded(rows, encoder), strict=True)):
        chosen = [classes[0]] * len(row.text)
        places = first_pieces(encoded.words)
        if places:
            chance = metrics.log_softmax(logits[index][list(places.values())])
            for word, tag in zip(places, chance.argmax(axis=1).tolist(), strict=True):
                chosen[word] = classes[tag]
            confidence[index] = np.exp(chance.max(axis=1).min())
        tags.append(chosen)
    return Answered(tags, tuple(TAB.join(t) for t in tags), confidence, *_no_spans(len(rows)))


def first_pieces(words: Sequence[int | None]) -> dict[int, int]:
    """Word -> position of its first token."""
    places: dict[int, int] = {}
    for position, word in enumerate(words):
        if word is not None:
            places.setdefault(word, position)
    return places


def _spans(logits: Logits, rows: Sequence[TextRow], encoder: TextEncoder | None, _classes: Any) -> Answered:
    """The best span of the context; where some rows have no answer, none if the first token scores higher."""
    may_be_none = any(not row.answers for row in rows)
    answers, confidence = [], np.zeros(len(rows))
    spans, positions = _no_spans(len(rows))
    for index, (row, encoded) in enumerate(zip(rows, _encoded(rows, encoder), strict=True)):
        z = logits[index][: len(encoded.ids)]
        found = best_span(z, np.array(encoded.in_context, bool))
        chance = metrics.log_softmax(z.T)
        none = may_be_none and (found is None or z[0].sum() > z[found[0], 0] + z[found[1], 1])
        if found is None or none:
            confidence[index] = np.exp(chance[:, 0].sum())
            answers.append("")
            continue
        positions[index] = found
        spans[index] = encoded.offsets[found[0]][0], encoded.offsets[found[1]][1]
        confidence[index] = np.exp(chance[0, found[0]] + chance[1, found[1]])
        answers.append((row.context or "")[spans[index, 0] : spans[index, 1]])
    return Answered(None, tuple(answers), confidence, spans, positions)


def best_span(logits: Logits, allowed: Bools) -> tuple[int, int] | None:
    """First and last token (L, 2 logits) with the largest sum, at most ``LONGEST_ANSWER`` tokens; None without any."""
    if not allowed.any():
        return None
    start, end = (np.where(allowed, z, -np.inf) for z in np.asarray(logits.T, np.float64))
    behind = np.pad(end, (0, LONGEST_ANSWER - 1), constant_values=-np.inf)
    scores = start[:, None] + np.lib.stride_tricks.sliding_window_view(behind, LONGEST_ANSWER)
    first, more = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(first), int(first + more)


def _encoded(rows: Sequence[TextRow], encoder: TextEncoder | None) -> list[Encoded]:
    assert encoder is not None  # a tokenizer lies beside every file of these tasks
    return [encoder.encode_aligned({"text": as_row(row.text), "context": row.context}) for row in rows]


def as_row(text: str | tuple[str, ...]) -> str | list[str]:
    return text if isinstance(text, str) else list(text)


Answer = Callable[[Logits, Sequence[TextRow], "TextEncoder | None", Sequence[str]], Answered]
ANSWERS: dict[TaskName, Answer] = {
    "image-classification": _classes,
    "text-classification": _classes,
    "multi-label-classification": _label_sets,
    "token-classification": _tags,
    "question-answering": _spans,
}
