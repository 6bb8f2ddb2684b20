"""What was measured beside single-stream, as tables: scenarios, the previous release, tries, audits, energy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distilledge.models.base import Value
from distilledge.pipeline.record import Measurements
from distilledge.pipeline.report.markup import Markup, el
from distilledge.targets.base import Measurement
from distilledge.targets.fairness import not_compared, undisturbed
from distilledge.targets.measure import p50
from distilledge.targets.protocol import Interval, ScenarioRun
from distilledge.targets.scenarios import frame_figures, sustained_figures, throughput
from distilledge.targets.tries import ratio

NONE = "–"  # noqa: RUF001 - an en dash stands for a number that was not taken


class Table(Value):
    title: str
    explanation: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class ProtocolContent(Value):
    """``numbers``: file -> column of benchmarks.csv -> value."""

    tables: tuple[Table, ...] = ()
    numbers: dict[str, dict[str, float | bool | None]] = {}


def scenario_tables(runs: Sequence[ScenarioRun]) -> tuple[Table, ...]:
    """One for each scenario, without rows where it was not run."""
    return _offline(runs), _fixed_rate(runs), _sustained(runs)


def protocol_content(found: Measurements, seed: int) -> ProtocolContent:
    tables = (
        *scenario_tables(found.scenarios),
        _previous(found.items, seed),
        _tries(found),
        _disturbed(found.items),
        _rests(found.items),
        _audits(found),
        _energy(found),
    )
    return ProtocolContent(tables=tuple(t for t in tables if t.rows), numbers=_numbers(found, seed))


def previous_ratios(items: Sequence[Measurement], seed: int) -> list[tuple[Measurement, Measurement, Interval]]:
    """(student, previous, p50 of the one over that of the other), where the two took turns."""
    found = []
    for old in (m for m in items if m.role == "previous"):
        for new in (m for m in items if m.role == "student"):
            same = (new.runtime, new.precision, new.threads, new.length)
            if same == (old.runtime, old.precision, old.threads, old.length):
                between = ratio(new, old, seed=seed)
                found += [(new, old, between)] if between is not None else []
    return found


def section_of_protocol(content: ProtocolContent) -> Markup:
    from distilledge.pipeline.report.sections import NOTHING, grid, section  # it imports the vocabulary, that us

    if not content.tables:
        return NOTHING
    parts = []
    for table in content.tables:
        parts += [el("h3", {}, table.title), el("p", {"class": "soft"}, table.explanation)]
        parts.append(grid(table.columns, table.rows, left=("File", "Flags", "Outcome", "Why")))
    return section(
        "Protocol", "What was measured beside single stream, and what says whether it can be trusted.", *parts
    )


def _offline(runs: Sequence[ScenarioRun]) -> Table:
    rows = [
        (r.name, str(r.threads), str(r.batch), _interval(throughput(r.passes), 1), _flags(r.flags))
        for r in runs
        if r.scenario.name == "offline"
    ]
    return Table(
        title="Offline",
        explanation="Samples per second, one after another as fast as possible on all cores; 95 % interval.",
        columns=("File", "Threads", "Batch", "Samples/s", "Flags"),
        rows=tuple(rows),
    )


def _fixed_rate(runs: Sequence[ScenarioRun]) -> Table:
    rows = []
    for r in (r for r in runs if r.scenario.name == "fixed-rate" and r.frames is not None):
        assert r.frames is not None
        f = frame_figures(r.frames, r.scenario.deadline_ms)
        cells = [f"{x:.3g}" if x is not None else NONE for x in (f.p50_ms, f.p90_ms, f.p99_ms, f.max_ms)]
        counts = (f"{f.frames:,}", f"{100 * f.missed:.2f} %", str(f.late), str(f.dropped), str(f.longest_queue))
        rows.append((r.name, f"{r.scenario.fps:g}", *counts, *cells, _flags(r.flags)))
    return Table(
        title="Fixed rate",
        explanation="Latency from the scheduled arrival of a frame, whatever became of those before it. Missed: behind "
        "the deadline, or dropped.",
        columns=(
            *("File", "fps", "Frames", "Missed", "Late", "Dropped", "Longest queue"),
            *("p50, ms", "p90, ms", "p99, ms", "Most, ms", "Flags"),
        ),
        rows=tuple(rows),
    )


def _sustained(runs: Sequence[ScenarioRun]) -> Table:
    rows = []
    for r in (r for r in runs if r.scenario.name == "sustained" and r.passes):
        s = sustained_figures(r.passes, r.scenario.minute_seconds)
        after = "never" if s.throttled_after_seconds is None else f"{s.throttled_after_seconds:.0f} s"
        kept = NONE if s.retention is None else f"{100 * s.retention:.1f} %"
        heat = " → ".join(_celsius(m.hottest_celsius) for m in (s.minutes[0], s.minutes[-1]))
        clock = " → ".join(_megahertz(m.slowest_khz) for m in (s.minutes[0], s.minutes[-1]))
        rows.append((r.name, str(len(s.minutes)), kept, after, heat, clock, _flags(r.flags)))
    return Table(
        title="Sustained",
        explanation="Retention: throughput of the last minute over that of the first. Throttled: the first minute "
        "whose p50 is more than 5 % above the first's.",
        columns=("File", "Minutes", "Retention", "Throttled after", "Hottest", "Slowest core", "Flags"),
        rows=tuple(rows),
    )


def _previous(items: Sequence[Measurement], seed: int) -> Table:
    rows = [
        (new.name, old.name, str(new.threads), _interval(found, 3), _refusal((*new.flags, *old.flags)))
        for new, old, found in previous_ratios(items, seed)
    ]
    return Table(
        title="Against the previous release",
        explanation="p50 over that of the previous file, which took turns with it: below 1 is faster. Pieces of the "
        "same moment are compared; 95 % interval.",
        columns=("File", "Previous", "Threads", "Ratio", "Flags"),
        rows=tuple(rows),
    )


def _tries(found: Measurements) -> Table:
    rows = [
        (
            t.name,
            str(t.threads),
            ", ".join(f"{ns / 1e6:.3g}" for ns in t.p50_ns),
            f"{100 * (t.spread - 1):.1f} %",
            "replicable" if t.replicable else "not replicable",
            ", ".join(f"{r.value:.3g}" for r in t.to_teacher) or NONE,
        )
        for t in found.tries
    ]
    return Table(
        title="Replicability",
        explanation="Whole measurements, one after another; replicable where the p50s lie within 5 % of each other.",
        columns=("File", "Threads", "p50 of each try, ms", "Spread", "Outcome", "Of the teacher's p50"),
        rows=tuple(rows),
    )


def _disturbed(items: Sequence[Measurement]) -> Table:
    """Of files whose inferences were seen to be disturbed."""
    rows = []
    for m in items:
        left, count = undisturbed(m.launches), sum(len(launch.latency_ns) for launch in m.launches)
        if left is not None and len(left) < 0.99 * count and not_compared(m.flags):
            quiet = f"{sorted(left)[len(left) // 2] / 1e6:.3g}" if left else NONE
            rows.append((m.name, str(m.threads), f"{p50(m) / 1e6:.3g}", quiet, f"{len(left):,} of {count:,}"))
    return Table(
        title="Undisturbed inferences",
        explanation="The median of those whose CPU time is at least 98 % of their wall time, for files that other load "
        "has met. An estimate of what a quiet device would give, not a measurement of one.",
        columns=("File", "Threads", "p50, ms", "p50 undisturbed, ms", "Undisturbed"),
        rows=tuple(rows),
    )


def _rests(items: Sequence[Measurement]) -> Table:
    rows = []
    for m in items:
        rests = [launch.rest for launch in m.launches if launch.rest is not None]
        heat = [r.hottest_celsius for r in rests if r.hottest_celsius is not None]
        waited = sum(r.waited_seconds for r in rests)
        if heat or waited:
            left = max((r.above_start_celsius or 0.0 for r in rests), default=0.0)
            rows.append((m.name, str(m.threads), f"{waited:.0f} s", _celsius(max(heat, default=None)), f"{left:.1f}"))
    return Table(
        title="Cooling down",
        explanation="Before the launches of each file: waited in all, hottest zone at a launch, and how far a zone was "
        "then above its temperature before the first launch.",
        columns=("File", "Threads", "Waited", "Hottest", "Above start, K"),
        rows=tuple(rows),
    )


def _audits(found: Measurements) -> Table:
    rows = [
        (
            a.name,
            a.audit,
            a.outcome,
            f"{a.figure.value:.3g} ({a.figure.low:.3g} to {a.figure.high:.3g})",
            f"{a.limit:g}",
        )
        for a in found.audits
    ]
    return Table(
        title="Audits",
        explanation="TEST01: largest difference between outputs of timed inferences and of the accuracy run. TEST04: "
        "time of a sample that is repeated over its time among others; below 0.9 it is cached.",
        columns=("File", "Audit", "Outcome", "Found", "Limit"),
        rows=tuple(rows),
    )


def _energy(found: Measurements) -> Table:
    rows = []
    for e in found.energies:
        watts = [NONE if w is None else f"{w:.3g}" for w in (e.idle_watts, e.busy_watts)]
        scaled = e.joules and Interval(value=1e3 * e.joules.value, low=1e3 * e.joules.low, high=1e3 * e.joules.high)
        rows.append((e.name, e.source or NONE, _interval(scaled, 3) if scaled else NONE, *watts, e.reason or NONE))
    return Table(
        title="Energy",
        explanation="Of one inference, above idling; 95 % interval over the rounds and the counter's coarseness.",
        columns=("File", "Counter", "mJ", "Idle, W", "Busy, W", "Why"),
        rows=tuple(rows),
    )


def _numbers(found: Measurements, seed: int) -> dict[str, dict[str, float | bool | None]]:
    made: dict[str, dict[str, float | bool | None]] = {}
    for r in found.scenarios:
        of = made.setdefault(r.name, {})
        if r.scenario.name == "offline":
            per_second = throughput(r.passes)
            of |= {"offline_per_second": per_second.value, "offline_per_second_low": per_second.low}
            of |= {"offline_per_second_high": per_second.high}
        elif r.frames is not None:
            figures = frame_figures(r.frames, r.scenario.deadline_ms)
            name = f"rate_{r.scenario.fps:g}"
            of |= {f"{name}_p90_ms": figures.p90_ms, f"{name}_missed_share": figures.missed}
        else:
            of["sustained_retention"] = sustained_figures(r.passes, r.scenario.minute_seconds).retention
    for new, _, between in previous_ratios(found.items, seed):
        if new.threads == found.items[0].threads and new.length is None:
            of = made.setdefault(new.name, {})
            of |= {"to_previous": between.value, "to_previous_low": between.low, "to_previous_high": between.high}
    for t in found.tries:
        if t.threads == found.items[0].threads and t.length is None:
            made.setdefault(t.name, {}).update({"tries_spread": t.spread, "replicable": t.replicable})
    for e in found.energies:
        made.setdefault(e.name, {})["energy_mj"] = None if e.joules is None else 1e3 * e.joules.value
    return made


def csv_columns(content: ProtocolContent) -> Iterable[str]:
    return dict.fromkeys(name for of in content.numbers.values() for name in of)


def _interval(found: Interval, digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _flags(flags: Sequence[str]) -> str:
    return ", ".join(flags) or NONE


def _refusal(flags: Sequence[str]) -> str:
    refused = not_compared(flags)
    return f"{' '.join(refused)}: decides nothing" if refused else NONE


def _celsius(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} °C"


def _megahertz(value: int | None) -> str:
    return NONE if value is None else f"{value / 1000:.0f} MHz"
