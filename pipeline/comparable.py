"""Which files of two results belong together, and which may not be compared.

Refused is what would compare apples with pears: another scenario, device, input, number of threads, precision, or
labelled data. Flagged timings are kept but not compared, unless asked; then they decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.result_file import Item, Result
from distilledge.targets import fairness

NOT_COMPARED = (*fairness.NOT_COMPARED, "DRIFT", "NOISE")
"""Flags of timings that say something of the moment and not of the file."""
SAME_DEVICE = ("cpu_model", "machine", "cpu_count", "board", "emulated")
JUDGED = ("candidate", "student")


class Named(NamedTuple):
    """A result with what it is called."""

    name: str
    result: Result


class Pair(NamedTuple):
    """A file of the new result and the same of the baseline; either may be missing."""

    new: Item | None
    old: Item | None

    @property
    def item(self) -> Item:
        found = self.new or self.old
        assert found is not None
        return found


def _key(item: Item) -> tuple[str, str, int | None, int | None]:
    return (
        item.name,
        item.device,
        item.timing.threads if item.timing else None,
        item.input.length if item.input else None,
    )


def within(result: Result) -> list[Pair]:
    """Each candidate with the baseline of the same device."""
    baselines = {item.device: item for item in result.items if item.role == "baseline"}
    return [Pair(item, baselines.get(item.device)) for item in result.items if item.role in JUDGED]


def across(first: Named, new: Named, baselines: dict[str, Named]) -> list[Pair]:
    news = [item for item in new.result.items if item.role in JUDGED]
    devices = dict.fromkeys(item.device for item in news)
    olds = [i for d in devices for i in baselines.get(d, first).result.items if i.device == d and i.role in JUDGED]
    pairs = [Pair(item, match(item, news, olds)) for item in news]
    taken = {_key(p.old) for p in pairs if p.old}
    return pairs + [Pair(None, item) for item in olds if _key(item) not in taken]


def match(item: Item, news: Sequence[Item], olds: Sequence[Item]) -> Item | None:
    """The same file of another result: by name, or the only one of its device where both have only one."""
    found = next((old for old in olds if _key(old) == _key(item)), None)
    alone = [[i for i in items if i.device == item.device] for items in (news, olds)]
    return alone[1][0] if found is None and [len(a) for a in alone] == [1, 1] else found


def refuse(old: Named, new: Named, pairs: Sequence[Pair], baselines: dict[str, Named], *, alone: bool) -> None:
    """Raise ``UsageError`` with all reasons why they cannot be compared. ``alone``: one result, with its baseline."""
    if alone and pairs and not any(p.old for p in pairs):
        hint = "give two results, or measure with --baseline FILE"
        raise UsageError("E2071", f"one result without a baseline in it: {new.name}", hint)
    reasons = [] if alone else list(differences(old.result, new.result, pairs, baselines))
    if not any(p.new for p in pairs):
        reasons.append("there is no file to judge in it")
    elif not any(p.new and p.old for p in pairs) and not {i.device for i in old.result.items} & set(new.result.devices):
        reasons.append(f"device: {', '.join(old.result.devices)}; {', '.join(new.result.devices)}")
    if reasons:
        lines = "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons))
        hint = "measure both under the same conditions"
        raise UsageError("E2072", f"{old.name} and {new.name} cannot be compared:{lines}", hint)


def differences(old: Result, new: Result, pairs: Sequence[Pair], baselines: dict[str, Named]) -> Iterator[str]:
    """Why two results cannot be compared, in words."""
    if old.scenario != new.scenario:
        yield f"scenario: {old.scenario}, {new.scenario}"
    for device in {p.new.device: 0 for p in pairs if p.new and p.old}:
        cards = (baselines[device].result if device in baselines else old).devices.get(device, {}), new.devices[device]
        for field in SAME_DEVICE:
            if cards[0].get(field) != cards[1].get(field):
                yield f"device {device}: {field}: {cards[0].get(field)}, {cards[1].get(field)}"
    for one, other in ((p.new, p.old) for p in pairs):
        if one and other:
            yield from (f"{one.name} on {one.device}: {reason}" for reason in unlike(other, one))


def unlike(old: Item, new: Item) -> Iterator[str]:
    """What differs of how two files were run."""
    if old.file.runtime != new.file.runtime:
        yield f"runtime: {old.file.runtime}, {new.file.runtime}"
    if old.file.precision != new.file.precision:
        yield f"precision: {old.file.precision}, {new.file.precision}"
    if old.timing and new.timing:
        for field in ("execution_precision", "threads", "batch"):
            if getattr(old.timing, field) != getattr(new.timing, field):
                yield f"{field.replace('_', ' ')}: {getattr(old.timing, field)}, {getattr(new.timing, field)}"
    if old.input and new.input:
        if old.input.shape != new.input.shape or old.input.length != new.input.length:
            yield f"input shape: {_shapes(old)}, {_shapes(new)}"
        elif old.input.sha256 != new.input.sha256:
            yield f"input data: sha256 {old.input.sha256[:12]}, {new.input.sha256[:12]}"
    if old.accuracy and new.accuracy:
        if old.accuracy.metric != new.accuracy.metric:
            yield f"metric: {old.accuracy.metric}, {new.accuracy.metric}"
        if old.accuracy.data_sha256 != new.accuracy.data_sha256:
            yield f"labelled data: sha256 {old.accuracy.data_sha256[:12]}, {new.accuracy.data_sha256[:12]}"


def _shapes(item: Item) -> str:
    assert item.input is not None
    length = f" of {item.input.length} tokens" if item.input.length else ""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in item.input.shape.items()) + length


def flags_of(*items: Item | None) -> tuple[str, ...]:
    """Flags for which timings are not compared."""
    found = [flag for item in items if item and item.timing for flag in item.timing.flags if flag in NOT_COMPARED]
    return tuple(dict.fromkeys(found))


def refuse_flagged(new: Named, pairs: Sequence[Pair], *, allowed: bool) -> None:
    flagged = [f"{p.item.name} on {p.item.device}: {' '.join(flags_of(*p))}" for p in pairs if flags_of(*p)]
    if flagged and not allowed:
        lines = "".join(f"\n  {line}" for line in dict.fromkeys(flagged))
        hint = "measure again on an idle, cool device; --allow-flagged shows them, but never as passed"
        raise RejectedError("E3058", f"flagged results are kept but not compared: {new.name}:{lines}", hint)
