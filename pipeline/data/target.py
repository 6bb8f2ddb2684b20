"""The target of a domain adaptation: pictures to learn from without labels, and labelled ones that are scored on.

Of texts see ``text_target``. In a data stage with a target, ``test`` is the target's test part, ``target`` are the
pictures without labels, and the source's own test part is ``source-test``. Calibration pictures are of the target: the
student runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data import audit, splits
from distilledge.pipeline.data.content import target_data
from distilledge.pipeline.data.duplicates import COPY_BITS, Pair, is_copy, near
from distilledge.pipeline.data.formats import detect, list_unlabelled, listing
from distilledge.pipeline.data.listing import Finding, Listing, Row, closest, few, finding, shown
from distilledge.pipeline.data.pictures import Facts, examine_all, gray
from distilledge.pipeline.recipe import Data
from distilledge.pipeline.recipe_data import Target
from distilledge.targets.ondevice.preprocess import InputSpec

HINT = "set data.target.test to labelled pictures of the target"


class Joined(NamedTuple):
    """All usable pictures of source and target. ``chosen``: indices of those that int8 is calibrated on."""

    rows: list[Row]
    facts: list[Facts]
    bad: list[audit.Bad]
    chosen: set[int]


def join(
    data: Data,
    source: tuple[list[Row], list[Facts], list[audit.Bad]],
    root: Path,
    spec: InputSpec,
    findings: list[Finding],
    *,
    report: Path,
    seed: int,
) -> Joined:
    """The source's pictures, split and lying under ``root``, with the target's.

    Raises RejectedError (3) on a target that cannot be used, GateFailedError (5) where a picture that is learned from
    is also one of the target's test part, by content.
    """
    assert data.target is not None
    listed = target_rows(data, data.target, findings)
    check_target_classes({row.label for row in source[0] if row.label}, listed, findings)
    rows = [row._replace(split="source-test") if row.split == "test" else row for row in source[0]]
    facts, bad = list(source[1]), []
    for row, found in zip(listed, examine_all([row.path for row in listed], spec, data.workers), strict=True):
        if isinstance(found, str):
            bad.append(audit.Bad(row.path, row.split or "", found))
        else:
            rows.append(row)
            facts.append(found)
    audit.refuse(bad)
    findings += audit.check_bad(bad, listed, data.max_bad, shown(report / "bad_files.jsonl"))
    rows, facts = _without_tested(rows, facts, findings)
    check_overlap(rows, facts, spec, findings, allowed=data.allow_leakage, root=root)
    chosen, more = calibrate_target(rows, data.calibration, seed)
    findings += more
    return Joined(rows, facts, [*source[2], *bad], chosen)


def _without_tested(rows: list[Row], facts: list[Facts], findings: list[Finding]) -> tuple[list[Row], list[Facts]]:
    """Pictures of ``distill.unlabelled`` that are also tested on go."""
    tested = {found.pixels for row, found in zip(rows, facts, strict=True) if row.split == "test"}
    both = [i for i, row in enumerate(rows) if row.split == "unlabelled" and facts[i].pixels in tested]
    if both:
        names = [shown(rows[i].path) for i in both]
        findings.append(finding("unlabelled_tested", "warning", f"{len(both)} unlabelled pictures left out", names))
    kept = sorted(set(range(len(rows))) - set(both))
    return [rows[i] for i in kept], [facts[i] for i in kept]


def target_rows(data: Data, target: Target, findings: list[Finding]) -> list[Row]:
    """Absolute paths; split ``target`` without a label, ``test`` with one."""
    if target.test:
        if detect(target_data(data, target.path)) == "manifest":
            learned = _listed(data, target.path)
        else:
            learned = list_unlabelled(target.path, "data.target.path")
        scored = _listed(data, target.test)
        has_test = any(row.split == "test" for row in scored.rows)
        tested = [row for row in scored.rows if row.split == "test" or not has_test]
    else:
        learned = scored = _listed(data, target.path)
        tested = [row for row in scored.rows if row.split == "test"]
    if not tested:
        raise RejectedError("E3530", f"the target has no test part: {scored.source}", HINT)
    of_test = {str(scored.root / row.path) for row in tested}
    findings += [*learned.notes, *(scored.notes if scored is not learned else ())]
    paths = [(row, str(learned.root / row.path)) for row in learned.rows]
    free = [row._replace(path=path, label=None, split="target") for row, path in paths if path not in of_test]
    if not free:
        raise RejectedError("E3531", f"no pictures of the target to learn from: {learned.source}", HINT)
    return free + [row._replace(path=str(scored.root / row.path), split="test") for row in tested]


def _listed(data: Data, place: str) -> Listing:
    own = target_data(data, place)
    kind = detect(own)
    if kind not in ("folder", "manifest"):
        raise RejectedError("E3532", f"data.target: a {kind} data set: {place}", "give a folder or a manifest")
    return listing(own, Path())


def check_target_classes(
    known: set[str], listed: Sequence[Row], findings: list[Finding], noun: str = "pictures"
) -> None:
    """Raise ``RejectedError`` for a class that the source has not; a class without a test picture is a warning."""
    tested = {row.label or "" for row in listed if row.split == "test"}
    for label in sorted(tested - known):
        near_name = closest(label, known)
        hint = f"did you mean {near_name}" if near_name else f"classes of the source: {few(sorted(known), 12)}"
        raise RejectedError("E3533", f"the target's test part has a class of its own: {shown(label)!r}", hint)
    absent = [shown(name) for name in sorted(known - tested)]
    if absent:
        what = f"classes without a test {noun[:-1]} of the target: {few(absent)}"
        findings.append(finding("target_classes", "warning", what, absent))


def check_overlap(
    rows: Sequence[Row],
    facts: Sequence[Facts],
    spec: InputSpec,
    findings: list[Finding],
    *,
    allowed: bool,
    root: Path,
) -> None:
    """Identical pictures, copies saved again and groups of ``test`` in what is learned from: GateFailedError (5).

    Compared are ``target`` with ``test`` (with groups), and ``train`` and ``validation`` with ``test``.
    """
    copies = _copies(rows, facts, spec, root)
    for learned, groups in ((("target",), True), (("train", "validation"), False)):
        chosen = [i for i, row in enumerate(rows) if row.split in (*learned, "test")]
        place = {index: number for number, index in enumerate(chosen)}
        own = [rows[i] if groups else rows[i]._replace(group=None) for i in chosen]
        if not groups:  # those of one side were compared with each other before
            own = [row if row.split == "test" else row._replace(split="train") for row in own]
        pairs = [Pair(place[p.first], place[p.second], p.distance) for p in copies if {p.first, p.second} <= set(place)]
        findings += audit.check_leakage(own, [facts[i].pixels for i in chosen], pairs, allowed=allowed)


def _copies(rows: Sequence[Row], facts: Sequence[Facts], spec: InputSpec, root: Path) -> list[Pair]:
    ours = [i for i, row in enumerate(rows) if row.split in ("train", "validation", "target", "test")]
    parts = ["test" if rows[i].split == "test" else "learned" for i in ours]
    found, _ = near([facts[i].phash for i in ours], parts, COPY_BITS, set())
    copies = []
    for first, second, distance in found:
        pair = Pair(ours[first], ours[second], distance)
        a, b = facts[pair.first], facts[pair.second]
        if a.pixels != b.pixels and (a.width, a.height) == (b.width, b.height):
            one, other = (gray(str(root / rows[i].path), spec) for i in pair[:2])
            copies += [pair] if is_copy(one, other) else []
    return copies


def calibrate_target(
    rows: Sequence[Row], wanted: int, seed: int, noun: str = "pictures"
) -> tuple[set[int], list[Finding]]:
    """Of the target's unlabelled pictures: what the int8 file will see is what its ranges are taken of."""
    free = [i for i, row in enumerate(rows) if row.split == "target"]
    own = [rows[i] for i in free]
    groups = [row.group or row.path for row in own]
    chosen, found = splits.calibration([row.path for row in own], [""] * len(own), groups, wanted, seed, noun)
    return {free[i] for i in chosen}, [
        f.model_copy(update={"message": f"of the target, without labels: {f.message.removesuffix(', of every class')}"})
        for f in found
    ]
