"""Energy of one inference: what the device draws while it infers, less what it draws while it idles, over the number.

The scatter from round to round and the coarseness of the counter make the interval; one that holds zero resolves
nothing, and no figure is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distilledge.targets.devices.base import Device, Message
from distilledge.targets.lane import ANSWER_SECONDS
from distilledge.targets.measure import Candidate, opened
from distilledge.targets.protocol import Energy, Interval
from distilledge.targets.samples import Samples

ROUNDS = 5
LEAST_STEPS = 10
"""Changes of a counter within a phase, below which it is too coarse."""
T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 29: 2.045}
"""Degrees of freedom -> the 97.5 % point of Student's t; between two entries the wider counts."""
Readings = Sequence[Sequence[float]]
"""(nanoseconds, joules or watts) in the order of time."""


def measure_energy(
    candidate: Candidate, device: Device, *, seconds: float, threads: int, inputs: Samples, warmup: int
) -> Energy:
    """Five rounds of ``seconds`` idle and ``seconds`` of inferences, on the device."""
    with opened(candidate, device, threads=threads, inputs=inputs) as lane:
        operations = lane.worker.request({"op": "facts"}, ANSWER_SECONDS).get("operations", ())
        if "energy" not in operations:
            return _unresolved(candidate.name, None, f"{device.name} cannot read a counter")
        lane.warm(max(1, warmup))
        timeout = ANSWER_SECONDS + ROUNDS * (2 * seconds + 50 * lane.typical_ns / 1e9)
        answer = lane.worker.request({"op": "energy", "rounds": ROUNDS, "seconds": seconds}, timeout)
    return energy_of(candidate.name, answer)


def energy_of(name: str, answer: Message) -> Energy:
    """What the worker's readings say."""
    if answer["source"] is None:
        return _unresolved(name, None, answer["reason"])
    joules = answer["kind"] == "joules"
    rounds = [r for r in answer["rounds"] if all(len(r[phase]) > 2 for phase in ("idle", "busy")) and r["n"]]
    if len(rounds) < 2:
        return _unresolved(name, answer["source"], "the counter could not be read in time")
    idle = [mean_watts(r["idle"], joules=joules) for r in rounds]
    busy = [mean_watts(r["busy"], joules=joules) for r in rounds]
    powers = {"idle_watts": statistics.mean(idle), "busy_watts": statistics.mean(busy), "rounds": len(rounds)}
    if min(steps(r[phase]) for r in rounds for phase in ("idle", "busy")) < LEAST_STEPS and joules:
        why = f"the counter moved fewer than {LEAST_STEPS} times in a phase: too coarse"
        return _unresolved(name, answer["source"], why).model_copy(update=powers)
    each = [(b - i) * r["busy_ns"] / 1e9 / r["n"] for b, i, r in zip(busy, idle, rounds, strict=True)]
    half = t_95(len(each) - 1) * math.sqrt(statistics.variance(each) / len(each) + _coarseness(rounds, joules) ** 2)
    value = statistics.mean(each)
    found = Interval(value=value, low=value - half, high=value + half)
    if found.low <= 0:
        why = f"cannot be resolved: {1e3 * value:.3g} mJ, 95 % interval {1e3 * found.low:.3g} to {1e3 * found.high:.3g}"
        return _unresolved(name, answer["source"], why).model_copy(update=powers)
    return Energy(name=name, source=answer["source"], joules=found, reason="", **powers)


def mean_watts(readings: Readings, *, joules: bool) -> float:
    """Of a counter its growth over the time; of powers their mean over time, by trapezoids."""
    table = np.array(readings, np.float64)
    seconds, values = (table[:, 0] - table[0, 0]) / 1e9, table[:, 1]
    if joules:
        return float((values[-1] - values[0]) / seconds[-1])
    return float(((values[1:] + values[:-1]) / 2 * np.diff(seconds)).sum() / seconds[-1])


def steps(readings: Readings) -> int:
    """How often the value changed."""
    return sum(a[1] != b[1] for a, b in pairwise(readings))


def t_95(freedom: int) -> float:
    return T_95[max(f for f in T_95 if f <= freedom)]


def _coarseness(rounds: Sequence[Mapping[str, Any]], joules: bool) -> float:
    """Standard error, joules per inference, of a counter with steps of q: q / sqrt(3) for busy less idle."""
    if not joules:
        return 0.0
    steps_j = [b[1] - a[1] for r in rounds for a, b in pairwise(r["busy"]) if b[1] > a[1]]
    quantum: float = min(steps_j, default=0.0)
    each = [quantum / math.sqrt(3) / float(r["n"]) for r in rounds]
    return statistics.mean(each) / math.sqrt(len(rounds))


def _unresolved(name: str, source: str | None, reason: str) -> Energy:
    return Energy(
        name=name, source=source, joules=None, idle_watts=None, busy_watts=None, rounds=0, reason=reason or "no counter"
    )
