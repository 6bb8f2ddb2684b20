"""Reading files of texts: CSV, TSV, JSON lines, Parquet and CoNLL. Every record knows its file and line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.huggingface import plain_rows
from distilledge.pipeline.data.listing import shown
from distilledge.pipeline.data.manifest import csv_records, json_records, reject
from distilledge.pipeline.recipe import Columns
from distilledge.pipeline.record import Split

SEPARATORS = ",;\t"
UTF8_BOM, UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
BROKEN = re.compile("[\ud800-\udfff]")
"""What bytes that are not UTF-8 become, and halves of characters in JSON."""
HIGH = re.compile("[^\x00-\x7f\ud800-\udfff]")


class TextRecord(NamedTuple):
    """One record as it was read. ``fields``: by the file's column names, later by ours; absent ones are left out."""

    file: str
    line: int
    """From 1: the line of a text file that the record begins on, or the row of a table."""
    fields: dict[str, Any]
    split: Split | None = None

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}"


class Table(NamedTuple):
    header: Sequence[str]
    records: list[TextRecord]
    separator: str = ","
    """Of CSV files, as found."""


def read_table(path: Path, columns: Columns) -> Table:
    """Column names and records of a file of one of ``READERS``. Raises RejectedError (exit 3) with the line."""
    table = READERS[path.suffix.lower()](path, columns)
    if not table.records:
        raise RejectedError("E3105", f"no texts in the file: {shown(path)}", "add some, or edit data.path")
    return table


def read_lines(path: Path, columns: Columns) -> Table:
    """A text a line; empty lines are passed over."""
    lines = enumerate(_text(path).split("\n"), start=1)
    records = [TextRecord(path.name, number, {columns.text: line.strip()}) for number, line in lines if line.strip()]
    return Table([columns.text], records)


def _text(path: Path) -> str:
    """Bytes that are not UTF-8 come as ``BROKEN``; the audit names their records.

    Raises RejectedError where nothing speaks for UTF-8: other encodings are not guessed.
    """
    content = path.read_bytes()
    if content.startswith(UTF16_BOMS):
        reject(path, 1, "UTF-16, not UTF-8", f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}")
    text = content.removeprefix(UTF8_BOM).decode("utf-8", "surrogateescape")
    broken = BROKEN.search(text)
    if broken and not HIGH.search(text):
        line = text.count("\n", 0, broken.start()) + 1
        what = f"byte 0x{ord(broken[0]) - 0xDC00:02x} is not UTF-8, nor is any other byte of the file above 0x7f"
        reject(path, line, what, f"if it is Latin-1: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}")
    return text


def _csv(path: Path, columns: Columns) -> Table:  # noqa: ARG001 (one signature for every reader)
    text = _text(path)
    separator = _separator(text) if path.suffix.lower() == ".csv" else "\t"
    header, records = csv_records(path, text, separator)
    return Table(header, [TextRecord(path.name, line, dict(fields)) for line, fields in records], separator)


def _separator(text: str) -> str:
    """The one that cuts the header into most names."""
    head = text[: 1 << 16]
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader(io.StringIO(head), delimiter=mark), [])))


def _jsonl(path: Path, columns: Columns) -> Table:  # noqa: ARG001
    records = [TextRecord(path.name, line, fields) for line, fields in json_records(path, _text(path))]
    return Table(sorted({key for record in records for key in record.fields}), records)


def _parquet(path: Path, columns: Columns) -> Table:  # noqa: ARG001
    """Through ``datasets``, whose label names may stand in the file."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RejectedError("E3105", f"not a Parquet file ({reason}): {shown(path)}", "write it again") from error
    part = datasets.Dataset(datasets.table.InMemoryTable(table))
    records = [TextRecord(path.name, row, fields) for row, fields in enumerate(plain_rows(part), start=1)]
    return Table(list(part.features), records)


def _conll(path: Path, columns: Columns) -> Table:
    """A word a line, its tag last, an empty line between sentences; -DOCSTART- lines are passed over."""
    records = [
        TextRecord(path.name, line, {columns.tokens: words, columns.tags: tags})
        for line, words, tags in _sentences(path)
    ]
    return Table([columns.tokens, columns.tags], records)


def _sentences(path: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    start, words, tags = 0, list[str](), list[str]()
    for number, line in enumerate((*_text(path).split("\n"), ""), start=1):
        fields = line.split()
        if len(fields) == 1:
            reject(path, number, f"a word without a tag: {shown(line.strip()[:40])!r}", "write WORD TAG")
        if fields and fields[0] != "-DOCSTART-":
            start = start or number
            words.append(fields[0])
            tags.append(fields[-1])
        elif words:
            yield start, words, tags
            start, words, tags = 0, [], []


READERS: dict[str, Callable[[Path, Columns], Table]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".conll": _conll,
    ".txt": _conll,
}
"""File suffix -> its reader."""
