"""What a set of texts is like: labels, tags, answers, lengths. Copies and leakage are asked in ``audit.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data import splits
from distilledge.pipeline.data.duplicates import same
from distilledge.pipeline.data.listing import Finding, few, finding, shown
from distilledge.pipeline.data.text_rows import Entry, normalise
from distilledge.pipeline.recipe import TaskName
from distilledge.pipeline.record import Split

NOUN = "texts"
OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""


def check_labels(entries: Sequence[Entry], task: TaskName, source: str) -> None:
    """Labels and tags of given splits, by name. Raises RejectedError with the place and the closest class."""
    labelled = [e for e in entries if e.row.split != "unlabelled"]
    if task == "question-answering":
        if not any(e.row.split in (None, "train") for e in labelled):
            raise RejectedError("E3104", f"no train texts: {source}", "give a train split, or no split at all")
        return
    marks = [(label, e.row.split, e.row.path) for e in labelled for label in dict.fromkeys(e.labels)]
    names, parts, places = zip(*marks, strict=True) if marks else ((), (), ())
    splits.check_classes(names, parts, [shown(place) for place in places], source, NOUN)


def check_coverage(entries: Sequence[Entry], parts: Sequence[Split], task: TaskName, source: str) -> list[Finding]:
    """Every class in every split: RejectedError where there is one label each, else a warning."""
    if task == "text-classification":
        splits.check_coverage([e.row.label or "" for e in entries], parts, source, NOUN)
    seen = {(part, label) for e, part in zip(entries, parts, strict=True) for label in e.labels}
    classes = sorted({label for _, label in seen})
    absent = [f"{label} in {part}" for part in splits.PARTS for label in classes if (part, label) not in seen]
    kind = "tags" if task == "token-classification" else "labels"
    message = f"{len(absent)} times a split has none of the {kind} of another: {few(absent)}"
    return [finding("absent_classes", "warning", message, absent)] if absent else []


def classes_of(entries: Iterable[Entry], task: TaskName) -> tuple[str, ...]:
    """Sorted labels; sorted tags after ``O``; start and end of an answer."""
    if task == "question-answering":
        return ("start", "end")
    names = sorted({label for e in entries for label in e.labels})
    first = [OUTSIDE] if task == "token-classification" else []
    return tuple(first + [name for name in names if name not in first])


def strata(entries: Sequence[Entry], task: TaskName) -> list[str]:
    """What a split should have a fair share of: of several labels or entities of a text the rarest."""
    kinds = [{_type(label) for label in e.labels} if task == "token-classification" else set(e.labels) for e in entries]
    totals = Counter(kind for of in kinds for kind in of)
    return [min(of, key=lambda kind: (totals[kind], kind), default="") for of in kinds]


def class_counts(entries: Sequence[Entry], parts: Sequence[str], task: TaskName) -> dict[str, Counter[str]]:
    """Per split: texts with each label, words with each tag; of questions those that have an answer."""
    counts: dict[str, Counter[str]] = {}
    for entry, part in zip(entries, parts, strict=True):
        labels = (("start", "end") if entry.answers else ()) if task == "question-answering" else entry.labels
        counts.setdefault(part, Counter()).update(labels)
    return counts


def describe_texts(entries: Sequence[Entry], task: TaskName) -> list[Finding]:
    """Lengths, tags out of order, answers that were moved, contexts in two splits."""
    words, characters = lengths(entries)
    found = []
    if words:
        middle, most = int(np.median(words)), max(words)
        message = f"median {middle} words, at most {most} words and {max(characters)} characters"
        found.append(Finding(kind="lengths", severity="info", count=len(words), message=message))
    if task == "token-classification":
        wrong = [f"{shown(e.row.path)}: {fault}" for e in entries for fault in tag_faults(e.labels)]
        found.append(finding("tags", "warning", f"{len(wrong)} entities do not begin with B-", wrong))
    moved = [shown(e.row.path) for e in entries if e.moved]
    found.append(finding("answers_moved", "warning", f"{len(moved)} answers moved to where they stand", moved))
    torn = _shared_contexts(entries)
    found.append(finding("shared_context", "warning", f"{len(torn)} contexts are asked about in two splits", torn))
    return [f for f in found if f.count]


def tag_faults(tags: Sequence[str]) -> list[str]:
    """``I-`` tags that continue nothing: after ``O``, or after an entity of another type. Plain tags have none."""
    return [
        f"{shown(tag)} after {shown(last)} (word {number})"
        for number, (last, tag) in enumerate(pairwise((OUTSIDE, *tags)), start=1)
        if tag.startswith("I-") and (last[:2] not in ("B-", "I-") or _type(last) != _type(tag))
    ]


def truncation(lengths: Sequence[int], max_length: int) -> Finding:
    """How many texts the tokenizer cuts. ``lengths``: tokens of each, special ones counted, before any cut."""
    cut = sum(length > max_length for length in lengths)
    if not cut:
        longest = max(lengths, default=0)
        message = f"no text is cut: at most {longest} tokens, max_length {max_length}"
        return Finding(kind="truncation", severity="info", count=0, message=message)
    p99 = int(np.percentile(np.asarray(lengths), 99))
    message = (
        f"{cut} of {len(lengths)} texts are longer than {max_length} tokens and are cut (99 % have {p99} or fewer)"
    )
    return Finding(kind="truncation", severity="warning", count=cut, message=message)


def lengths(entries: Sequence[Entry]) -> tuple[list[int], list[int]]:
    """Words and characters of each text, contexts counted."""
    return [len(e.plain.split()) for e in entries], [len(e.plain) for e in entries]


def histogram(values: Sequence[int]) -> dict[str, Any]:
    """``counts[i]`` values lie in ``edges[i] <= value < edges[i + 1]``; the edges double."""
    if not values:
        return {}
    edges = [0, *(2**k for k in range(max(values).bit_length() + 1))]
    counts, _ = np.histogram(values, edges)
    found = np.percentile(values, (50, 99))
    return {
        "edges": edges,
        "counts": counts.tolist(),
        "min": min(values),
        "median": float(found[0]),
        "p99": float(found[1]),
        "max": max(values),
    }


def summary(findings: Sequence[Finding], entries: Sequence[Entry], task: TaskName, bad: int) -> dict[str, Any]:
    """The content of audit.json."""
    words, characters = lengths(entries)
    counts = class_counts(entries, [e.row.split or "all" for e in entries], task)
    return {
        "findings": [f.model_dump() for f in findings],
        "class_counts": {split: dict(sorted(of.items())) for split, of in sorted(counts.items())},
        "lengths": {"words": histogram(words), "characters": histogram(characters)},
        "bad": bad,
        "texts": len(entries),
        "texts_per_split": dict(sorted(Counter(e.row.split or "all" for e in entries).items())),
    }


def _type(tag: str) -> str:
    return tag[2:] if tag[:2] in ("B-", "I-") else tag


def _shared_contexts(entries: Sequence[Entry]) -> list[str]:
    """Contexts in two given splits, an example of each."""
    own = [e for e in entries if e.context is not None and e.row.split not in (None, "unlabelled")]
    found = []
    for members in same(normalise(e.context or "") for e in own):
        of = {own[i].row.split: own[i].row.path for i in members}
        if len(of) > 1:
            found.append(" = ".join(f"{split} {shown(path)}" for split, path in of.items()))
    return found
