"""What is decided of a listing, of pictures or of texts: who stays, who trains, who calibrates."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from distilledge.pipeline.data import audit, splits
from distilledge.pipeline.data.duplicates import Pair, join, same
from distilledge.pipeline.data.listing import Finding, Row, finding, shown
from distilledge.pipeline.recipe import SplitFractions


def settle(
    rows: Sequence[Row], keys: Sequence[str], rule: str, findings: list[Finding], noun: str = "pictures"
) -> tuple[list[int], list[audit.Bad]]:
    """Indices that stay, and the others. Rows with one key are identical.

    Conflicting labels go by the recipe's ``rule``; what is unlabelled and also tested on goes.
    """
    sets = audit.conflicts(rows, keys)
    findings += audit.check_conflicts(sets, rows, rule, noun)
    reasons: dict[int, str] = {}
    if rule == "quarantine":
        reasons |= {i: f"conflicting labels of identical {noun}" for members in sets for i in members}
    tested = {key for row, key in zip(rows, keys, strict=True) if row.split in ("test", "validation", None)}
    both = [i for i, row in enumerate(rows) if row.split == "unlabelled" and keys[i] in tested]
    reasons |= dict.fromkeys(both, f"unlabelled {noun[:-1]} is in the labelled set too")
    if both:
        names = [shown(rows[i].path) for i in both]
        findings.append(finding("unlabelled_tested", "warning", f"{len(both)} unlabelled {noun} left out", names))
    kept = [i for i in range(len(rows)) if i not in reasons]
    findings += audit.duplicates([rows[i] for i in kept], [keys[i] for i in kept], noun)
    return kept, [audit.Bad(rows[i].path, rows[i].split or "", why) for i, why in sorted(reasons.items())]


def comparable(rows: Sequence[Row]) -> tuple[list[int], list[str], set[str]]:
    """What is looked through for near-duplicates: indices without the unlabelled, the part of each, and the parts
    inside which pairs matter too, because they are still to be cut.
    """
    ours = [i for i, row in enumerate(rows) if row.split != "unlabelled"]
    given = {rows[i].split for i in ours}
    within = {"all"} | ({"train"} if not given >= set(splits.PARTS) else set())
    return ours, [rows[i].split or "all" for i in ours], within


def cut(
    rows: Sequence[Row], sets: Iterable[Sequence[int]], alike: Iterable[Pair], wanted: SplitFractions, seed: int
) -> list[Row]:
    """The rows with final splits and groups. Our cut parts neither ``sets``, nor groups, nor what is ``alike``."""
    own = same(row.group or f"path:{row.path}" for row in rows)
    given = {row.split for row in rows if row.split not in (None, "unlabelled")}
    fractions = splits.fractions_of({split for split in given if split}, wanted)
    is_open = [bool(fractions) and row.split in (None, "train") for row in rows]
    leader = join(len(rows), (*own, *sets), [pair for pair in alike if is_open[pair.first] and is_open[pair.second]])
    done = [row._replace(group=rows[lead].group or rows[lead].path) for row, lead in zip(rows, leader, strict=True)]
    open_rows = [i for i, free in enumerate(is_open) if free]
    groups = [done[i].group or "" for i in open_rows]
    parts = splits.assign([done[i].label or "" for i in open_rows], groups, fractions, seed)
    for i, part in zip(open_rows, parts, strict=True):
        done[i] = done[i]._replace(split=part)
    return done


def calibrate(rows: Sequence[Row], wanted: int, seed: int, noun: str = "pictures") -> tuple[set[int], list[Finding]]:
    """Indices of the train rows for static int8."""
    train = [i for i, row in enumerate(rows) if row.split == "train"]
    own = [rows[i] for i in train]
    chosen, findings = splits.calibration(
        [r.path for r in own], [r.label or "" for r in own], [r.group or "" for r in own], wanted, seed, noun
    )
    return {train[i] for i in chosen}, findings


def digest(items: Sequence[tuple[str, ...]]) -> str:
    """sha256 of the items in sorted order."""
    total = hashlib.sha256()
    for item in sorted(items):
        total.update(json.dumps(item).encode() + b"\n")
    return total.hexdigest()


def write_lines(path: Path, records: Iterable[dict[str, object]]) -> None:
    """JSON lines in ASCII, so that names that are no text (undecodable bytes) come back as they were."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
