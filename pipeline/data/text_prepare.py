"""The data stage of text tasks. Leaves samples.jsonl, texts.jsonl, audit.json and bad_files.jsonl in its directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilledge.models.errors import DistilledgeError
from distilledge.pipeline.data import audit, splits, text_audit
from distilledge.pipeline.data.duplicates import Pair, same
from distilledge.pipeline.data.judge import calibrate, comparable, cut, digest, settle, write_lines
from distilledge.pipeline.data.listing import Finding, Row, shown
from distilledge.pipeline.data.manifest import check_splits
from distilledge.pipeline.data.text_alike import near_texts
from distilledge.pipeline.data.text_audit import NOUN
from distilledge.pipeline.data.text_files import TextRecord
from distilledge.pipeline.data.text_formats import TextListing, text_listing, unlabelled_texts
from distilledge.pipeline.data.text_rows import Entry, normalise, parse, row_of
from distilledge.pipeline.data.text_target import join_texts
from distilledge.pipeline.recipe import Data, TaskName
from distilledge.pipeline.record import Sample, Splits, TextRow


class Looked(NamedTuple):
    """The usable texts, the rest, and the rows of all."""

    entries: list[Entry]
    bad: list[audit.Bad]
    every: list[Row]

    @property
    def rows(self) -> list[Row]:
        return [entry.row for entry in self.entries]


def prepare_texts(
    data: Data, *, task: TaskName, seed: int, out: Path, unlabelled: str | None = None, failed: Path | None = None
) -> Splits:
    """Audits and splits the texts and chooses those for calibration. Audit and bad files are written on failure too.

    On failure they go to ``failed``, where that is given: a directory that outlives ``out``; messages name it.

    ``unlabelled`` is a file whose texts join as split ``unlabelled``; those that are also tested on are left out.
    Raises RejectedError (3) on data that cannot be used, GateFailedError (5) on leakage.
    """
    source = text_listing(data, task)
    report = out if failed is None else failed
    findings = list(source.notes)
    looked = Looked([], [], [])
    try:
        records = source.records + (unlabelled_texts(unlabelled, data.columns, task) if unlabelled else [])
        looked = _look(records, task, data)
        findings += text_audit.describe_texts(looked.entries, task)
        findings += audit.check_bad(looked.bad, looked.every, data.max_bad, shown(report / "bad_files.jsonl"), NOUN)
        text_audit.check_labels(looked.entries, task, source.source)
        looked = _settle(looked, data, findings)
        looked = _split(looked, data, task, seed, findings)
        labelled = [entry for entry in looked.entries if entry.row.split != "unlabelled"]
        parts = [entry.row.split or "train" for entry in labelled]
        findings += text_audit.check_coverage(labelled, parts, task, source.source)
        if data.target is None:
            chosen, more = calibrate(_stratified(looked.entries, task), data.calibration, seed, NOUN)
            findings += more
        else:
            joined = join_texts(data, looked.entries, task, looked.bad, findings, report=report, seed=seed)
            looked, chosen = looked._replace(entries=joined.entries), joined.chosen
    except DistilledgeError as error:
        findings.append(Finding(kind=error.code, severity="error", count=1, message=error.what))
        _write_audit(report, findings, looked, task)
        raise
    _write_audit(out, findings, looked, task)
    return _record(source, looked.entries, task, chosen, findings, out)


def _look(records: Sequence[TextRecord], task: TaskName, data: Data) -> Looked:
    """Each record read as a text of the task."""
    looked = Looked([], [], [])
    for record in records:
        entry = parse(record, task, data)
        if isinstance(entry, str):
            row = row_of(record)
            looked.bad.append(audit.Bad(row.path, row.split or "", entry))
            looked.every.append(row)
        else:
            looked.entries.append(entry)
            looked.every.append(entry.row)
    own = [row for record, row in zip(records, looked.every, strict=True) if record.split is None]
    check_splits(Path(records[0].file), own)  # what has no split of its own comes from one file
    return looked


def _settle(looked: Looked, data: Data, findings: list[Finding]) -> Looked:
    kept, bad = settle(looked.rows, [e.key for e in looked.entries], data.on_conflict, findings, NOUN)
    return looked._replace(entries=[looked.entries[i] for i in kept], bad=looked.bad + bad)


def _split(looked: Looked, data: Data, task: TaskName, seed: int, findings: list[Finding]) -> Looked:
    """Leakage between given splits is judged, then the missing ones are cut: equal texts and contexts stay together."""
    entries, keys = looked.entries, [e.key for e in looked.entries]
    findings += audit.check_leakage(looked.rows, keys, [], allowed=data.allow_leakage, noun=NOUN)
    alike, was_cut = _alike(entries, data)
    contexts = same((i,) if e.context is None else (normalise(e.context), "") for i, e in enumerate(entries))
    rows = cut(_stratified(entries, task), [*same(keys), *contexts], alike, data.splits, seed)
    findings += audit.near_findings(rows, alike, cut=was_cut, noun=NOUN, unit="% of their 3-grams differ")
    return looked._replace(
        entries=[e._replace(row=row._replace(label=e.row.label)) for e, row in zip(entries, rows, strict=True)]
    )


def _stratified(entries: Sequence[Entry], task: TaskName) -> list[Row]:
    """The rows, each labelled with what splits and calibration are balanced by."""
    return [e.row._replace(label=s) for e, s in zip(entries, text_audit.strata(entries, task), strict=True)]


def _alike(entries: Sequence[Entry], data: Data) -> tuple[list[Pair], bool]:
    """Near-duplicates by index, and whether there are too many to list."""
    ours, parts, within = comparable([e.row for e in entries])
    texts = [normalise(entries[i].plain) for i in ours]
    found, was_cut = near_texts(texts, parts, data.near_duplicate_jaccard, within)
    return [Pair(ours[pair.first], ours[pair.second], pair.distance) for pair in found], was_cut


def _record(
    source: TextListing,
    entries: Sequence[Entry],
    task: TaskName,
    chosen: set[int],
    findings: Sequence[Finding],
    out: Path,
) -> Splits:
    classes = text_audit.classes_of(entries, task)
    samples = [_sample(entry, task, classes, number in chosen) for number, entry in enumerate(entries)]
    write_lines(out / "samples.jsonl", (sample._asdict() for sample in samples))
    write_lines(out / "texts.jsonl", (_text_row(entry, task, classes).model_dump() for entry in entries))
    counts = text_audit.class_counts(entries, [sample.split for sample in samples], task)
    pairs = list(zip(samples, entries, strict=True))
    return Splits(
        root=".",
        classes=classes,
        counts={part: {name: counts.get(part, Counter())[name] for name in classes} for part in splits.PARTS},
        data_hash=digest([(s.path, e.row.label or "", s.group, s.split, e.plain) for s, e in pairs]),
        calibration_hash=digest([(s.path, s.sha256) for s in samples if s.calibration]),
        calibration=len(chosen),
        synthetic=source.synthetic,
        warnings=tuple(f.message for f in findings if f.severity == "warning"),
    )


def _sample(entry: Entry, task: TaskName, classes: Sequence[str], calibration: bool) -> Sample:
    row, unlabelled = entry.row, entry.row.split in ("unlabelled", "target")
    single = classes.index(entry.labels[0]) if task == "text-classification" and entry.labels else 0
    return Sample(
        path=row.path,
        label=-1 if unlabelled else single,
        group=row.group or row.path,
        split=row.split or "train",
        sha256=entry.key,
        calibration=calibration,
    )


def _text_row(entry: Entry, task: TaskName, classes: Sequence[str]) -> TextRow:
    index = {name: number for number, name in enumerate(classes)}
    labels = () if task == "text-classification" else tuple(index[label] for label in entry.labels)
    return TextRow(text=entry.text, context=entry.context, labels=labels, answers=entry.answers)


def _write_audit(folder: Path, findings: Sequence[Finding], looked: Looked, task: TaskName) -> None:
    content = text_audit.summary(findings, looked.entries, task, len(looked.bad))
    (folder / "audit.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_lines(folder / "bad_files.jsonl", (bad._asdict() for bad in looked.bad))
