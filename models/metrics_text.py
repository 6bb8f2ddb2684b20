"""How good answers on texts are, as counts of every text: numpy only, so that no torch is needed to judge.

Counts add up over texts, so that a bootstrap over texts is a product of matrices: ``f1`` and ``macro_f1`` take sums.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]
Tags = Sequence[str]

PREFIXED = re.compile(r"([BIES])(?:-(.*))?|([UL])-(.*)", re.DOTALL)
OTHER_SCHEME = {"U": "S", "L": "E"}
"""Prefixes of BILOU in those of IOBES."""
STARTS = {("E", "E"), ("E", "I"), ("S", "E"), ("S", "I"), ("O", "E"), ("O", "I")}
"""(Last prefix, this prefix) between which an entity starts, as conlleval.pl has it; at B and S one always does."""
ENDS = {("B", "B"), ("B", "S"), ("B", "O"), ("I", "B"), ("I", "S"), ("I", "O")}
"""(Last prefix, this prefix) between which an entity ends; after E and S one always does."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Entity(NamedTuple):
    kind: str
    start: int
    end: int
    """Index of the last word."""


# --- tags of words ---------------------------------------------------------------------------------------------------


def split_tag(tag: str) -> tuple[str, str]:
    """(Prefix, type) of a tag: ``B-PER`` is (B, PER). One without a prefix counts as inside: ``PER`` is (I, PER)."""
    if tag == "O":
        return "O", "_"
    if found := PREFIXED.fullmatch(tag):
        prefix = found[1] or OTHER_SCHEME[found[3]]
        return prefix, found[2] or found[4] or "_"
    return "I", tag


def entities(tags: Tags) -> list[Entity]:
    """Entities of one sentence, in order, as conlleval.pl and seqeval's default mode find them."""
    found = []
    last, kind, start = "O", "", 0
    for index, tag in enumerate((*tags, "O")):
        prefix, this = split_tag(tag)
        changed = kind != this
        if last in ("E", "S") or (last, prefix) in ENDS or (last != "O" and changed):
            found.append(Entity(kind, start, index - 1))
        if prefix in ("B", "S") or (last, prefix) in STARTS or (prefix != "O" and changed):
            start = index
        last, kind = prefix, this
    return found


def kinds(tags: Iterable[str]) -> tuple[str, ...]:
    """Entity types of a set of tags, in their order."""
    return tuple(dict.fromkeys(split_tag(tag)[1] for tag in tags if tag != "O"))


def entity_counts(truth: Sequence[Tags], predicted: Sequence[Tags]) -> Doubles:
    """True positives, false positives, false negatives of every sentence (N, 3): type and both ends must be right."""
    rows = [_hits(set(entities(a)), set(entities(b))) for a, b in zip(truth, predicted, strict=True)]
    return np.array(rows, np.float64).reshape(-1, 3)


def entity_counts_by_kind(truth: Sequence[Tags], predicted: Sequence[Tags], names: Sequence[str]) -> Doubles:
    """As ``entity_counts``, of each type (N, types, 3)."""
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(truth), len(names), 3))
    for row, a, b in zip(table, truth, predicted, strict=True):
        right, answered = set(entities(a)), set(entities(b))
        for column, chosen in enumerate((right & answered, answered - right, right - answered)):
            for entity in chosen:
                row[place[entity.kind], column] += 1
    return table


def _hits(right: set[Entity], answered: set[Entity]) -> tuple[int, int, int]:
    both = len(right & answered)
    return both, len(answered) - both, len(right) - both


# --- labels ----------------------------------------------------------------------------------------------------------


def label_counts(truth: Bools, predicted: Bools) -> Doubles:
    """True positives, false positives, false negatives of every text (N, 3) from sets of labels (N, C)."""
    parts = (truth & predicted, ~truth & predicted, truth & ~predicted)
    return np.stack([part.sum(axis=1) for part in parts], axis=1).astype(np.float64)


def class_counts(predicted: Labels, labels: Labels, classes: int) -> Doubles:
    """True positives, false positives, false negatives of every text for each class (N, C, 3)."""
    table = np.zeros((len(labels), classes, 3))
    rows = np.arange(len(labels))
    right = predicted == labels
    table[rows, predicted, np.where(right, 0, 1)] = 1
    table[rows[~right], labels[~right], 2] = 1
    return table


def f1(sums: Doubles) -> Any:
    """F1 (...,) of summed counts (..., 3): 2 tp / (2 tp + fp + fn); 0 where there is nothing."""
    hits = 2 * sums[..., 0]
    whole = hits + sums[..., 1] + sums[..., 2]
    return np.divide(hits, whole, out=np.zeros_like(whole), where=whole > 0)


def macro_f1(sums: Doubles) -> Any:
    """Mean F1 (...,) of the classes that occur as truth or answer, from summed counts (..., C, 3); 0 if none does."""
    occurs = sums.sum(axis=-1) > 0
    count = occurs.sum(axis=-1)
    total = (f1(sums) * occurs).sum(axis=-1)
    return np.divide(total, count, out=np.zeros(np.shape(total)), where=count > 0)


# --- answers to questions --------------------------------------------------------------------------------------------


def normalised(answer: str) -> str:
    """As SQuAD v1.1 compares: lower case, no punctuation, no articles, single blanks (Rajpurkar et al. 2016)."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the true ones; without a true one the empty answer is right."""
    return float(any(normalised(answer) == normalised(truth) for truth in truths or ("",)))


def answer_f1(answer: str, truths: Sequence[str]) -> float:
    """Overlap of the words with the true answer that is nearest; without a true one the empty answer is right."""
    return max(_overlap(normalised(answer).split(), normalised(truth).split()) for truth in truths or ("",))


def _overlap(answered: list[str], true: list[str]) -> float:
    """F1 of two bags of words; two empty ones are equal (SQuAD 2.0)."""
    if not answered or not true:
        return float(answered == true)
    same = sum((Counter(answered) & Counter(true)).values())
    return 2 * same / (len(answered) + len(true))


def span_f1(predicted: Labels, targets: Labels) -> Doubles:
    """Overlap (N,) of spans of positions (N, 2), first and last; a span that ends before it starts is empty."""
    start, end = np.maximum(predicted[:, 0], targets[:, 0]), np.minimum(predicted[:, 1], targets[:, 1])
    same = np.maximum(0, end - start + 1)
    lengths = sum(np.maximum(0, spans[:, 1] - spans[:, 0] + 1) for spans in (predicted, targets))
    return np.asarray(2 * same / np.maximum(1, lengths), np.float64)
