"""Who trains, who is asked: splits that respect groups and classes, and the calibration set.

Order comes from hashes of (seed, name), so it depends neither on the order of the listing nor on other pictures.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.data.listing import Finding, closest, counted, few, shown
from distilledge.pipeline.recipe import SplitFractions
from distilledge.pipeline.record import Split

PARTS: tuple[Split, ...] = ("train", "validation", "test")

FEW_CALIBRATION, LEAST_CALIBRATION = 100, 8
"""Pictures for static int8: below the first a warning, below the second an error."""


def fractions_of(given: set[Split], wanted: SplitFractions) -> dict[Split, float]:
    """Shares of the splits that train is cut into: itself and those which the data does not bring.

    Empty where nothing has to be cut. Raises UsageError where a share that is needed is zero.
    """
    if given >= set(PARTS):
        return {}
    missing = [part for part in PARTS if part == "train" or part not in given]
    shares: dict[Split, float] = {part: getattr(wanted, part) for part in missing}
    for part, share in shares.items():
        if share <= 0:
            raise UsageError("E2101", f"data.splits.{part} is 0", f"--set data.splits.{part}=0.15")
    return {part: share / sum(shares.values()) for part, share in shares.items()}


def assign(labels: Sequence[str], groups: Sequence[str], fractions: dict[Split, float], seed: int) -> list[Split]:
    """A split for each picture: groups stay whole, classes keep their shares, and are in each split if they can.

    Classes are dealt from the rarest on; in each, larger groups first, each to the split that lacks most.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    of_class: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        of_class[label].add(group)
    totals = Counter(labels)
    lacking = {part: _target(totals, part, fractions) for part in fractions}
    present: set[tuple[Split, str]] = set()
    result: dict[str, Split] = {}
    for label in sorted(totals, key=lambda name: (totals[name], name)):
        order = sorted(of_class[label] - result.keys(), key=lambda group: (-len(members[group]), _draw(seed, group)))
        for left, group in zip(range(len(order), 0, -1), order, strict=True):
            without = [part for part in fractions if (part, label) not in present]
            choices = without if left <= len(without) else list(fractions)
            inside = Counter(labels[i] for i in members[group])
            part = max(choices, key=lambda p: sum(n * lacking[p][c] / totals[c] for c, n in inside.items()))
            result[group] = part
            lacking[part].subtract(inside)
            present |= {(part, c) for c in inside}
    return [result[group] for group in groups]


def _target(totals: Counter[str], part: Split, fractions: dict[Split, float]) -> Counter[str]:
    """Pictures of each class that ``part`` should get: at least one, and train what the others leave."""
    others = {p: {c: max(1, round(n * f)) for c, n in totals.items()} for p, f in fractions.items() if p != "train"}
    if part != "train":
        return Counter(others[part])
    return Counter({c: n - sum(other[c] for other in others.values()) for c, n in totals.items()})


def _draw(seed: int, *names: str) -> bytes:
    text = "\0".join((str(seed), *names))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def check_classes(
    labels: Sequence[str],
    splits: Sequence[Split | None],
    places: Sequence[str],
    source: str,
    noun: str = "pictures",
) -> None:
    """At least two classes, and none that train lacks. ``places``: where each label stands.

    Raises RejectedError with the place and the closest class.
    """
    known = {c for c, split in zip(labels, splits, strict=True) if split in (None, "train")}
    for label, split, where in zip(labels, splits, places, strict=True):
        if known and label not in known:
            near = closest(label, known)
            hint = f"did you mean {near}" if near else f"classes of train: {few(sorted(known), 12)}"
            raise RejectedError("E3108", f"unknown label {shown(label)!r} in {split}, absent from train: {where}", hint)
    if not known:
        raise RejectedError("E3104", f"no train {noun}: {source}", "give a train split, or no split at all")
    if len(known) < 2:
        raise RejectedError("E3104", f"only one class ({counted(Counter(labels))}): {source}", "add a second class")


def check_coverage(labels: Sequence[str], splits: Sequence[Split], source: str, noun: str = "pictures") -> None:
    """Every class is in every split. Raises RejectedError that names what is missing."""
    seen = set(zip(splits, labels, strict=True))
    classes = sorted(set(labels))
    for part in PARTS:
        absent = [name for name in classes if (part, name) not in seen]
        if absent:
            near = next((c for name in absent if (c := closest(name, set(classes) - {name}))), None)
            hint = f"is {absent[0]!r} a misspelt {near!r}?" if near else f"add {noun} of other parts (groups)"
            counts = counted(Counter(c for c in labels if c in absent))
            raise RejectedError(
                "E3108", f"{part} has no {noun[:-1]} of {few(absent)} (in all: {counts}): {source}", hint
            )


def calibration(
    paths: Sequence[str], labels: Sequence[str], groups: Sequence[str], wanted: int, seed: int, noun: str = "pictures"
) -> tuple[set[int], list[Finding]]:
    """Indices of train pictures or texts for static int8: classes take turns, and within a class its groups do.

    Takes at least one picture of each class. Raises RejectedError below ``LEAST_CALIBRATION``.
    """
    queues: dict[str, list[tuple[int, int]]] = defaultdict(list)  # class -> (turn, index)
    turns: Counter[tuple[str, str]] = Counter()
    for index in sorted(range(len(paths)), key=lambda i: _draw(seed, "calibration", paths[i])):
        queues[labels[index]].append((turns[labels[index], groups[index]], index))
        turns[labels[index], groups[index]] += 1
    order = [
        (rank, label, index)
        for label, queue in queues.items()
        for rank, (_, index) in enumerate(sorted(queue, key=lambda item: item[0]))
    ]
    chosen = {index for _, _, index in sorted(order)[: max(wanted, len(queues))]}
    return chosen, _calibration_findings(len(chosen), wanted, noun)


def _calibration_findings(count: int, wanted: int, noun: str) -> list[Finding]:
    if count < LEAST_CALIBRATION:
        what = f"{count} {noun} for calibration; static int8 needs at least {LEAST_CALIBRATION}"
        raise RejectedError("E3109", what, f"--set data.calibration={FEW_CALIBRATION}, or add train {noun}")
    if count < min(wanted, FEW_CALIBRATION) or count < FEW_CALIBRATION:
        what = f"{count} {noun} for calibration ({wanted} asked); below {FEW_CALIBRATION}, int8 ranges are uncertain"
        return [Finding(kind="calibration", severity="warning", count=count, message=what)]
    return [Finding(kind="calibration", severity="info", count=count, message=f"{count} {noun}, of every class")]
