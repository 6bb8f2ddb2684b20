"""What the data is like, before anything trains on it: bad files, conflicts, leakage, formats. Nothing is read here."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distilledge.models.errors import GateFailedError, RejectedError
from distilledge.pipeline.data.duplicates import MOST_PAIRS, Pair, same
from distilledge.pipeline.data.listing import Finding, Row, few, finding, shown
from distilledge.pipeline.data.pictures import Facts
from distilledge.pipeline.recipe import MaxBad

CLIPPED = 0.05
"""Share of white pixels from which a picture counts as overexposed."""


class Bad(NamedTuple):
    """A line of bad_files.jsonl. ``split``: as given, empty where the data brings none."""

    path: str
    split: str
    reason: str


def refuse(bad: Sequence[Bad]) -> None:
    """Raises RejectedError (exit 3) on reasons that are a setting, not a damaged file: bit depth, frames, EXIF."""
    for start, code, hint in (
        ("more than 8 bits", "E3110", "--set student.input.bit_depth={bits} --set teacher.input.bit_depth={bits}"),
        ("colour of 16 bits", "E3110", "--set student.input.bit_depth=16 --set teacher.input.bit_depth=16"),
        ("animated", "E3111", "--set data.frames=first"),
        ("EXIF", "E3112", "--set data.exif=apply"),
    ):
        hits = [b for b in bad if b.reason.startswith(start)]
        if hits:
            largest = max(int(n) for b in hits for n in re.findall(r"largest value (\d+)", b.reason) or ["0"])
            bits = next((bits for bits in (10, 12, 14) if largest < 2**bits), 16)
            worst = max(hits, key=lambda b: float((re.findall(r"([\d.]+) %", b.reason) or ["0"])[0]))
            what = f"{worst.reason}: {shown(worst.path)} ({len(hits)} such pictures)"
            raise RejectedError(code, what, hint.format(bits=bits))


def check_bad(
    bad: Sequence[Bad], rows: Sequence[Row], limits: MaxBad, where: str, noun: str = "pictures"
) -> list[Finding]:
    """Quarantined files or texts; RejectedError where a split has more than its limit (without splits, train's)."""
    totals = Counter(str(row.split or "train") for row in rows)
    counts = Counter(b.split or "train" for b in bad)
    for split, count in counts.items():
        share = float(getattr(limits, "train" if split in ("unlabelled", "target") else split))
        if count > share * totals[split]:
            some = few([f"{shown(b.path)}: {b.reason}" for b in bad if (b.split or "train") == split])
            what = f"{count} of {totals[split]} {split} {noun} cannot be used, more than {share:.1%}: {some}"
            rate = min(1.0, np.ceil(count / totals[split] * 1000) / 1000)
            hint = f"mend or remove what {where} lists, or --set data.max_bad.{split}={rate:g}"
            raise RejectedError("E3113", what, hint)
    examples = [f"{shown(b.path)}: {b.reason}" for b in bad]
    return [finding("bad_files", "warning", f"{len(bad)} {noun} cannot be used", examples)] if bad else []


def conflicts(rows: Sequence[Row], keys: Sequence[str]) -> list[list[int]]:
    """Sets of rows with the same key (identical pictures or texts) that carry more than one label."""
    sets = same(keys)
    return [members for members in sets if len({rows[i].label for i in members} - {None}) > 1]


def check_conflicts(
    sets: Sequence[Sequence[int]], rows: Sequence[Row], rule: str, noun: str = "pictures"
) -> list[Finding]:
    """What was done with them. Raises RejectedError under the rule ``error``."""
    if not sets:
        return []
    examples = [
        " = ".join(f"{shown(rows[i].path)} ({shown(rows[i].label or '')})" for i in members) for members in sets
    ]
    what = f"{len(sets)} identical {noun} carry different labels"
    if rule == "error":
        raise RejectedError(
            "E3114", f"{what}: {few(examples)}", "mend the labels, or --set data.on_conflict=quarantine"
        )
    done = "quarantined" if rule == "quarantine" else "kept"
    return [finding("conflicts", "warning", f"{what}; {done}", examples)]


def duplicates(rows: Sequence[Row], keys: Sequence[str], noun: str = "pictures") -> list[Finding]:
    """Identical rows inside one split, or in a set that is still to be split (there they stay together)."""
    sets = [[rows[i] for i in members] for members in same(keys)]
    inside = [members for members in sets if len({row.split for row in members}) < len(members)]
    examples = [" = ".join(shown(row.path) for row in members) for members in inside]
    if not inside:
        return []
    return [finding("duplicates", "warning", f"{len(inside)} {noun} occur more than once in a split", examples)]


def check_leakage(
    rows: Sequence[Row], keys: Sequence[str], copies: Sequence[Pair], *, allowed: bool, noun: str = "pictures"
) -> list[Finding]:
    """The same picture, text or group in two given splits. Raises GateFailedError (exit 5) with both paths."""
    pairs = []
    for members in same(keys):
        pairs += _across([rows[i] for i in members], f"is the same {noun[:-1]} as")
    for pair in copies:
        pairs += _across([rows[pair.first], rows[pair.second]], "was saved again as")
    grouped = [[rows[i] for i in of] for of in same((r.group if r.group else (i,)) for i, r in enumerate(rows))]
    groups = [text for of in grouped for text in _across(of, f"shares group {shown(of[0].group or '')} with")[:1]]
    found = []
    for kind, what, texts in (
        ("leakage", f"{noun} are in two splits", pairs),
        ("group_leakage", "groups are in two splits", groups),
    ):
        if texts and not allowed:
            hint = "remove them from one split, or --set data.allow_leakage=true"
            raise GateFailedError("E5101", f"{len(texts)} {what}: {few(texts)}", hint)
        if texts:
            found.append(finding(kind, "warning", f"{len(texts)} {what} (allowed)", texts))
    return found


def _across(members: Sequence[Row], words: str) -> list[str]:
    """Each member against the first one of another split than its own, train first."""
    ordered = sorted(members, key=lambda row: (row.split != "train", row.split or "", row.path))
    first = ordered[0]
    others = [row for row in ordered if row.split not in (first.split, None, "unlabelled") and first.split]
    return [f"{row.split} {shown(row.path)} {words} {first.split} {shown(first.path)}" for row in others]


def near_findings(
    rows: Sequence[Row], pairs: Sequence[Pair], *, cut: bool, noun: str = "pictures", unit: str = "bits"
) -> list[Finding]:
    """Alike, not the same: a warning. ``rows`` carry their final splits."""
    across = [(rows[p.first], rows[p.second], p.distance) for p in pairs if rows[p.first].split != rows[p.second].split]
    if not across:
        return []
    examples = [f"{a.split} {shown(a.path)} ~ {b.split} {shown(b.path)} ({far} {unit})" for a, b, far in across]
    more = f", at least (stopped after {MOST_PAIRS})" if cut else ""
    what = (
        "if they show one part, give it a group" if noun == "pictures" else "if they have one origin, give it a group"
    )
    message = f"{len(across)} pairs of {noun} in two splits look alike{more}; {what}"
    return [finding("near_duplicates", "warning", message, examples)]


def describe_pictures(rows: Sequence[Row], facts: Sequence[Facts]) -> list[Finding]:
    """Conversions, rotations, over-exposure, names that differ by case, groups with several labels."""
    modes = Counter(f.mode for f in facts)
    converted = [shown(r.path) for r, f in zip(rows, facts, strict=True) if f.mode not in ("RGB", "L")]
    rotated = [shown(r.path) for r, f in zip(rows, facts, strict=True) if f.rotated]
    white = [shown(r.path) for r, f in zip(rows, facts, strict=True) if f.clipped > CLIPPED]
    clashes = [" / ".join(shown(name) for name in names) for names in case_collisions([r.path for r in rows])]
    counts = ", ".join(f"{mode} {n}" for mode, n in sorted(modes.items()))
    every = [
        finding("converted", "info", f"converted to RGB (modes: {counts})", converted),
        finding("exif", "info", f"{len(rotated)} pictures have an EXIF orientation", rotated),
        finding("overexposed", "info", f"more than {CLIPPED:.0%} of the pixels are white", white),
        finding(
            "case_collision", "warning", "names that differ by case only do not survive every file system", clashes
        ),
        finding("mixed_groups", "warning", "groups with more than one label", _mixed_groups(rows)),
    ]
    return [f for f in every if f.count]


def case_collisions(paths: Sequence[str]) -> list[list[str]]:
    """Distinct paths that some file systems take for one."""
    sets = same(unicodedata.normalize("NFC", path).casefold() for path in paths)
    named = (sorted({paths[i] for i in members}) for members in sets)
    return [names for names in named if len(names) > 1]


def _mixed_groups(rows: Sequence[Row]) -> list[str]:
    labels: dict[str, set[str]] = {}
    for row in rows:
        if row.group and row.label:
            labels.setdefault(row.group, set()).add(row.label)
    return [f"{shown(group)}: {few(sorted(of))}" for group, of in sorted(labels.items()) if len(of) > 1]


def extent(sizes: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """[width, height] of the smallest and the largest area, and the median of each side; empty without pictures."""
    if not sizes:
        return {}
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    median = np.median(np.array(sizes), axis=0).astype(int).tolist()
    return {"min": list(ordered[0]), "median": median, "max": list(ordered[-1])}


def summary(findings: Sequence[Finding], rows: Sequence[Row], facts: Sequence[Facts], bad: int) -> dict[str, Any]:
    """The content of audit.json."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.split or "all", Counter())[row.label or ""] += 1
    return {
        "findings": [f.model_dump() for f in findings],
        "class_counts": {split: dict(sorted(of.items())) for split, of in sorted(counts.items())},
        "sizes": extent([(f.width, f.height) for f in facts]),
        "modes": dict(sorted(Counter(f.mode for f in facts).items())),
        "exif_rotated": sum(f.rotated for f in facts),
        "bad": bad,
        "pictures": len(facts),
    }
