"""Several labels of one picture: label columns of one listing, and other listings that know one task alone.

The primary task's label stays the row's label: splits are stratified by it, calibration pictures chosen by it. A
picture without it counts as one of a class of its own for that (``texture: cast``), by the first label it has. Beside
samples.jsonl lies labels.jsonl, with a class index for each task, -1 where there is none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.heads import Head, Heads
from distilledge.pipeline.data import splits
from distilledge.pipeline.data.judge import write_lines
from distilledge.pipeline.data.listing import Listing, Row, closest, few, shown
from distilledge.pipeline.recipe import Data
from distilledge.pipeline.recipe_multitask import tasks
from distilledge.pipeline.record import Sample, Split

FILE = "labels.jsonl"
Labels = npt.NDArray[np.int64]
"""(N, tasks) class indices, -1 where a sample has no label of a task."""


def of_row(row: Row, data: Data, labels: Sequence[str | None]) -> Row:
    """The row with a label for each of ``data.columns.labels``, those of other sets open."""
    return _filled(row, data, dict(zip(data.columns.labels, labels, strict=True)))


def of_synthetic(row: Row, data: Data, known: dict[str, str]) -> Row:
    """``known``: the columns that the generated set has, by name."""
    if not data.columns.labels:
        return row
    for task, column in data.columns.labels.items():
        if column not in known:
            near = closest(column, known) or "label"
            what = f"the generated set has the columns {', '.join(known)}, not {column!r}"
            raise UsageError("E2502", what, f"--set data.columns.labels.{task}={near}")
    return of_row(row, data, [known[column] for column in data.columns.labels.values()])


def with_other_sets(source: Listing, data: Data, read: Callable[[Data, Path], Listing], out: Path) -> Listing:
    """The listing with the rows of ``data.other_sets``, by absolute path. Raises ``RejectedError``."""
    rows = list(source.rows)
    for task, path in data.other_sets.items():
        columns = data.columns.model_copy(update={"labels": {}})
        found = read(
            data.model_copy(update={"path": path, "columns": columns, "other_sets": {}, "format": "auto"}), out
        )
        if found.unpacked:
            raise UsageError("E2503", f"data.other_sets.{task} is no folder or manifest: {shown(path)}", "unpack it")
        if (given := {r.split for r in found.rows} - {None, "unlabelled"}) != {r.split for r in source.rows} - {
            None,
            "unlabelled",
        }:
            named = ", ".join(sorted(filter(None, given))) or "none"
            what = f"data.other_sets.{task} brings other splits ({named}) than data.path: {shown(path)}"
            raise RejectedError("E3502", what, "give all sets the same splits, or none of them")
        rows += [_filled(row._replace(path=str(found.root / row.path)), data, {task: row.label}) for row in found.rows]
    return source._replace(rows=rows)


def _filled(row: Row, data: Data, known: dict[str, str | None]) -> Row:
    labels = tuple(known.get(task) or None for task in tasks(data))
    stratum = labels[0] or next((f"{t}: {n}" for t, n in zip(tasks(data), labels, strict=True) if n), None)
    return row._replace(label=stratum, labels=labels)


def check_labels(rows: Sequence[Row], names: Sequence[str], source: str) -> None:
    """Of each task two classes at least, all of them in train, and some label in each split that there is.

    Raises ``RejectedError``. ``rows``: with or without their final splits.
    """
    for number, task in enumerate(names):
        own = [row for row in rows if row.labels and row.labels[number] and row.split != "unlabelled"]
        labels = [row.labels[number] or "" for row in own]
        places = [f"{source}:{row.line}" if row.line else shown(row.path) for row in own]
        if not own:
            raise RejectedError("E3503", f"no label of task {task}: {source}", f"edit data.columns.labels.{task}")
        splits.check_classes(labels, [row.split for row in own], places, f"task {task}, {source}")
        given: set[Split | None] = {row.split for row in rows}
        for part in (p for p in splits.PARTS if p in given):
            if not any(row.split == part for row in own):
                what = f"{part} has no label of task {task}: {source}"
                raise RejectedError("E3504", what, f"label some {part} pictures, or give no splits")


def whole(row: Row) -> Row:
    """With all its labels as one: identical pictures contradict each other where any of them differs."""
    return row._replace(label=", ".join(n or "-" for n in row.labels)) if row.labels else row


def heads_of(rows: Sequence[Row], names: Sequence[str]) -> Heads:
    """Each task with its classes, sorted."""
    return tuple(
        Head(name=name, classes=tuple(sorted({label for row in rows if (label := row.labels[i])})))
        for i, name in enumerate(names)
        if all(row.labels for row in rows if row.split != "unlabelled")
    )


def indices(row: Row, heads: Heads) -> tuple[int, ...]:
    if row.split == "unlabelled" or not row.labels:
        return (-1,) * len(heads)
    return tuple(
        -1 if label is None else head.classes.index(label) for head, label in zip(heads, row.labels, strict=True)
    )


def counts_of(found: Sequence[tuple[Split, tuple[int, ...]]], heads: Heads) -> dict[str, dict[str, int]]:
    """Labels per split and class of all tasks."""
    made: dict[str, dict[str, int]] = {}
    for part in splits.PARTS:
        of = [labels for split, labels in found if split == part]
        counters = [Counter(labels[i] for labels in of) for i in range(len(heads))]
        made[part] = {
            f"{head.name}: {name}": counter[number]
            for head, counter in zip(heads, counters, strict=True)
            for number, name in enumerate(head.classes)
        }
    return made


def write_labels(found: Sequence[tuple[int, ...]], directory: Path) -> None:
    write_lines(directory / FILE, ({"labels": list(labels)} for labels in found))


def read_labels(directory: Path, samples: Sequence[Sample]) -> Labels:
    """(len(samples), tasks): the labels of ``samples``, which are some of a data stage's, in any order."""
    with (directory / "samples.jsonl").open(encoding="utf-8") as lines:
        paths = [json.loads(line)["path"] for line in lines]
    with (directory / FILE).open(encoding="utf-8") as lines:
        known: dict[str, Any] = {path: json.loads(line)["labels"] for path, line in zip(paths, lines, strict=True)}
    return np.array([known[s.path] for s in samples], np.int64)


def missing_words(found: Labels, heads: Heads) -> str:
    """How many of the samples lack a label, for messages; empty where none does."""
    lacking = [(head.name, int((found[:, i] < 0).sum())) for i, head in enumerate(heads)]
    return few([f"{n} without {name}" for name, n in lacking if n])
