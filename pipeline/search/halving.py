"""Successive halving and the Pareto front, as pure logic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from distilledge.models.base import Value

K = TypeVar("K")


class Judged(Value):
    """A student at the end of a round, by the curves of its training on the validation split."""

    epochs: int
    """Run by then, of the whole schedule."""
    metric: float
    """Of the kept epoch, a fraction."""
    loss: float
    """Of the same epoch."""


class Corner(NamedTuple):
    """What a file is compared by."""

    metric: float
    p50_ms: float
    size_mb: float


def schedule(epochs: int, rounds: int, eta: int) -> tuple[int, ...]:
    """Epochs trained at the end of each round, rising; the last is ``epochs``. Equal ones are one round.

    Jamieson & Talwalkar (2016), algorithm 1, with budgets that grow by ``eta`` from round to round.
    """
    return tuple(sorted({max(1, math.ceil(epochs / eta ** (rounds - 1 - k))) for k in range(rounds)}))


def survivors(judged: Mapping[K, Judged], eta: int) -> tuple[K, ...]:
    """The better 1/eta, rounded up, best first: by the metric, then by the loss, then in the order given."""
    order = sorted(judged, key=lambda one: (-judged[one].metric, judged[one].loss))
    return tuple(order[: math.ceil(len(order) / eta)])


def front(corners: Sequence[Corner]) -> tuple[int, ...]:
    """Indices of those that no other is at least as good as in everything, and better in something."""
    return tuple(i for i, one in enumerate(corners) if not any(beats(other, one) for other in corners))


def beats(one: Corner, other: Corner) -> bool:
    """Whether ``one`` dominates ``other``."""
    no_worse = one.metric >= other.metric and one.p50_ms <= other.p50_ms and one.size_mb <= other.size_mb
    return no_worse and one != other
