"""Was a measurement fair? Flags from CPU time, waiting, drift, spread, swapping, and counters of heat and power.

A flagged result is kept. With a flag of ``NOT_COMPARED`` no limit is decided by it and no file is called slower.

Why these: under other load the CPU time of an inference stays while its wall time grows (measured: 10.8 against 66.8
ms with three busy loops), so the share of CPU time and the kernel's own count of waiting show the cause; loads and
pressure averages do not size it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from distilledge.targets.base import Launch
from distilledge.targets.protocol import SAMPLES, SECONDS

MIN_CPU_SHARE = 0.97
"""CPU time over wall time of a single-threaded run."""
MAX_WAIT_SHARE = 0.01
"""Time ready to run but without a CPU, over wall time."""
MAX_STEAL_SHARE = 0.01
"""Of all ticks of the machine."""
MAX_DRIFT = 1.05
"""Median of the last third over that of the first."""
MAX_SPREAD = 1.2
"""p90 over the median."""
NOT_COMPARED = ("OTHER_LOAD", "THROTTLED", "TEST01", "TEST04")
"""Flags of figures that are compared with no other, also not with one that was timed in turn with them."""
SLOWING = ("OTHER_LOAD", "THROTTLED")
"""Flags of what can only make a file slower: a limit that holds all the same holds."""
ABSOLUTE = (*NOT_COMPARED, "CLOCK")
"""Flags of figures that decide no limit. A clock that moves leaves files that take turns comparable: on an idle virtual
machine the fixed loop took up to 1.35 times its shortest time within seconds, the ratio of two such files moved by 1.09
over five tries."""
CLOCK_MARGIN = 2.0
"""A limit so many times away is decided whatever the clock did."""
COUNTERS = ("throttle_count", "cooling_state", "cgroup_throttled", "thermal_status")
"""Of ``ondevice.facts.counters``: growing means throttled."""


def fairness_flags(launches: Sequence[Launch], *, threads: int) -> tuple[str, ...]:
    """``OTHER_LOAD``, ``DRIFT``, ``NOISE``, ``SWAPPED``, in this order."""
    latency_ns = list(chain.from_iterable(launch.latency_ns for launch in launches))
    tests = {
        "OTHER_LOAD": other_load(launches, threads),
        "DRIFT": drifts(latency_ns),
        "NOISE": noisy(latency_ns),
        "SWAPPED": any(launch.major_faults for launch in launches),
    }
    return tuple(flag for flag, holds in tests.items() if holds)


def short(launches: Sequence[Launch]) -> tuple[str, ...]:
    """``SHORT``: fewer than 1,024 samples or 60 s are no reportable figure (MLPerf Mobile)."""
    samples = sum(len(launch.latency_ns) for launch in launches)
    seconds = sum(launch.wall_ns for launch in launches) / 1e9
    return ("SHORT",) if samples < SAMPLES or seconds < SECONDS else ()


def not_compared(flags: Sequence[str]) -> tuple[str, ...]:
    """The flags that forbid comparing a figure; empty where it may be compared."""
    return tuple(flag for flag in NOT_COMPARED if flag in flags)


def doubts(flags: Sequence[str], low: float, high: float, limit: float) -> tuple[str, ...]:
    """The flags for which a figure with this interval cannot decide whether it keeps below ``limit``."""
    far = high * CLOCK_MARGIN <= limit or low >= CLOCK_MARGIN * limit
    harmless = {*(SLOWING if high <= limit else ()), *(("CLOCK",) if far else ())}
    return tuple(flag for flag in ABSOLUTE if flag in flags and flag not in harmless)


def warnings_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """``GOVERNOR`` (not performance), ``BATTERY``, ``SWAP_IN`` (somewhere on the machine). Of the worker's facts."""
    counters = before.get("counters", {}), after.get("counters", {})
    tests = {
        "GOVERNOR": (before.get("card") or {}).get("governor") not in (None, "performance"),
        "BATTERY": any(c.get("on_battery") for c in counters),
        "SWAP_IN": _change(*counters, "swapped_in") > 0,
    }
    return tuple(flag for flag, holds in tests.items() if holds)


def undisturbed(launches: Sequence[Launch]) -> list[int] | None:
    """Latencies of the inferences in which nothing else ran; None where that was not seen."""
    if any(launch.disturbed is None for launch in launches):
        return None
    left = []
    for launch in launches:
        disturbed = set(launch.disturbed or ())
        left += [ns for i, ns in enumerate(launch.latency_ns) if i not in disturbed]
    return left


def machine_flags(before: Mapping[str, Any], after: Mapping[str, Any], *, emulated: bool) -> tuple[str, ...]:
    """``OTHER_LOAD`` (the hypervisor took time), ``THROTTLED``, ``EMULATED``, for all that was measured in between."""
    tests = {"OTHER_LOAD": stolen(before, after), "THROTTLED": throttled(before, after), "EMULATED": emulated}
    return tuple(flag for flag, holds in tests.items() if holds)


def stolen(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    ticks = _change(before, after, "all_ticks")
    return ticks > 0 and _change(before, after, "steal_ticks") > MAX_STEAL_SHARE * ticks


def other_load(launches: Sequence[Launch], threads: int) -> bool:
    wall = sum(launch.wall_ns for launch in launches)
    waits = [launch.waited_ns for launch in launches if launch.waited_ns is not None]
    spent = [launch.cpu_ns for launch in launches if launch.cpu_ns is not None]
    cpu = sum(spent) if len(spent) == len(launches) else None
    return loaded_elsewhere(cpu, wall, sum(waits) if waits else None, threads)


def loaded_elsewhere(cpu_ns: int | None, wall_ns: int, waited_ns: int | None, threads: int) -> bool:
    """What is None says nothing."""
    waited = waited_ns is not None and waited_ns > MAX_WAIT_SHARE * wall_ns
    return waited or (threads == 1 and cpu_ns is not None and cpu_ns < MIN_CPU_SHARE * wall_ns)


def drifts(latency_ns: Sequence[int]) -> bool:
    """False below 30 samples, where a third says nothing."""
    third = len(latency_ns) // 3
    if third < 10:
        return False
    return statistics.median(latency_ns[-third:]) > MAX_DRIFT * statistics.median(latency_ns[:third])


def noisy(latency_ns: Sequence[int]) -> bool:
    """False below 30 samples."""
    if len(latency_ns) < 30:
        return False
    return statistics.quantiles(latency_ns, n=10)[-1] > MAX_SPREAD * statistics.median(latency_ns)


def throttled(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """A throttle counter grew, cooling set in, or the frequency limit fell. What cannot be read says nothing."""
    grew = any(_change(before, after, name) > 0 for name in COUNTERS)
    raspberry = before.get("raspberry_throttled") != after.get("raspberry_throttled")
    return grew or raspberry or _change(before, after, "scaling_max_khz") < 0


def _change(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> int:
    old, new = before.get(name), after.get(name)
    return 0 if old is None or new is None else int(new) - int(old)
