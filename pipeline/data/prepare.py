"""The data stage: list, look, judge, split. Leaves samples.jsonl, audit.json and bad_files.jsonl in its directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilledge.models.errors import DistilledgeError
from distilledge.models.heads import joined
from distilledge.pipeline.data import audit, splits
from distilledge.pipeline.data.duplicates import COPY_BITS, Pair, is_copy, near, same
from distilledge.pipeline.data.formats import list_unlabelled, listing
from distilledge.pipeline.data.judge import calibrate, comparable, cut, digest, settle, write_lines
from distilledge.pipeline.data.labels import check_labels, counts_of, heads_of, indices, whole, write_labels
from distilledge.pipeline.data.listing import Finding, Listing, Row, shown
from distilledge.pipeline.data.pictures import Facts, examine_all, gray
from distilledge.pipeline.data.target import join
from distilledge.pipeline.recipe import Data
from distilledge.pipeline.recipe_multitask import tasks
from distilledge.pipeline.record import Sample, Splits
from distilledge.targets.ondevice.preprocess import InputSpec


class Looked(NamedTuple):
    """The usable pictures, and the rest. ``rows`` and ``facts`` belong together."""

    rows: list[Row]
    facts: list[Facts]
    bad: list[audit.Bad]

    @property
    def keys(self) -> list[str]:
        return [facts.pixels for facts in self.facts]


class Alike(NamedTuple):
    copies: list[Pair]
    near: list[Pair]
    cut: bool


def prepare(
    data: Data, *, bit_depth: int, seed: int, out: Path, unlabelled: str | None = None, failed: Path | None = None
) -> Splits:
    """Audits and splits the data set and chooses calibration pictures. Audit and bad files are written on failure too.

    On failure they go to ``failed``, where that is given: a directory that outlives ``out``; messages name it.

    ``unlabelled`` is a folder whose pictures join as split ``unlabelled``; those that are also tested on are left out.
    Raises RejectedError (3) on data that cannot be used, GateFailedError (5) on leakage, ResourceError (9).
    """
    spec = InputSpec(
        height=1,
        width=1,
        bit_depth=bit_depth,
        exif=data.exif,
        frames=data.frames,
        max_pixels=data.max_pixels,
        min_size=data.min_size,
    )
    source = listing(data, out)
    report = out if failed is None else failed
    findings = list(source.notes)
    looked = Looked([], [], [])
    try:
        rows = _labelled(source, tasks(data)) + (_extra_rows(unlabelled, findings) if unlabelled else [])
        looked = _look(source, rows, spec, data.workers)
        findings += audit.describe_pictures(looked.rows, looked.facts)
        audit.refuse(looked.bad)
        findings += audit.check_bad(looked.bad, rows, data.max_bad, shown(report / "bad_files.jsonl"))
        kept, bad = settle([whole(row) for row in looked.rows], looked.keys, data.on_conflict, findings)
        looked = Looked([looked.rows[i] for i in kept], [looked.facts[i] for i in kept], looked.bad + bad)
        alike = _alike(source, looked, spec, data)
        findings += audit.check_leakage(looked.rows, looked.keys, alike.copies, allowed=data.allow_leakage)
        looked = looked._replace(rows=_split(looked, alike, data, seed, source.source))
        findings += audit.near_findings(looked.rows, alike.near, cut=alike.cut)
        if data.target is None:
            chosen, more = calibrate(looked.rows, data.calibration, seed)
            findings += more
        else:
            joined = join(data, looked, source.root, spec, findings, report=report, seed=seed)
            looked, chosen = Looked(*joined[:3]), joined.chosen
    except DistilledgeError as error:
        findings.append(Finding(kind=error.code, severity="error", count=1, message=error.what))
        _write_audit(report, findings, looked)
        raise
    _write_audit(out, findings, looked)
    return _record(source, looked, chosen, findings, out, names=tasks(data))


def _labelled(source: Listing, names: Sequence[str]) -> list[Row]:
    """The rows, with labels and given splits checked before anything is decoded."""
    rows = [row for row in source.rows if row.split != "unlabelled"]
    labels = [row.label or "" for row in rows]
    places = [f"{source.source}:{row.line}" if row.line else source.source for row in rows]
    splits.check_classes(labels, [row.split for row in rows], places, source.source)
    given = {row.split for row in rows} - {None}
    if given >= set(splits.PARTS):
        splits.check_coverage(labels, [row.split or "train" for row in rows], source.source)
    check_labels(rows, names, source.source)
    return source.rows


def _extra_rows(path: str, findings: list[Finding]) -> list[Row]:
    extra = list_unlabelled(path)
    findings += extra.notes
    return [row._replace(path=str(extra.root / row.path)) for row in extra.rows]


def _look(source: Listing, rows: Sequence[Row], spec: InputSpec, workers: int) -> Looked:
    """Each picture read and decoded once."""
    looked = Looked([], [], [])
    for row, facts in zip(rows, examine_all([str(source.root / row.path) for row in rows], spec, workers), strict=True):
        if isinstance(facts, str):
            looked.bad.append(audit.Bad(row.path, row.split or "", facts))
        else:
            looked.rows.append(row)
            looked.facts.append(facts)
    return looked


def _alike(source: Listing, looked: Looked, spec: InputSpec, data: Data) -> Alike:
    """Near pairs between splits, and inside what is still to be cut; those of equal size are compared by pixels."""
    rows, facts = looked.rows, looked.facts
    ours, parts, within = comparable(rows)
    bits = max(data.near_duplicate_bits, COPY_BITS)
    found, cut = near([facts[i].phash for i in ours], parts, bits, within)
    alike = Alike([], [], cut)
    for first, second, distance in found:
        pair = Pair(ours[first], ours[second], distance)
        a, b = facts[pair.first], facts[pair.second]
        if a.pixels == b.pixels:
            continue
        equal = (a.width, a.height) == (b.width, b.height)
        if equal and is_copy(*(gray(str(source.root / rows[i].path), spec) for i in pair[:2])):
            alike.copies.append(pair)
        elif distance <= data.near_duplicate_bits:
            alike.near.append(pair)
    return alike


def _split(looked: Looked, alike: Alike, data: Data, seed: int, source: str) -> list[Row]:
    """The rows with their final splits and groups, every class in every split."""
    sets = [*same(looked.keys), *(pair[:2] for pair in alike.copies)]
    rows = cut(looked.rows, sets, alike.near, data.splits, seed)
    labelled = [row for row in rows if row.split != "unlabelled"]
    splits.check_coverage([row.label or "" for row in labelled], [row.split or "train" for row in labelled], source)
    check_labels(labelled, tasks(data), source)
    return rows


def _record(
    source: Listing, looked: Looked, chosen: set[int], findings: Sequence[Finding], out: Path, *, names: Sequence[str]
) -> Splits:
    heads = heads_of(looked.rows, names)
    classes = joined(heads) or tuple(sorted({row.label for row in looked.rows if row.label is not None}))
    of_tasks = [indices(row, heads) for row in looked.rows]
    index = {name: number for number, name in enumerate(classes)}
    samples = [
        Sample(
            path=row.path,
            label=own[0] if own else -1 if row.label is None or row.split == "unlabelled" else index[row.label],
            group=row.group or row.path,
            split=row.split or "train",
            sha256=facts.sha256,
            calibration=number in chosen,
        )
        for number, (row, facts, own) in enumerate(zip(looked.rows, looked.facts, of_tasks, strict=True))
    ]
    write_lines(out / "samples.jsonl", (sample._asdict() for sample in samples))
    if heads:
        write_labels(of_tasks, out)
    counts = {part: Counter(classes[s.label] for s in samples if s.split == part) for part in splits.PARTS}
    told = [classes[s.label] if s.label >= 0 else "" for s in samples]
    return Splits(
        root="." if source.unpacked else str(source.root),
        classes=classes,
        heads=heads,
        counts=counts_of([(s.split, own) for s, own in zip(samples, of_tasks, strict=True)], heads)
        if heads
        else {part: {name: of[name] for name in classes} for part, of in counts.items()},
        data_hash=digest(
            [
                (s.path, *(map(str, own) if heads else (label,)), s.group, s.split, s.sha256)
                for s, label, own in zip(samples, told, of_tasks, strict=True)
            ]
        ),
        calibration_hash=digest([(s.path, s.sha256) for s in samples if s.calibration]),
        calibration=len(chosen),
        synthetic=source.synthetic,
        warnings=tuple(f.message for f in findings if f.severity == "warning"),
    )


def _write_audit(folder: Path, findings: Sequence[Finding], looked: Looked) -> None:
    content = audit.summary(findings, looked.rows, looked.facts, len(looked.bad))
    (folder / "audit.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_lines(folder / "bad_files.jsonl", (bad._asdict() for bad in looked.bad))
