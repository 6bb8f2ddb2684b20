"""What is measured beside single-stream: scenarios, audits and energy of the files of one runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distilledge.pipeline.gate import SHIP_ORDER
from distilledge.pipeline.recipe import Measure
from distilledge.targets.audit import audit, audit_flags
from distilledge.targets.base import Measurement
from distilledge.targets.devices import Device
from distilledge.targets.energy import measure_energy
from distilledge.targets.measure import Candidate
from distilledge.targets.protocol import Audit, Energy, Scenario, ScenarioRun
from distilledge.targets.samples import Samples
from distilledge.targets.scenarios import run_scenario

QUICK_SECONDS = 2.0
"""Of a scenario under ``measure.quick``, in ten pieces if it is sustained."""


class Beside(NamedTuple):
    scenarios: tuple[ScenarioRun, ...] = ()
    audits: tuple[Audit, ...] = ()
    energies: tuple[Energy, ...] = ()


def measure_beside(group: Sequence[Candidate], inputs: Samples, settings: Measure, device: Device) -> Beside:
    """``group``: the files of one runtime. Scenarios and energy are of those in ``shown``, audits of all."""
    threads, warmup = settings.threads[0], settings.warmup
    scenarios = [
        run_scenario(c, device, quickened(s) if settings.quick else s, threads=threads, inputs=inputs, warmup=warmup)
        for s in settings.scenarios
        for c in shown(group, teacher=s.name != "sustained")
    ]
    audits = [
        found
        for c in group
        if settings.audits and c.role != "control"
        for found in audit(c, device, threads=threads, inputs=inputs)
    ]
    seconds = settings.energy_seconds
    energies = [
        measure_energy(c, device, seconds=seconds, threads=threads, inputs=inputs, warmup=warmup)
        for c in (shown(group, teacher=True) if seconds else [])
    ]
    return Beside(tuple(scenarios), tuple(audits), tuple(energies))


def shown(group: Sequence[Candidate], *, teacher: bool) -> list[Candidate]:
    """The student file that the runtime ships, behind the fp32 teacher."""
    students = sorted((c for c in group if c.role == "student"), key=lambda c: SHIP_ORDER.index(c.exported.precision))
    teachers = [c for c in group if c.role == "teacher" and c.exported.precision == "fp32"] if teacher else []
    return teachers[:1] + students[:1]


def with_audits(items: Sequence[Measurement], audits: Sequence[Audit]) -> list[Measurement]:
    """Flag the measurements of files that failed one."""
    failed = {m.name: audit_flags(tuple(a for a in audits if a.name == m.name)) for m in items}
    return [m.model_copy(update={"flags": (*m.flags, *failed[m.name])}) for m in items]


def quickened(scenario: Scenario) -> Scenario:
    seconds = min(scenario.lasts, QUICK_SECONDS)
    return scenario.model_copy(
        update={"seconds": seconds, "minute_seconds": min(scenario.minute_seconds, QUICK_SECONDS / 4)}
    )
