"""The vocabulary of the measurement protocol: scenarios, audits, energy, whole measurements that are repeated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.targets.base import Precision, RuntimeName

ScenarioName = Literal["offline", "fixed-rate", "sustained"]
Seconds = Annotated[float, Field(ge=0)]
More = Annotated[float, Field(gt=0)]
AuditName = Literal["TEST01", "TEST04"]
AuditOutcome = Literal["passes", "fails", "undecided"]
SAMPLES, SECONDS = 1024, 60.0
"""Of a reportable figure at least (MLPerf Mobile)."""
SUSTAINED_SECONDS = 600.0


class Scenario(Value):
    """How inferences are asked for, beside single-stream, which is always measured."""

    name: ScenarioName = "offline"
    """``offline``: as fast as possible on all cores. ``fixed-rate``: frames of a camera. ``sustained``: heat."""
    seconds: More | None = None
    """How long; not given: 60, sustained 600."""
    fps: More = 30.0
    """fixed-rate: frames that arrive in a second, whether or not those before are done."""
    deadline_ms: More | None = None
    """fixed-rate: of a frame, from its arrival; not given: until the next one arrives."""
    queue: Annotated[int, Field(ge=1)] | None = None
    """fixed-rate: a frame that arrives while so many wait is dropped; not given: none is ever dropped."""
    minute_seconds: More = 60.0
    """sustained: the pieces that are compared, seconds."""

    @property
    def lasts(self) -> float:
        return self.seconds or (SUSTAINED_SECONDS if self.name == "sustained" else SECONDS)


class CoolDown(Value):
    """Waiting before each launch until every thermal zone is back where it was before the first."""

    margin_celsius: Seconds = 2.0
    """Above the start temperature."""
    limit_seconds: Annotated[float, Field(ge=0, le=3600)] = 120.0
    """Longest wait; the launch then begins all the same, and the result says so."""
    pause_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """The wait where no temperature can be read."""


class Interval(Value):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Pass(Value):
    """Inferences one after another, without a gap."""

    latency_ns: tuple[int, ...]
    wall_ns: int
    cpu_ns: int
    waited_ns: int | None
    hottest_celsius: float | None = None
    """Afterwards, of all thermal zones; None where none can be read."""
    slowest_khz: int | None = None
    """Lowest frequency of a core, afterwards."""


class Frames(Value):
    """Frames on a schedule, nanoseconds from the first arrival; frame i arrives at i * ``period_ns``."""

    period_ns: int
    start_ns: tuple[int, ...]
    """-1: dropped."""
    end_ns: tuple[int, ...]


class ScenarioRun(Value):
    """One file in one scenario, with its raw samples."""

    name: str
    runtime: RuntimeName
    precision: Precision
    role: Literal["teacher", "student", "previous"]
    scenario: Scenario
    threads: int
    batch: int = 1
    runtime_version: str
    passes: tuple[Pass, ...] = ()
    """Of offline and sustained."""
    frames: Frames | None = None
    flags: tuple[str, ...] = ()


class Audit(Value):
    """What one audit found of one file."""

    name: str
    audit: AuditName
    outcome: AuditOutcome
    compared: int
    """TEST01: outputs of timed inferences. TEST04: samples that were repeated."""
    figure: Interval
    """TEST01: largest difference of a logit, relative to the largest logit. TEST04: time of a repeated sample over that
    of the same sample among others."""
    limit: float


class Tries(Value):
    """Whole measurements of one file, one after another."""

    name: str
    threads: int
    length: int | None
    p50_ns: tuple[float, ...]
    to_teacher: tuple[Interval, ...]
    """p50 over the teacher's in each try, paired in time; empty for the teacher and without one."""
    spread: float
    """Largest p50 over the smallest."""
    replicable: bool
    """``spread`` is at most 1.05 (MLPerf Mobile's five runs)."""


class Energy(Value):
    """Energy of one inference above idling; ``joules`` None where there is no counter or it cannot be resolved."""

    name: str
    source: str | None
    joules: Interval | None
    idle_watts: float | None
    busy_watts: float | None
    rounds: int
    reason: str
    """Why ``joules`` is None."""
