"""From a record to a text of its task: what is missing is an error with its line, what is broken is set aside."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.pipeline.data.listing import Row, shown
from distilledge.pipeline.data.manifest import plain_field, reject, split_of
from distilledge.pipeline.data.text_files import BROKEN, TextRecord
from distilledge.pipeline.data.text_formats import TRUTH
from distilledge.pipeline.recipe import Data, TaskName


class Entry(NamedTuple):
    """One text with what is known of it. ``labels`` are names; they and ``answers`` are as in ``TextRow``."""

    row: Row
    """Its path is the origin; its label all that is true of the text in one string, None without labels."""
    text: str | tuple[str, ...]
    context: str | None = None
    labels: tuple[str, ...] = ()
    answers: tuple[tuple[int, str], ...] = ()
    key: str = ""
    """sha256 of the normalised text and context: the same for texts that differ in case, width or blanks only."""
    moved: bool = False
    """An answer did not stand at its start, and was found at its only place."""

    @property
    def plain(self) -> str:
        """All of the text in one string."""
        text = self.text if isinstance(self.text, str) else " ".join(self.text)
        return text if self.context is None else f"{text}\n{self.context}"


class Broken(Exception):  # noqa: N818 (it never leaves this module)
    """Why a text is set aside."""


def normalise(text: str) -> str:
    """NFKC, case folded, every run of white space one blank."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(unicodedata.normalize("NFKC", folded.casefold()).split())


def parse(record: TextRecord, task: TaskName, data: Data) -> Entry | str:
    """The text, or the reason why it cannot be used.

    Raises RejectedError with the line where a label or split is missing or no label at all.
    """
    try:
        entry = PARSERS[task](record, row_of(record), data)
    except Broken as reason:
        return str(reason)
    return entry._replace(key=hashlib.sha256(normalise(entry.plain).encode()).hexdigest())


def row_of(record: TextRecord) -> Row:
    """Origin, group and split; the split of a file's name goes before that of a column."""
    split, group = record.split, str(record.fields.get("group", "")).strip()
    own = str(record.fields.get("split", "")).strip()
    if split is None and own:
        split = split_of(Path(record.file), record.line, own)
    return Row(record.origin, None, group or None, split, record.line)


def fault(text: Any, most: int) -> str | None:
    """What makes a text unusable; None where nothing does."""
    if not isinstance(text, str):
        return "empty text" if text is None else f"not a text but {type(text).__name__}"
    if BROKEN.search(text):
        return "not UTF-8"
    if "\0" in text:
        return "NUL character"
    if not any(c.isprintable() and not c.isspace() for c in text):
        return "empty text"
    return f"{len(text):,} characters, more than data.max_characters {most:,}" if len(text) > most else None


def _checked(record: TextRecord, column: str, data: Data) -> str:
    text = record.fields.get(column)
    why = fault(text, data.max_characters)
    if why:
        raise Broken(why if column == "text" else f"{column}: {why}")
    return str(text)


def _no_truth(record: TextRecord, row: Row, column: str) -> bool:
    """True for a text that needs none. Raises RejectedError for one that does."""
    if row.split == "unlabelled":
        return True
    if column not in record.fields:
        reject(Path(record.file), record.line, f"no {column}", "write one, or split: unlabelled")
    return False


def _one_label(record: TextRecord, row: Row, data: Data) -> Entry:
    if _no_truth(record, row, "label"):
        return Entry(row, _checked(record, "text", data))
    label = plain_field(Path(record.file), record.line, "label", record.fields["label"]).strip()
    if not label:
        reject(Path(record.file), record.line, "no label", "write one, or split: unlabelled")
    return Entry(row._replace(label=label), _checked(record, "text", data), labels=(label,))


def _many_labels(record: TextRecord, row: Row, data: Data) -> Entry:
    if _no_truth(record, row, "label"):
        return Entry(row, _checked(record, "text", data))
    value = record.fields["label"]
    items = value if isinstance(value, list) else str(value).split(data.label_separator)
    named = (plain_field(Path(record.file), record.line, "label", item).strip() for item in items if item is not None)
    labels = tuple(sorted({label for label in named if label}))
    return Entry(row._replace(label=data.label_separator.join(labels)), _checked(record, "text", data), labels=labels)


def _words(record: TextRecord, row: Row, data: Data) -> Entry:
    words = _strings(record, "tokens")
    why = fault(" ".join(words), data.max_characters)
    empty = next((number for number, word in enumerate(words, start=1) if not word.strip()), None)
    if why or empty:
        raise Broken(why or f"empty word (number {empty})")
    if _no_truth(record, row, "tags"):
        return Entry(row, words)
    tags = _strings(record, "tags")
    if len(tags) != len(words):
        raise Broken(f"{len(words)} words, {len(tags)} tags")
    return Entry(row._replace(label=" ".join(tags)), words, labels=tags)


def _strings(record: TextRecord, column: str) -> tuple[str, ...]:
    value = record.fields.get(column, [])
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(record, column, value)
    if not isinstance(value, list):
        reject(Path(record.file), record.line, f"{column} is not a list", "write a .jsonl, .parquet or .conll file")
    return tuple(plain_field(Path(record.file), record.line, column, item) for item in value)


def _question(record: TextRecord, row: Row, data: Data) -> Entry:
    text, context = _checked(record, "text", data), _checked(record, "context", data)
    if _no_truth(record, row, TRUTH["question-answering"]):
        return Entry(row, text, context)
    given = _answers(record)
    found = [(_place(context, answer, start), answer) for answer, start in given]
    moved = any(at != start for (at, _), (_, start) in zip(found, given, strict=True))
    known = tuple(dict.fromkeys(found))
    truth = " / ".join(sorted({normalise(answer) for _, answer in known}))
    return Entry(row._replace(label=truth), text, context, answers=known, moved=moved)


def _place(context: str, answer: str, start: int | None) -> int:
    """Where the answer begins: at ``start``, else at its only place in the context."""
    if start is not None and start >= 0 and context.startswith(answer, start):
        return start
    times = context.count(answer)
    if times == 1:
        return context.index(answer)
    what = f"answer {shown(answer[:60])!r}"
    if times == 0:
        raise Broken(f"{what} is not in the context")
    raise Broken(f"{what} occurs {times} times in the context, not at answer_start {start}")


def _answers(record: TextRecord) -> list[tuple[str, int | None]]:
    """Answers and their starts, from SQuAD's dictionary of lists, a list of dictionaries, or either as JSON."""
    value = record.fields["answers"]
    if isinstance(value, str):
        value = _json(record, "answers", value) if value.strip() else []
    items = value if isinstance(value, list) else _unzipped(value)
    answers = []
    for item in items:
        text, start = (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (item, None)
        if not isinstance(text, str) or not (start is None or isinstance(start, int)):
            hint = 'write {"text": ["..."], "answer_start": [0]}'
            reject(Path(record.file), record.line, "answers are not texts with starts", hint)
        if text:
            answers.append((text, start))
    return answers


def _unzipped(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [value]
    texts, starts = value.get("text"), value.get("answer_start")
    if not isinstance(texts, list):
        return [value]
    starts = starts if isinstance(starts, list) else [None] * len(texts)
    if len(starts) != len(texts):
        return [value]
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _json(record: TextRecord, column: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reject(Path(record.file), record.line, f"{column} is not JSON ({error.msg})", "mend the line")


PARSERS: dict[TaskName, Callable[[TextRecord, Row, Data], Entry]] = {
    "text-classification": _one_label,
    "multi-label-classification": _many_labels,
    "token-classification": _words,
    "question-answering": _question,
}
