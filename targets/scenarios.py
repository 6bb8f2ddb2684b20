"""Scenarios beside single-stream, after MLPerf Mobile: offline, fixed-rate and sustained, and what their runs say.

Each function of ``SCENARIOS`` takes a worker that has loaded a model and its inputs; nothing else runs meanwhile.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distilledge.models.errors import DeviceError
from distilledge.targets.devices.base import Device, WorkerHandle
from distilledge.targets.fairness import loaded_elsewhere, machine_flags, warnings_of
from distilledge.targets.lane import ANSWER_SECONDS
from distilledge.targets.measure import Candidate, opened
from distilledge.targets.paired import bootstrapped
from distilledge.targets.protocol import (
    SAMPLES,
    SECONDS,
    SUSTAINED_SECONDS,
    Frames,
    Interval,
    Pass,
    Scenario,
    ScenarioName,
    ScenarioRun,
)
from distilledge.targets.samples import Samples
from distilledge.targets.steady import hottest

PASS_SECONDS = 1.0
THROTTLED = 1.05
"""p50 of a minute over that of the first."""
NEEDS: dict[ScenarioName, str] = {"offline": "block", "fixed-rate": "paced", "sustained": "counters"}
"""What the device's worker must be able to do."""


class Ran(NamedTuple):
    passes: tuple[Pass, ...] = ()
    frames: Frames | None = None
    cpu_ns: int = 0
    """Of fixed-rate, while frames were served."""


def run_scenario(
    candidate: Candidate, device: Device, scenario: Scenario, *, threads: int, inputs: Samples, warmup: int
) -> ScenarioRun:
    """One file in a process of its own. ``threads`` is that of the other scenarios: offline takes all cores.

    Raises ``DeviceError`` where the device's worker cannot do it.
    """
    if candidate.role == "control":
        raise ValueError("the control is scored, not timed")
    used = 0 if scenario.name == "offline" else threads
    with opened(candidate, device, threads=used, inputs=inputs) as lane:
        before = lane.worker.request({"op": "facts"}, ANSWER_SECONDS)
        if NEEDS[scenario.name] not in before.get("operations", ()):
            raise DeviceError(
                "E6060", f"{device.name} cannot run the scenario {scenario.name}", "leave it out of measure.scenarios"
            )
        lane.warm(max(1, warmup))
        ran = SCENARIOS[scenario.name](lane.worker, scenario, lane.typical_ns)
        after = lane.worker.request({"op": "facts"}, ANSWER_SECONDS)
    machine = machine_flags(before["counters"], after["counters"], emulated=before["card"]["emulated"])
    flags = (*_flags(ran, lane.loaded["threads"]), *machine, *warnings_of(before, after))
    run = ScenarioRun(
        name=candidate.name,
        runtime=candidate.exported.runtime,
        precision=candidate.exported.precision,
        role=candidate.role,
        scenario=scenario,
        threads=lane.loaded["threads"],
        runtime_version=lane.loaded["runtime_version"],
        passes=ran.passes,
        frames=ran.frames,
    )
    short = () if reportable(run) else ("SHORT",)
    return run.model_copy(update={"flags": tuple(dict.fromkeys((*flags, *short)))})


def offline(worker: WorkerHandle, scenario: Scenario, typical_ns: int) -> Ran:
    """All samples as fast as possible, one by one: our files take a batch of one."""
    return Ran(tuple(_passes(worker, scenario.lasts, typical_ns, watch=False)))


def sustained(worker: WorkerHandle, scenario: Scenario, typical_ns: int) -> Ran:
    """The same for long, with temperature and frequency along the way."""
    return Ran(tuple(_passes(worker, scenario.lasts, typical_ns, watch=True)))


def fixed_rate(worker: WorkerHandle, scenario: Scenario, typical_ns: int) -> Ran:
    """Frames arrive on an absolute schedule, whatever became of those before: no coordinated omission."""
    period = round(1e9 / scenario.fps)
    n = max(1, math.ceil(scenario.lasts * scenario.fps))
    request = {"op": "paced", "n": n, "period_ns": period, "queue": scenario.queue}
    answer = worker.request(request, ANSWER_SECONDS + n * (max(period, 50 * typical_ns)) / 1e9)
    start, end = zip(*answer["frames"], strict=True)
    return Ran(frames=Frames(period_ns=period, start_ns=start, end_ns=end), cpu_ns=answer["cpu_ns"])


SCENARIOS: dict[ScenarioName, Callable[[WorkerHandle, Scenario, int], Ran]] = {
    "offline": offline,
    "fixed-rate": fixed_rate,
    "sustained": sustained,
}


def _passes(worker: WorkerHandle, seconds: float, typical_ns: int, *, watch: bool) -> list[Pass]:
    passes: list[Pass] = []
    piece = min(PASS_SECONDS, seconds / 10)
    while sum(p.wall_ns for p in passes) < seconds * 1e9:
        n = max(1, round(piece * 1e9 / typical_ns))
        block = worker.request({"op": "block", "n": n}, ANSWER_SECONDS + 50 * n * typical_ns / 1e9)
        counters: dict[str, Any] = {}
        if watch:
            counters = worker.request({"op": "counters"}, ANSWER_SECONDS)["counters"]
        passes.append(
            Pass(
                latency_ns=block["latency_ns"],
                wall_ns=block["wall_ns"],
                cpu_ns=block["cpu_ns"],
                waited_ns=block["waited_ns"],
                hottest_celsius=hottest(counters.get("temperature")),
                slowest_khz=min((counters.get("frequency_khz") or {}).values(), default=None),
            )
        )
        typical_ns = max(1, round(statistics.median(block["latency_ns"])))
    return passes


