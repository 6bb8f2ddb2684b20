"""Before each launch the device cools down; around all of them a fixed loop shows whether its clock held."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distilledge.targets.base import Rest
from distilledge.targets.devices.base import WorkerHandle
from distilledge.targets.protocol import CoolDown

SPIN_SECONDS = 0.2
"""Shorter loops jump: of 20 ms from 22 to 93 ms under other load."""
SPINS = 3
"""The quickest counts: it is the least disturbed."""
MAX_CLOCK = 1.03
"""CPU time of the loop, the longest over the shortest."""
POLL_SECONDS = 1.0
ANSWER_SECONDS = 60.0


class Steady:
    """What outlives one launch: the start temperature of the session, and the loop's times."""

    def __init__(
        self, cool_down: CoolDown | None = None, *, clock: bool = True, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._settings, self._clock, self._sleep = cool_down, clock, sleep
        self._start: Mapping[str, int] | None = None
        self._launches = 0
        self._operations: frozenset[str] | None = None
        self._n = 0
        self.spins_ns: list[int] = []

    def begin(self) -> None:
        """A group of files: only loops within it are compared."""
        self.spins_ns = []

    def before(self, workers: Sequence[WorkerHandle]) -> Rest | None:
        """Cool down, then spin. ``workers``: loaded and idle."""
        rest = self._rest(workers)
        self.spin(workers[0])
        self._launches += 1
        return rest

    def spin(self, worker: WorkerHandle) -> None:
        if self._clock and self._can(worker, "spin"):
            answer = worker.request(
                {"op": "spin", "n": self._n, "seconds": SPIN_SECONDS, "repeats": SPINS}, ANSWER_SECONDS
            )
            self._n = answer["n"]
            self.spins_ns.append(min(answer["cpu_ns"]))

    def flags(self) -> tuple[str, ...]:
        """``CLOCK``, where the loop took other times."""
        moved = bool(self.spins_ns) and max(self.spins_ns) > MAX_CLOCK * min(self.spins_ns)
        return ("CLOCK",) if moved else ()

    def _can(self, worker: WorkerHandle, operation: str) -> bool:
        if self._operations is None:
            facts = worker.request({"op": "facts"}, ANSWER_SECONDS)
            self._operations = frozenset(facts.get("operations", ()))
        return operation in self._operations

    def _rest(self, workers: Sequence[WorkerHandle]) -> Rest | None:
        if self._settings is None or not self._can(workers[0], "counters"):
            return None
        settings, zones, waited = self._settings, self._zones(workers[0]), 0.0
        if self._start is None:
            self._start = zones
        if zones is None or self._launches == 0:
            pause = settings.pause_seconds if self._launches else 0.0
            waited = self._wait(pause, workers)
        while zones and above(self._start, zones) > settings.margin_celsius and waited < settings.limit_seconds:
            waited += self._wait(min(POLL_SECONDS, settings.limit_seconds - waited), workers)
            zones = self._zones(workers[0])
        excess = None if zones is None or self._start is None else above(self._start, zones)
        return Rest(waited_seconds=waited, hottest_celsius=hottest(zones), above_start_celsius=excess)

    def _zones(self, worker: WorkerHandle) -> Mapping[str, int] | None:
        found: Mapping[str, int] | None
        found = worker.request({"op": "counters"}, ANSWER_SECONDS)["counters"].get("temperature")
        return found

    def _wait(self, seconds: float, workers: Sequence[WorkerHandle]) -> float:
        left = seconds
        while left > 0:
            for worker in workers:
                worker.beat()
            self._sleep(min(left, 30.0))
            left -= 30.0
        return seconds


def above(start: Mapping[str, int] | None, now: Mapping[str, int]) -> float:
    """How far the zone that warmed most lies above its start, degrees Celsius."""
    shared = [now[zone] - value for zone, value in (start or {}).items() if zone in now]
    return max(shared, default=0) / 1000


def hottest(zones: Mapping[str, Any] | None) -> float | None:
    """Degrees Celsius."""
    return max(zones.values()) / 1000 if zones else None
