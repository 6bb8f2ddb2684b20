"""CSV and JSONL manifests: a line for each picture. Every message carries the file and the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.listing import SPLIT_NAMES, Listing, Row, closest, expand, shown
from distilledge.pipeline.recipe import Columns, Data
from distilledge.pipeline.record import Split

MANIFESTS = ("splits.csv", "manifest.csv", "manifest.jsonl")
"""Looked for, in this order, where ``data.path`` is a folder."""

ALIASES = {
    "path": ("file", "filename", "file_name", "image", "image_path", "filepath", "img"),
    "label": ("class", "category", "target", "class_name"),
    "split": ("subset", "part", "fold", "set"),
    "group": ("part_id", "group_id", "object", "serial"),
}
"""What others call the columns; suggested, never assumed."""

BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")

Record = tuple[int, dict[str, str]]
"""Line number and fields."""


def manifest(data: Data, out: Path) -> Listing:  # noqa: ARG001 (one signature for every format)
    """Pictures named by a manifest, relative to it. Raises RejectedError with the line (exit 3)."""
    path = find(Path(expand(data.path)))
    header, records = read(path)
    names = check_columns(path, header, data.columns)
    rows = [_row(path, record, names) for record in records]
    if not rows:
        raise RejectedError("E3105", f"no lines after the header: {shown(path)}", "add pictures to the manifest")
    _check_splits(path, rows)
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
        records = list(_json_records(path, text))
        return sorted({key for _, fields in records for key in fields}), records
    return _csv_records(path, text)


def guess_columns(header: list[str]) -> Columns:
    """Our column names mapped to those of the manifest, by equal name or a known alias."""
    found = {}
    for ours, aliases in ALIASES.items():
        found[ours] = next((name for name in header if name.lower() in (ours, *aliases)), ours)
    return Columns(**found)


def check_columns(path: Path, header: list[str], columns: Columns) -> dict[str, str]:
    """Our names -> those of the manifest, of the columns that exist. Raises RejectedError where one is missing."""
    names = {}
    for ours, theirs in columns.model_dump().items():
        if theirs in header:
            names[ours] = theirs
        elif ours in ("path", "label") or theirs != ours:
            near = next((h for h in header if h.lower() in ALIASES[ours]), None) or closest(theirs, header)
            hint = f"--set data.columns.{ours}={near}" if near else f"add the column {theirs}"
            what = f"no column {theirs!r} (columns: {', '.join(map(shown, header))}): {shown(path)}:1"
            raise RejectedError("E3106", what, hint)
    return names


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(BOMS):
        _reject(path, 1, "byte order mark before the first column", "save the file as UTF-8 without BOM")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _reject(path, line, "not UTF-8", "save the file as UTF-8")


def _csv_records(path: Path, text: str) -> tuple[list[str], list[Record]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    records: list[Record] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_separator(path, header)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                _reject(path, reader.line_num, f"{len(fields)} fields, the header has {len(header)}", "mend the line")
            records.append((reader.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        _reject(path, reader.line_num, f"not CSV ({error})", "mend the quotes of the line")
    return header, records


def _check_separator(path: Path, header: list[str]) -> None:
    if len(header) == 1:
        for mark, name in ((";", "semicolons"), ("\t", "tabs")):
            if mark in header[0]:
                _reject(path, 1, f"columns are separated by {name}", "save the file with commas")


def _json_records(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            _reject(path, number, f"not JSON ({error.msg})", "mend the line")
        if not isinstance(fields, dict):
            _reject(path, number, "not a JSON object", 'write {"path": ..., "label": ...}')
        yield number, {key: _field(path, number, key, value) for key, value in fields.items() if value is not None}


def _field(path: Path, line: int, key: str, value: Any) -> str:
    if isinstance(value, bool | float | list | dict):
        _reject(path, line, f"{shown(key)} is neither text nor a whole number", "write it as text")
    return str(value)


def _row(path: Path, record: Record, names: dict[str, str]) -> Row:
    line, fields = record
    value = {ours: fields.get(theirs, "") for ours, theirs in names.items()}
    if not value["path"]:
        _reject(path, line, "no path", "name the picture file")
    split = _split(path, line, value["split"].strip()) if value.get("split", "").strip() else None
    label = value["label"].strip()
    if not label and split != "unlabelled":
        near = "write one, or split: unlabelled"
        _reject(path, line, f"no label for {shown(value['path'])}", near)
    return Row(value["path"], label or None, value.get("group", "").strip() or None, split, line)


def _split(path: Path, line: int, name: str) -> Split:
    if name.lower() not in SPLIT_NAMES:
        near = closest(name, SPLIT_NAMES) or "train, validation or test"
        _reject(path, line, f"unknown split {shown(name)!r}", f"did you mean {near}")
    return SPLIT_NAMES[name.lower()]


def _check_splits(path: Path, rows: list[Row]) -> None:
    given = [row for row in rows if row.split not in (None, "unlabelled")]
    missing = next((row for row in rows if row.split is None), None)
    if given and missing:
        _reject(path, missing.line, "no split, while other lines have one", "write train, validation or test")


def _reject(path: Path, line: int, what: str, hint: str) -> NoReturn:
    raise RejectedError("E3106", f"{what}: {shown(path)}:{line}", hint)