def _flags(ran: Ran, threads: int) -> tuple[str, ...]:
    if ran.frames is not None:
        served = [(s, e) for s, e in zip(ran.frames.start_ns, ran.frames.end_ns, strict=True) if s >= 0]
        loaded = loaded_elsewhere(ran.cpu_ns, sum(e - s for s, e in served), None, threads)
    else:
        waits = [p.waited_ns for p in ran.passes if p.waited_ns is not None]
        wall, cpu = sum(p.wall_ns for p in ran.passes), sum(p.cpu_ns for p in ran.passes)
        loaded = loaded_elsewhere(cpu, wall, sum(waits) if waits else None, threads)
    return ("OTHER_LOAD",) if loaded else ()


# --- what a run says -------------------------------------------------------------------------------------------------


def reportable(run: ScenarioRun) -> bool:
    """At least 1,024 samples and 60 s; sustained 10 minutes."""
    if run.frames is not None:
        count, seconds = len(run.frames.start_ns), len(run.frames.start_ns) * run.frames.period_ns / 1e9
    else:
        count, seconds = sum(len(p.latency_ns) for p in run.passes), sum(p.wall_ns for p in run.passes) / 1e9
    return count >= SAMPLES and seconds >= (SUSTAINED_SECONDS if run.scenario.name == "sustained" else SECONDS) - 0.1


def throughput(passes: Sequence[Pass]) -> Interval:
    """Inferences per second of the median pass, by a bootstrap over passes."""
    return bootstrapped([np.array([len(p.latency_ns) / p.wall_ns * 1e9 for p in passes])])


class FrameFigures(NamedTuple):
    """Latency from the scheduled arrival, milliseconds, of the frames that were served (None: none was)."""

    frames: int
    dropped: int
    late: int
    """Served, but behind the deadline."""
    longest_queue: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @property
    def missed(self) -> float:
        """Share of all frames that were late or dropped."""
        return (self.late + self.dropped) / self.frames


def frame_figures(frames: Frames, deadline_ms: float | None = None) -> FrameFigures:
    """``deadline_ms`` None: the period. The queue is that which an arriving frame finds, frames not yet begun."""
    start, end = np.array(frames.start_ns, np.int64), np.array(frames.end_ns, np.int64)
    arrival = np.arange(len(start)) * frames.period_ns
    served = start >= 0
    latency = (end - arrival)[served] / 1e6
    limit = frames.period_ns / 1e6 if deadline_ms is None else deadline_ms
    begun = np.searchsorted(start[served], arrival, side="right")  # of those served, begun at each arrival
    accepted: npt.NDArray[np.int64] = np.cumsum(served) - served.astype(np.int64)  # of those served, arrived before
    queue: npt.NDArray[np.int64] = np.maximum(0, accepted - begun)
    nearest = (
        [float(np.quantile(latency, q, method="inverted_cdf")) for q in (0.5, 0.9, 0.99, 1)] if latency.size else []
    )
    p50, p90, p99, most = nearest or (None, None, None, None)
    return FrameFigures(
        frames=len(start),
        dropped=int((~served).sum()),
        late=int((latency > limit).sum()),
        longest_queue=int(queue.max(initial=0)),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if len(latency) >= 1000 else None,
        max_ms=most,
    )


class Minute(NamedTuple):
    per_second: float
    p50_ns: float
    hottest_celsius: float | None
    slowest_khz: int | None


class SustainedFigures(NamedTuple):
    minutes: tuple[Minute, ...]
    retention: float | None
    """Throughput of the last minute over that of the first; None below two whole minutes."""
    throttled_after_seconds: float | None
    """Begin of the first minute whose p50 is more than 5 % above the first's; None: there was none."""


def sustained_figures(passes: Sequence[Pass], minute_seconds: float) -> SustainedFigures:
    """Whole minutes of timed time; a rest of less than half a minute is left out."""
    groups: list[list[Pass]] = []
    elapsed = 0.0
    for one in passes:
        while len(groups) <= int(elapsed // (minute_seconds * 1e9)):
            groups.append([])
        groups[-1].append(one)
        elapsed += one.wall_ns
    if len(groups) > 1 and sum(p.wall_ns for p in groups[-1]) < minute_seconds * 0.5e9:
        groups.pop()
    minutes = tuple(_minute(g) for g in groups if g)
    first = minutes[0]
    slow = next((i for i, m in enumerate(minutes) if m.p50_ns > THROTTLED * first.p50_ns), None)
    retention = minutes[-1].per_second / first.per_second if len(minutes) > 1 else None
    return SustainedFigures(minutes, retention, None if slow is None else slow * minute_seconds)


def _minute(passes: Sequence[Pass]) -> Minute:
    latency = [ns for p in passes for ns in p.latency_ns]
    heat = [p.hottest_celsius for p in passes if p.hottest_celsius is not None]
    clocks = [p.slowest_khz for p in passes if p.slowest_khz is not None]
    return Minute(
        per_second=len(latency) / sum(p.wall_ns for p in passes) * 1e9,
        p50_ns=statistics.median(latency),
        hottest_celsius=max(heat, default=None),
        slowest_khz=min(clocks, default=None),
    )
