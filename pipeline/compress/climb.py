"""The stop rule of the ladder, as pure logic: when to stop, which candidate to ship."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from distilledge.pipeline.compress.ledger import Outcome, Tried
from distilledge.pipeline.record import Check
from distilledge.targets.base import STATIC, Precision

A = TypeVar("A")

INT8: tuple[Precision, ...] = (*STATIC, "w8dyn")
"""Precisions that compute in integers."""


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """``fails`` where a check does, or where it is inconclusive with its value beyond the limit."""
    beyond = [c for c in checks if c.limit is not None and c.value > c.limit]
    if beyond or any(c.outcome == "fails" for c in checks):
        return "fails"
    return "undecided" if any(c.outcome == "inconclusive" for c in checks) else "holds"


def settles(tried: Tried, min_agreement: float) -> bool:
    """Whether to stop here: the budget holds, or what is left cannot be told apart on so few pictures."""
    return tried.outcome == "holds" or (tried.outcome == "undecided" and tried.agreement >= min_agreement)


def climb(attempts: Iterable[A], judge: Callable[[A], Tried], *, min_agreement: float) -> tuple[Tried, ...]:
    """Judge one attempt after another, made one at a time, until one settles it."""
    tried: list[Tried] = []
    for attempt in attempts:
        found = judge(attempt)
        tried.append(found.model_copy(update={"gained": found.agreement - tried[0].agreement} if tried else {}))
        if settles(found, min_agreement):
            break
    return tuple(tried)


def choose(tried: Sequence[Tried]) -> int:
    """The first that holds; else of the undecided the one nearest to fp32; else the best of those that fail.

    Among equals of that kind, int8 arithmetic goes before weights only, and what is faster than float before the rest.
    One that fails is shipped for the gate to judge on the test split, and says so in the ledger; a collapsed one last.
    """
    ranks: dict[Outcome, int] = {"holds": 0, "undecided": 1, "fails": 2}

    def key(index: int) -> tuple[float, ...]:
        one = tried[index]
        if one.outcome == "holds":
            return (0, index)
        slow = one.p50_ratio is not None and one.p50_ratio.value > 1
        kind = (one.answers < 2, one.precision not in INT8, slow)
        return (ranks[one.outcome], *kind, -one.agreement, one.drop.value, index)

    return min(range(len(tried)), key=key)
