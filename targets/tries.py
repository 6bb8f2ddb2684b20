"""Whole measurements repeated: do they agree, and does the ratio to the teacher?"""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.targets.base import Measurement
from distilledge.targets.measure import mark_slow_int8, p50
from distilledge.targets.paired import paired_ratio
from distilledge.targets.protocol import Interval, Tries

MAX_SPREAD = 1.05


def joined(tries: Sequence[tuple[Measurement, ...]]) -> tuple[Measurement, ...]:
    """One measurement of each file with the launches of all tries and every flag that one of them had."""
    made = []
    for same in zip(*tries, strict=True):
        launches = tuple(launch for m in same for launch in m.launches)
        flags = tuple(dict.fromkeys(flag for m in same for flag in m.flags))
        made.append(same[0].model_copy(update={"launches": launches, "flags": flags}))
    return mark_slow_int8(made)


def compare_tries(tries: Sequence[tuple[Measurement, ...]], *, seed: int = 0) -> tuple[Tries, ...]:
    """One record for each file; the order of the files is that of every try."""
    teacher = next((i for i, m in enumerate(tries[0]) if m.role == "teacher" and m.precision == "fp32"), None)
    made = []
    for number, same in enumerate(zip(*tries, strict=True)):
        medians = tuple(p50(m) for m in same)
        others = () if teacher in (None, number) else tuple(t[teacher] for t in tries if teacher is not None)
        ratios = [ratio(m, t, seed=seed) for m, t in zip(same, others, strict=bool(others))]
        spread = max(medians) / min(medians)
        made.append(
            Tries(
                name=same[0].name,
                threads=same[0].threads,
                length=same[0].length,
                p50_ns=medians,
                to_teacher=tuple(r for r in ratios if r is not None),
                spread=spread,
                replicable=spread <= MAX_SPREAD,
            )
        )
    return tuple(made)


def ratio(numerator: Measurement, denominator: Measurement, *, seed: int = 0) -> Interval | None:
    """Latency of one over that of another which was timed beside it."""
    return paired_ratio(
        [launch.latency_ns for launch in numerator.launches],
        [launch.latency_ns for launch in denominator.launches],
        seed=seed,
    )
