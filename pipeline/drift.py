"""Slow drift over releases, which no comparison of two of them shows: the CUSUM of Page (1954)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SLACK = 0.5
"""k, in standard deviations: half of the shift of one that is looked for (Page 1954)."""
LIMIT = 5.0
"""h, in standard deviations: with k of 0.5, a false alarm in about 930 releases (Siegmund's approximation)."""


class Cusum(NamedTuple):
    sums: tuple[float, ...]
    alarm: int | None
    """Index of the first value at which the sum passes the limit."""


def cusum(shifts: Sequence[float], *, slack: float = SLACK, limit: float = LIMIT) -> Cusum:
    """S_i = max(0, S_{i-1} + x_i - k), an alarm where S_i > h (Page 1954, Biometrika 41, section 2, one-sided).

    ``shifts``: how far each release lies from the baseline, in standard deviations; more is worse.
    """
    sums: list[float] = []
    for shift in shifts:
        sums.append(max(0.0, (sums[-1] if sums else 0.0) + shift - slack))
    return Cusum(tuple(sums), next((i for i, value in enumerate(sums) if value > limit), None))


def latency_shifts(baseline: float, values: Sequence[float], sigma_percent: float) -> list[float]:
    """Log ratios to the baseline, so that x2 and x0.5 weigh alike, in units of ``sigma_percent``."""
    return [100 * math.log(value / baseline) / sigma_percent for value in values]


def accuracy_shifts(baseline: float, values: Sequence[float], sigma_points: float) -> list[float]:
    """Points lost against the baseline; ``values`` are fractions."""
    return [100 * (baseline - value) / sigma_points for value in values]
