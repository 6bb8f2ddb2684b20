"""Formats of text data sets: a function each that lists the records. Splits and columns are joined by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.huggingface import MARKERS, open_parts, plain_rows
from distilledge.pipeline.data.listing import SPLIT_NAMES, Finding, expand, finding, shown
from distilledge.pipeline.data.manifest import check_columns
from distilledge.pipeline.data.text_files import READERS, Table, TextRecord, read_lines, read_table
from distilledge.pipeline.data.tickets import tickets
from distilledge.pipeline.recipe import Columns, Data, TaskName
from distilledge.pipeline.record import Split

INPUTS: dict[TaskName, tuple[str, ...]] = {
    "text-classification": ("text",),
    "multi-label-classification": ("text",),
    "token-classification": ("tokens",),
    "question-answering": ("text", "context"),
}
TRUTH: dict[TaskName, str] = {
    "text-classification": "label",
    "multi-label-classification": "label",
    "token-classification": "tags",
    "question-answering": "answers",
}
"""Task -> the columns that a model sees, and the one it is taught by; names are those of ``Columns``."""

LAYOUT = """expected one of
    FILE.csv, .tsv, .jsonl or .parquet with the columns text,label[,split][,group]
    ROOT/train.csv, ROOT/test.csv[, ROOT/validation.csv] (or .tsv, .jsonl, .parquet)
    a directory written by datasets.save_to_disk"""


class TextListing(NamedTuple):
    """Every record of a data set, its fields by our column names. ``kind`` is a key of ``TEXT_FORMATS``."""

    kind: str
    source: str
    """Named in messages."""
    records: list[TextRecord]
    synthetic: bool = False
    notes: tuple[Finding, ...] = ()


def text_listing(data: Data, task: TaskName) -> TextListing:
    """The texts of ``data`` in the order of their files, train first. Raises RejectedError (exit 3)."""
    return TEXT_FORMATS[detect_text(data)](data, task)


def detect_text(data: Data) -> str:
    """The key of ``TEXT_FORMATS`` for ``data``. The hub is only asked where ``format: huggingface`` says so."""
    if data.format == "synthetic" or (data.format == "auto" and data.path == "synthetic"):
        return "synthetic"
    if data.format == "huggingface":
        return "huggingface"
    path = Path(expand(data.path))
    if not path.exists():
        hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path))
        hint = "for a data set of the Hugging Face hub: --set data.format=huggingface" if hub else "edit data.path"
        raise RejectedError("E3103", f"data.path does not exist: {shown(path)}; {LAYOUT}", hint)
    if path.is_file():
        return "manifest"
    return "huggingface" if any((path / marker).is_file() for marker in MARKERS) else "folder"


def text_files(path: Path) -> list[tuple[Split | None, Path]]:
    """The files that are read, each with the split that its name tells: one file, or those of a folder."""
    if not path.is_dir():
        return [(None, path)]
    named = [(_split_of(file), file) for file in sorted(path.iterdir()) if file.is_file()]
    found = [(split, file) for split in dict.fromkeys(SPLIT_NAMES.values()) for of, file in named if of == split]
    suffixes: dict[Split, set[str]] = defaultdict(set)
    for split, file in found:
        suffixes[split].add(re.sub(r"-\d+-of-\d+", "", file.name))
    twice = [name for names in suffixes.values() if len(names) > 1 for name in sorted(names)]
    if twice:
        what = f"several files of one split ({', '.join(map(shown, twice))}): {shown(path)}"
        raise RejectedError("E3105", what, "leave one of them")
    if "train" not in suffixes:
        others = [file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS and file.is_file()]
        hint = f"did you mean data.path: {shown(others[0])}" if others else "edit data.path"
        raise RejectedError("E3103", f"no train file in {shown(path)}; {LAYOUT}", hint)
    return list(found)


def unlabelled_texts(path: str, columns: Columns, task: TaskName) -> list[TextRecord]:
    """Records of a file of texts without labels (a text a line in .txt, else the task's columns), split unlabelled."""
    file = Path(expand(path))
    if not file.is_file() or file.suffix.lower() not in READERS:
        what = f"no such file of texts: {shown(file)}"
        raise RejectedError("E3102", what, f"give a file that ends with {', '.join(READERS)}")
    if file.suffix.lower() != ".txt":
        return _mapped(read_table(file, columns), columns, INPUTS[task], file, "unlabelled")
    if "context" in INPUTS[task]:
        raise RejectedError("E3102", f"questions need contexts: {shown(file)}", "give a .jsonl file with both")
    records = read_lines(file, columns).records
    texts = [(record, record.fields[columns.text]) for record in records]
    ours = INPUTS[task][0]
    return [
        record._replace(fields={ours: text.split() if ours == "tokens" else text}, split="unlabelled")
        for record, text in texts
    ]


def read_corpus(path: str, columns: Columns) -> list[str]:
    """The texts of a file for pretraining: a text a line in .txt, else the text column."""
    records = unlabelled_texts(path, columns, "text-classification")
    return [text for record in records if isinstance(text := record.fields.get("text"), str) and text.strip()]


def _split_of(file: Path) -> Split | None:
    stem = re.sub(r"-\d+-of-\d+$", "", file.stem).lower()
    return SPLIT_NAMES.get(stem) if file.suffix.lower() in READERS else None


def _files(data: Data, task: TaskName) -> TextListing:
    """One file, with or without a split column, or a file for each split."""
    path = Path(expand(data.path))
    records: list[TextRecord] = []
    notes = []
    for split, file in text_files(path):
        if file.suffix.lower() not in READERS:
            known = ", ".join(READERS)
            raise RejectedError("E3103", f"not a file of texts: {shown(file)}; {LAYOUT}", f"name one of {known}")
        table = read_table(file, data.columns)
        needed = (*INPUTS[task], *(() if split == "unlabelled" else (TRUTH[task],)))
        records += _mapped(table, data.columns, needed, file, split)
        if table.separator == ";" or (table.separator == "\t" and file.suffix.lower() == ".csv"):
            name = {";": "semicolons", "\t": "tabs"}[table.separator]
            notes.append(finding("separator", "info", f"columns are separated by {name}", [shown(file)]))
    return TextListing("folder" if path.is_dir() else "manifest", shown(path), records, notes=tuple(notes))


def _mapped(
    table: Table, columns: Columns, needed: tuple[str, ...], file: Path, split: Split | None
) -> list[TextRecord]:
    """The records with our names of the columns."""
    names = check_columns(f"{shown(file)}:1", table.header, columns, needed)
    return [
        record._replace(
            fields={ours: record.fields[theirs] for ours, theirs in names.items() if theirs in record.fields},
            split=split,
        )
        for record in table.records
    ]


def _huggingface(data: Data, task: TaskName) -> TextListing:
    records: list[TextRecord] = []
    for split, part in open_parts(data):
        needed = (*INPUTS[task], *(() if split == "unlabelled" else (TRUTH[task],)))
        names = check_columns(shown(data.path), list(part.features), data.columns, needed)
        chosen = part.select_columns(list(dict.fromkeys(names.values())))
        for number, row in enumerate(plain_rows(chosen), start=1):
            fields = {ours: row[theirs] for ours, theirs in names.items() if theirs in row}
            records.append(TextRecord(split or "all", number, fields, split))
    return TextListing("huggingface", shown(data.path), records)


def _synthetic(data: Data, task: TaskName) -> TextListing:
    records = [TextRecord("tickets", n, fields) for n, fields in enumerate(tickets(data.tickets, task), start=1)]
    return TextListing("synthetic", "synthetic", records, synthetic=True)


TEXT_FORMATS: dict[str, Callable[[Data, TaskName], TextListing]] = {
    "manifest": _files,
    "folder": _files,
    "huggingface": _huggingface,
    "synthetic": _synthetic,
}
"""The names are those of ``data.format``: a manifest is one file, a folder holds a file for each split."""
