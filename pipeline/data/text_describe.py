"""A quick look at a set of texts for ``distilledge init``: which task it is for, and which column holds what."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilledge.pipeline.data import text_audit
from distilledge.pipeline.data.duplicates import same
from distilledge.pipeline.data.formats import detect
from distilledge.pipeline.data.huggingface import MARKERS, open_parts, plain_rows
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.manifest import ALIASES, MANIFESTS, PICTURE_COLUMNS, guess_columns
from distilledge.pipeline.data.text_files import READERS, Table, TextRecord, read_table
from distilledge.pipeline.data.text_formats import INPUTS, TRUTH, text_files, text_listing
from distilledge.pipeline.data.text_rows import Entry, parse
from distilledge.pipeline.recipe import Columns, Data, TaskName

SEPARATORS = ("|", ";", ",")
"""Looked for in labels."""
LISTED = 0.02
"""Share of the labels that hold a separator from which they are lists of labels."""
PIECES_PER_WORD = 1.4
"""Tokens of a word or mark in ordinary language, WordPiece of 30,000 entries, with some room."""


def is_text(path: str | os.PathLike[str]) -> bool:
    """Whether a data set is one of texts: told by its files and its column names, not by its contents."""
    place = Path(expand(os.fspath(path)))
    if os.fspath(path) == "synthetic" or not place.exists():
        return False
    if place.is_file():
        return place.suffix.lower() in READERS and _has_texts(list(read_table(place, Columns()).header))
    if any((place / marker).is_file() for marker in MARKERS):
        return not _has_pictures(Data(path=os.fspath(path)))
    if any((place / name).is_file() for name in MANIFESTS):
        return False
    return any(entry.is_file() and entry.stem.lower().startswith("train") for entry in place.iterdir()) and (
        detect(Data(path=os.fspath(path))) == "folder" and not (place / "train").is_dir()
    )


def describe_text(path: str | os.PathLike[str]) -> dict[str, Any]:
    """``task``, ``columns`` and ``separator`` as guessed, ``classes``, ``counts`` per split and class, ``texts`` per
    split (``all`` where the data brings none), ``groups``, ``tokens`` (99th percentile, estimated), ``twice`` (texts
    in two splits) and ``conflicts``. Raises RejectedError where no run could read the data.
    """
    table = _table(Data(path=os.fspath(path)))
    task, columns, separator = guess(table)
    data = Data(path=os.fspath(path), columns=columns, label_separator=separator)
    entries = [e for record in text_listing(data, task).records if isinstance(e := parse(record, task, data), Entry)]
    text_audit.check_labels(entries, task, os.fspath(path))
    parts = [e.row.split or "all" for e in entries]
    counts = text_audit.class_counts(entries, parts, task)
    copies = same(e.key for e in entries)
    return {
        "task": task,
        "columns": {k: v for k, v in columns.model_dump().items() if v != getattr(Columns(), k)},
        "separator": separator,
        "classes": list(text_audit.classes_of(entries, task)),
        "counts": {split: dict(sorted(of.items())) for split, of in sorted(counts.items())},
        "splits": sorted(set(parts) - {"all"}),
        "texts": dict(sorted(Counter(parts).items())),
        "groups": len({e.row.group for e in entries if e.row.group}),
        "tokens": _tokens(entries),
        "twice": sum(len({parts[i] for i in members}) > 1 for members in copies),
        "conflicts": sum(len({entries[i].row.label for i in members} - {None}) > 1 for members in copies),
    }


def guess(table: Table) -> tuple[TaskName, Columns, str]:
    """The task that the columns fit, their names, and what separates labels."""
    header, separator = list(table.header), Data().label_separator
    for task in ("token-classification", "question-answering"):
        needed: tuple[str, ...] = tuple(dict.fromkeys((*INPUTS[task], TRUTH[task])))
        columns = guess_columns(header, needed)
        if all(getattr(columns, ours) in header for ours in needed):
            return task, columns, separator
    columns = _classification_columns(table)
    labels = [record.fields.get(columns.label) for record in table.records]
    if any(isinstance(label, list) for label in labels):
        return "multi-label-classification", columns, separator
    found = _separator([str(label) for label in labels if label is not None])
    return ("multi-label-classification", columns, found) if found else ("text-classification", columns, separator)


def _has_texts(header: Sequence[str]) -> bool:
    lower = {name.lower() for name in header}
    texts = {name for ours in ("text", "tokens", "context") for name in (ours, *ALIASES[ours])}
    return bool(lower & texts) or not lower & {PICTURE_COLUMNS[0], *ALIASES["path"]}


def _has_pictures(data: Data) -> bool:
    import datasets

    return any(isinstance(kind, datasets.Image) for _, part in open_parts(data) for kind in part.features.values())


def _table(data: Data) -> Table:
    """The train part, or all where there is none."""
    place = Path(expand(data.path))
    if not any((place / marker).is_file() for marker in MARKERS):
        return read_table(text_files(place)[0][1], data.columns)
    parts = dict(open_parts(data))
    part = parts.get("train", next(iter(parts.values())))
    return Table(
        list(part.features), [TextRecord(data.path, row, of) for row, of in enumerate(plain_rows(part), start=1)]
    )


def _classification_columns(table: Table) -> Columns:
    """By name; else the longest column is the text, and the label is the one of the others with the fewest values."""
    header = list(table.header)
    columns = guess_columns(header, ("text", "label"))
    values = {name: [str(record.fields.get(name, "")) for record in table.records] for name in header}
    if columns.text not in header:
        others = [name for name in header if name not in (columns.label, columns.split, columns.group)]
        longest = max(others, key=lambda name: sum(map(len, values[name])), default=columns.text)
        columns = columns.model_copy(update={"text": longest})
    if columns.label not in header:
        others = [name for name in header if name not in (columns.text, columns.split, columns.group)]
        several = [name for name in others if len(set(values[name])) > 1]
        label = min(several, key=lambda name: len(set(values[name])), default=columns.label)
        columns = columns.model_copy(update={"label": label})
    return columns


def _separator(labels: Sequence[str]) -> str | None:
    """The one that stands in some labels, whose pieces are known from other texts too."""
    for mark in SEPARATORS:
        joined = [label for label in labels if mark in label]
        pieces = Counter(piece.strip() for label in labels for piece in label.split(mark))
        if len(joined) >= LISTED * len(labels) > 0 and joined and min(pieces.values()) > 1:
            return mark
    return None


def _tokens(entries: Sequence[Entry]) -> int:
    words, _ = text_audit.lengths(entries)
    return int(np.percentile(words, 99) * PIECES_PER_WORD) + 3 if words else 0
