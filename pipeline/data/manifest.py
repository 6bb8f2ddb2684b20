"""CSV and JSONL manifests: a line for each picture. Every message carries the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.labels import of_row
from distilledge.pipeline.data.listing import SPLIT_NAMES, Listing, Row, closest, expand, shown
from distilledge.pipeline.recipe import Columns, Data
from distilledge.pipeline.record import Split

MANIFESTS = ("splits.csv", "manifest.csv", "manifest.jsonl")
"""Looked for, in this order, where ``data.path`` is a folder."""

ALIASES = {
    "path": ("file", "filename", "file_name", "image", "image_path", "filepath", "img"),
    "label": ("class", "category", "target", "class_name", "labels", "intent", "topic", "sentiment"),
    "split": ("subset", "part", "fold", "set"),
    "group": ("part_id", "group_id", "object", "serial"),
    "text": ("question", "query", "sentence", "utterance", "message", "content", "body", "review", "ticket"),
    "context": ("passage", "paragraph", "document", "article"),
    "answers": ("answer",),
    "tokens": ("words", "token"),
    "tags": ("ner_tags", "tag", "ner", "labels", "entities"),
}
"""What others call the columns; suggested, never assumed."""

BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")

Record = tuple[int, dict[str, str]]
"""Line number and fields."""

PICTURE_COLUMNS = ("path", "label")
OPTIONAL_COLUMNS = ("split", "group")


def manifest(data: Data, out: Path) -> Listing:  # noqa: ARG001 (one signature for every format)
    """Pictures named by a manifest, relative to it. Raises RejectedError with the line (exit 3)."""
    path = find(Path(expand(data.path)))
    header, records = read(path)
    names = check_columns(f"{shown(path)}:1", header, data.columns, needed=needed_columns(data))
    check_label_columns(f"{shown(path)}:1", header, data.columns)
    rows = [_row(path, record, names, data) for record in records]
    if not rows:
        raise RejectedError("E3105", f"no lines after the header: {shown(path)}", "add pictures to the manifest")
    check_splits(path, rows)
    return Listing("manifest", path.parent.resolve(), sorted(rows), shown(path))


def find(path: Path) -> Path:
    """The manifest file of ``data.path``, which may be the folder it lies in."""
    if path.is_file():
        return path
    for name in MANIFESTS:
        if (path / name).is_file():
            return path / name
    raise RejectedError("E3105", f"no manifest in {shown(path)}", f"write one of {', '.join(MANIFESTS)}")


def read(path: Path) -> tuple[list[str], list[Record]]:
    """Column names and records of a manifest; line numbers count from 1."""
    text = _text(path)
    if path.suffix.lower() == ".jsonl":
        records = [
            (line, {key: plain_field(path, line, key, value) for key, value in fields.items()})
            for line, fields in json_records(path, text)
        ]
        return sorted({key for _, fields in records for key in fields}), records
    header, lines = csv_records(path, text)
    _check_separator(path, header)
    return header, lines


def guess_columns(header: Sequence[str], needed: tuple[str, ...] = PICTURE_COLUMNS) -> Columns:
    """Our column names mapped to those of the file, by equal name or a known alias."""
    found: dict[str, str] = {}
    for ours in (*needed, *OPTIONAL_COLUMNS):
        names = (ours, *ALIASES[ours])
        near = [name for name in header if name.lower() in names and name not in found.values()]
        found[ours] = min(near, key=lambda name: names.index(name.lower()), default=ours)
    return Columns(**found)


def check_columns(
    where: str, header: Sequence[str], columns: Columns, needed: tuple[str, ...] = PICTURE_COLUMNS
) -> dict[str, str]:
    """Our names -> those of the file, of the columns that exist. Raises RejectedError where one is missing."""
    names = {}
    for ours in (*needed, *OPTIONAL_COLUMNS):
        theirs: str = getattr(columns, ours)
        if theirs in header:
            names[ours] = theirs
        elif ours in needed or theirs != ours:
            near = next((h for h in header if h.lower() in (ours, *ALIASES[ours])), None) or closest(theirs, header)
            hint = f"--set data.columns.{ours}={near}" if near else f"add the column {theirs}"
            what = f"no column {theirs!r} (columns: {', '.join(map(shown, header))}): {where}"
            raise RejectedError("E3106", what, hint)
    return names


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(BOMS):
        reject(path, 1, "byte order mark before the first column", "save the file as UTF-8 without BOM")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reject(path, line, "not UTF-8", "save the file as UTF-8")


def csv_records(path: Path, text: str, separator: str = ",") -> tuple[list[str], list[Record]]:
    """Column names and records of CSV text; a record's number is that of the line it begins on.

    Line breaks inside quotes belong to their field. Raises RejectedError with the line.
    """
    records: list[Record] = []
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        start = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            start = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    reject(path, start, f"{len(fields)} fields, the header has {len(header)}", "mend the line")
                if fields:
                    records.append((start, dict(zip(header, fields, strict=True))))
                start = reader.line_num + 1
        except csv.Error as error:
            reject(path, start, f"not CSV ({error})", "mend the quotes of the line")
    return header, records


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module refuses fields above 128 KiB; what is too long is for the audit to say."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_separator(path: Path, header: list[str]) -> None:
    if len(header) == 1:
        for mark, name in ((";", "semicolons"), ("\t", "tabs")):
            if mark in header[0]:
                reject(path, 1, f"columns are separated by {name}", "save the file with commas")


def json_records(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and fields of each line of JSON lines. Raises RejectedError with the line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            reject(path, number, f"not JSON ({error.msg})", "mend the line")
        if not isinstance(fields, dict):
            reject(path, number, "not a JSON object", 'write {"column": value, ...}')
        yield number, {key: value for key, value in fields.items() if value is not None}


def plain_field(path: Path, line: int, key: str, value: Any) -> str:
    """A value as text. Raises RejectedError where it is neither text nor a whole number."""
    if isinstance(value, bool | float | list | dict):
        reject(path, line, f"{shown(key)} is neither text nor a whole number", "write it as text")
    return str(value)


def needed_columns(data: Data) -> tuple[str, ...]:
    return ("path",) if data.columns.labels else PICTURE_COLUMNS


def check_label_columns(where: str, header: Sequence[str], columns: Columns) -> None:
    """Of several tasks. Raises RejectedError where one is missing."""
    for task, name in columns.labels.items():
        if name not in header:
            near = closest(name, header)
            hint = f"--set data.columns.labels.{task}={near}" if near else f"add the column {name}"
            what = f"no column {name!r} of task {task} (columns: {', '.join(map(shown, header))}): {where}"
            raise RejectedError("E3106", what, hint)


def _row(path: Path, record: Record, names: dict[str, str], data: Data) -> Row:
    line, fields = record
    value = {ours: fields.get(theirs, "") for ours, theirs in names.items()}
    if not value["path"]:
        reject(path, line, "no path", "name the picture file")
    split = split_of(path, line, value["split"].strip()) if value.get("split", "").strip() else None
    labels = [fields.get(column, "").strip() or None for column in data.columns.labels.values()]
    label = value.get("label", "").strip()
    if not label and not any(labels) and split != "unlabelled":
        near = "write one, or split: unlabelled"
        reject(path, line, f"no label for {shown(value['path'])}", near)
    row = Row(value["path"], label or None, value.get("group", "").strip() or None, split, line)
    return of_row(row, data, labels) if labels else row


def split_of(path: Path, line: int, name: str) -> Split:
    if name.lower() not in SPLIT_NAMES:
        near = closest(name, SPLIT_NAMES) or "train, validation or test"
        reject(path, line, f"unknown split {shown(name)!r}", f"did you mean {near}")
    return SPLIT_NAMES[name.lower()]


def check_splits(path: Path, rows: list[Row]) -> None:
    """Either every line of a file has a split or none. Raises RejectedError with the line."""
    given = [row for row in rows if row.split not in (None, "unlabelled")]
    missing = next((row for row in rows if row.split is None), None)
    if given and missing:
        reject(path, missing.line, "no split, while other lines have one", "write train, validation or test")


def reject(path: Path, line: int, what: str, hint: str) -> NoReturn:
    raise RejectedError("E3106", f"{what}: {shown(path)}:{line}", hint)
