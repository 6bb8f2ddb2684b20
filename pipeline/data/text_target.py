"""The target of a domain adaptation of texts: see ``target``. What is learned from loses its label when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data import audit
from distilledge.pipeline.data.content import target_data
from distilledge.pipeline.data.listing import Finding, Row, expand, finding, shown
from distilledge.pipeline.data.target import calibrate_target, check_target_classes
from distilledge.pipeline.data.text_alike import near_texts
from distilledge.pipeline.data.text_audit import NOUN
from distilledge.pipeline.data.text_files import TextRecord
from distilledge.pipeline.data.text_formats import detect_text, text_files, text_listing, unlabelled_texts
from distilledge.pipeline.data.text_rows import Entry, normalise, parse, row_of
from distilledge.pipeline.recipe import Data, TaskName
from distilledge.pipeline.recipe_data import Target

LEARNED = ("train", "validation", "target")
HINT = "set data.target.test to labelled texts of the target"


class JoinedTexts(NamedTuple):
    """All usable texts of source and target. ``chosen``: indices of those that int8 is calibrated on."""

    entries: list[Entry]
    chosen: set[int]


def join_texts(
    data: Data,
    entries: Sequence[Entry],
    task: TaskName,
    set_aside: list[audit.Bad],
    findings: list[Finding],
    *,
    report: Path,
    seed: int,
) -> JoinedTexts:
    """The source's texts, split, with the target's. Origins of these begin with ``target/`` or ``target-test/``.

    What cannot be used is added to ``set_aside``, what is to be said to ``findings``.

    Raises RejectedError (3) on a target that cannot be used, GateFailedError (5) where a text that is learned from is
    also one of the target's test part: the same but for case, width and blanks.
    """
    assert data.target is not None
    assert task == "text-classification", task
    made: list[Entry] = []
    bad: list[audit.Bad] = []
    listed: list[Row] = []
    for record, place in target_records(data, data.target, task):
        entry = parse(record, task, data)
        own = row_of(record) if isinstance(entry, str) else entry.row
        row = own._replace(path=f"{place}/{own.path}", split="test" if own.split == "test" else "target")
        listed.append(row)
        if isinstance(entry, str):
            bad.append(audit.Bad(row.path, row.split or "", entry))
        else:
            made.append(entry._replace(row=row))
    tested = [entry.row for entry in made if entry.row.split == "test"]
    check_target_classes({e.row.label for e in entries if e.row.label}, tested, findings, NOUN)
    set_aside += bad
    findings += audit.check_bad(bad, listed, data.max_bad, shown(report / "bad_files.jsonl"), NOUN)
    joined = _without_tested([*map(_of_source, entries), *made], findings)
    check_texts_overlap(joined, findings, allowed=data.allow_leakage, jaccard=data.near_duplicate_jaccard)
    chosen, more = calibrate_target([entry.row for entry in joined], data.calibration, seed, NOUN)
    findings += more
    return JoinedTexts(joined, chosen)


def target_records(data: Data, target: Target, task: TaskName) -> list[tuple[TextRecord, str]]:
    """Records of splits ``unlabelled`` (whatever their file says, no label is read) and ``test``, with their places."""
    if target.test:
        scored = _labelled(data, target.test, task)
        has_test = any(row_of(record).split == "test" for record in scored)
        tested = [r for r in scored if not has_test or row_of(r).split == "test"]
        same_file = Path(expand(target.test)).resolve() == Path(expand(target.path)).resolve()
        own = {record.origin for record in tested} if same_file else set()
        learned = [r for r in _unlabelled(data, target.path, task) if r.origin not in own]
    else:
        every = _labelled(data, target.path, task)
        tested = [record for record in every if row_of(record).split == "test"]
        learned = [record for record in every if row_of(record).split != "test"]
    if not tested:
        raise RejectedError("E3690", f"the target has no test part: {shown(target.test or target.path)}", HINT)
    if not learned:
        what = f"no texts of the target to learn from: {shown(target.path)}"
        raise RejectedError("E3691", what, "add some to data.target.path; labels are not needed")
    place = "target-test" if target.test else "target"
    free = [(record._replace(split="unlabelled"), "target") for record in learned]
    return free + [(record._replace(split="test"), place) for record in tested]


def _labelled(data: Data, place: str, task: TaskName) -> list[TextRecord]:
    return text_listing(_readable(data, place), task).records


def _unlabelled(data: Data, place: str, task: TaskName) -> list[TextRecord]:
    """A file, or those of a folder; of tables the columns that a model sees."""
    _readable(data, place)
    files = [file for _, file in text_files(Path(expand(place)))]
    return [record for file in files for record in unlabelled_texts(str(file), data.columns, task)]


def _readable(data: Data, place: str) -> Data:
    own = target_data(data, place)
    kind = detect_text(own)
    if kind not in ("folder", "manifest"):
        what = f"data.target: a {kind} data set: {shown(place)}"
        raise RejectedError("E3692", what, "give a file of texts, or a folder with train and test files")
    return own


def _of_source(entry: Entry) -> Entry:
    """The source's own test part is told beside the target's."""
    return entry._replace(row=entry.row._replace(split="source-test")) if entry.row.split == "test" else entry


def _without_tested(entries: list[Entry], findings: list[Finding]) -> list[Entry]:
    """Texts of ``distill.unlabelled`` that are also tested on go."""
    tested = {entry.key for entry in entries if entry.row.split == "test"}
    both = [entry for entry in entries if entry.row.split == "unlabelled" and entry.key in tested]
    if both:
        names = [shown(entry.row.path) for entry in both]
        findings.append(finding("unlabelled_tested", "warning", f"{len(both)} unlabelled {NOUN} left out", names))
    return [entry for entry in entries if entry.row.split != "unlabelled" or entry.key not in tested]


def check_texts_overlap(entries: Sequence[Entry], findings: list[Finding], *, allowed: bool, jaccard: float) -> None:
    """Equal texts in ``test`` and in what is learned from, and groups of the target on both sides: GateFailedError (5).

    Nearly equal ones are a warning.
    """
    for learned, groups in ((("target",), True), (("train", "validation"), False)):
        chosen = [entry for entry in entries if entry.row.split in (*learned, "test")]
        rows = [entry.row if groups else entry.row._replace(group=None) for entry in chosen]
        if not groups:  # those of one side were compared with each other before
            rows = [row if row.split == "test" else row._replace(split="train") for row in rows]
        findings += audit.check_leakage(rows, [entry.key for entry in chosen], [], allowed=allowed, noun=NOUN)
    ours = [entry for entry in entries if entry.row.split in (*LEARNED, "test")]
    parts = ["test" if entry.row.split == "test" else "learned" for entry in ours]
    found, cut = near_texts([normalise(entry.plain) for entry in ours], parts, jaccard, set())
    rows = [entry.row for entry in ours]
    findings += audit.near_findings(rows, found, cut=cut, noun=NOUN, unit="% of their 3-grams differ")
