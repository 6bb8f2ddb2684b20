"""Rows of the report's table: what each file answers, how fast it is, what it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distilledge.pipeline import stats
from distilledge.pipeline.evidence import Evidence
from distilledge.pipeline.gate import DROP_FP32, DROP_TEACHER, MB, TargetVerdict, by_target, latency_ratio, peak_rss_mb
from distilledge.pipeline.recipe import METRICS, MetricName
from distilledge.pipeline.record import ExportResult, Verdict, Verdicts
from distilledge.pipeline.report.vocabulary import FileResult, Headline, Timing
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Exported, Measurement, Predictions
from distilledge.targets.fairness import not_compared

MS = 1e6
"""Nanoseconds in a millisecond."""
ROLES = ("teacher", "student")
OUTCOME_WORDS = {"fails": "over the limit", "inconclusive": "undecided"}


def file_results(
    evidence: Evidence,
    exports: Sequence[ExportResult],
    verdicts: Verdicts,
    models: dict[str, str],
    timed: Sequence[Timing],
) -> tuple[FileResult, ...]:
    """One result per exported file, the teacher's first. ``models``: role -> its model's name."""
    facts = _Facts(
        evidence,
        {v.name: v for v in verdicts.items},
        {t.shipped.name for t in by_target(verdicts)},
        {(t.name, t.threads, t.length): t for t in timed},
    )
    return tuple(
        _file_result(facts, result.role, models.get(result.role, ""), file)
        for role in ROLES
        for result in exports
        if result.role == role
        for file in result.files
    )


class _Facts(NamedTuple):
    """What the rows are looked up in, by file name."""

    evidence: Evidence
    judged: dict[str, Verdict]
    chosen: set[str]
    """What each runtime ships if no budget is broken."""
    timed: dict[tuple[str, int, int | None], Timing]


def _file_result(facts: _Facts, role: str, model: str, file: Exported) -> FileResult:
    name = f"{role} {file.runtime} {file.precision}"
    evidence = facts.evidence
    predictions = evidence.find(role, file.runtime, file.precision)
    timing = evidence.timing(role, file.runtime, file.precision)
    timed = facts.timed[timing.name, timing.threads, timing.length] if timing else None
    verdict = facts.judged.get(name)
    return FileResult(
        name=name,
        role=role,
        model=model,
        runtime=file.runtime,
        precision=file.precision,
        metric=metric(evidence, predictions) if predictions else None,
        drop=_checked(verdict, DROP_TEACHER),
        drop_fp32=_checked(verdict, DROP_FP32),
        others=_others(evidence, predictions) if predictions else {},
        p50=timed and timed.p50,
        p90=timed and timed.p90,
        p99=timed and timed.p99,
        end_to_end_p50=timed and timed.end_to_end_p50,
        faster_than_teacher=_faster(evidence, timing, "teacher"),
        faster_than_fp32=_faster(evidence, timing, "student") if role == "student" else None,
        load_ms=_median_ms([launch.load_ns for launch in timing.launches]) if timing else None,
        first_inference_ms=_median_ms([launch.first_inference_ns for launch in timing.launches]) if timing else None,
        peak_rss_mb=peak_rss_mb(timing) if timing else None,
        size_mb=file.size_bytes / MB,
        sha256=file.sha256,
        recipe=file.recipe,
        float_operations=file.float_operations,
        spread_ms=_spread(timing),
        launch_medians_ms=_launch_medians(timing),
        chosen=name in facts.chosen,
        shipped=name in facts.chosen and facts.judged[name].outcome == "pass",
        not_compared=not_compared(timing.flags) if timing else (),
        verdict=verdict,
    )


def metric(evidence: Evidence, predictions: Predictions) -> Estimate | None:
    """The recipe's metric in points; None without labelled pictures."""
    if not len(evidence.labels):
        return None
    found = evidence.value(predictions)
    return Estimate(value=100 * found.value, low=100 * (found.low or 0.0), high=100 * (found.high or 0.0))


def _others(evidence: Evidence, predictions: Predictions) -> dict[MetricName, float]:
    found = evidence.outcomes[predictions.name].others
    return {name: 100 * found[name] for name in METRICS[evidence.recipe.task] if name in found}


def timings(measurements: Sequence[Measurement], seed: int) -> tuple[Timing, ...]:
    """Every measurement with its conditions, in the order taken."""
    return tuple(_timing(m, seed) for m in measurements)


def _timing(m: Measurement, seed: int) -> Timing:
    p50, p90, p99 = stats.percentiles(
        [np.asarray(launch.latency_ns) / MS for launch in m.launches], (50, 90, 99), seed=seed
    )
    wall = max(1, sum(launch.wall_ns for launch in m.launches))
    waited, spent = [launch.waited_ns for launch in m.launches], [launch.cpu_ns for launch in m.launches]
    return Timing(
        name=m.name,
        threads=m.threads,
        launches=len(m.launches),
        samples=sum(len(launch.latency_ns) for launch in m.launches),
        warmup=m.warmup,
        batch=m.batch,
        quick=m.quick,
        length=m.length,
        p50=p50,
        p90=p90,
        p99=p99,
        end_to_end_p50=stats.percentile(
            [np.asarray(launch.end_to_end_ns) / MS for launch in m.launches], 50, seed=seed
        ),
        cpu_share=None if None in spent else sum(s or 0 for s in spent) / wall,
        waited_share=None if None in waited else sum(w or 0 for w in waited) / wall,
        runtime_version=m.runtime_version,
        execution_precision=m.execution_precision,
        flags=m.flags,
        unit_flags=m.unit_flags,
    )


def headlines(files: Sequence[FileResult], targets: Sequence[TargetVerdict]) -> tuple[Headline, ...]:
    """One sentence per runtime on the file that it ships."""
    named = {f.name: f for f in files}
    teachers = {f.runtime: f for f in reversed(files) if f.role == "teacher" and f.precision == "fp32"}
    return tuple(_headline(t, named[t.shipped.name], teachers.get(t.runtime)) for t in targets)


def _headline(target: TargetVerdict, file: FileResult, teacher: FileResult | None) -> Headline:
    notes = [*target.shipped.alarms]
    if target.shipped.decided_by:
        notes.insert(0, f"the verdict is that of the worst task, {target.shipped.decided_by}")
    for check in target.shipped.checks:
        if check.outcome in OUTCOME_WORDS:
            notes.append(f"{check.what}: " + ", ".join(filter(None, (OUTCOME_WORDS[check.outcome], check.note))))
    if target.instead is not None:
        notes.append(f"{target.instead.precision} passes every check here: it could be shipped instead")
    parts = [f"The {file.precision} student is {_accuracy_words(target.shipped)}"]
    if file.faster_than_teacher is not None:
        ratio = file.faster_than_teacher.value
        doubt = f" (flagged {' '.join(file.not_compared)}: no comparison)" if file.not_compared else ""
        parts.append((f"{ratio:.3g} times as fast" if ratio >= 1 else f"{1 / ratio:.3g} times slower") + doubt)
    if teacher is not None:
        ratio = teacher.size_mb / file.size_mb
        words = f"{ratio:.3g} times smaller" if ratio >= 1 else f"{1 / ratio:.3g} times larger"
        parts.append(f"{words} ({file.size_mb:.2f} MB)")
    return Headline(
        runtime=target.runtime, outcome=target.shipped.outcome, text=", ".join(parts) + ".", notes=tuple(notes)
    )


def _accuracy_words(verdict: Verdict) -> str:
    words = {
        "better": "better than the teacher",
        "not worse": "not worse than the teacher",
        "worse": "worse than the teacher",
        "inconclusive": "not shown to keep up with the teacher",
    }[verdict.accuracy_word]
    drops = [c for c in verdict.checks if c.what.endswith(DROP_TEACHER)]
    drop = max(drops, key=lambda c: c.value, default=None)
    if drop is None or drop.low is None or drop.high is None:
        return words
    words += f" in {drop.what.removesuffix(f': {DROP_TEACHER}')}" if len(drops) > 1 else ""  # the worst of the tasks
    side = "below" if drop.value >= 0 else "above"
    low, high = (drop.low, drop.high) if drop.value >= 0 else (-drop.high, -drop.low)
    return f"{words} ({abs(drop.value):.2f} points {side} it, 95 % interval {low:.2f} to {high:.2f})"


def _checked(verdict: Verdict | None, what: str) -> Estimate | None:
    """A check's own numbers, so that table and verdict cannot differ."""
    check = next((c for c in verdict.checks if c.what.endswith(what)), None) if verdict else None  # the primary task's
    return Estimate(value=check.value, low=check.low, high=check.high) if check else None


def _faster(evidence: Evidence, timing: Measurement | None, role: str) -> Estimate | None:
    if timing is None:
        return None
    other = evidence.timing(role, timing.runtime, "fp32")
    if other is None or other.name == timing.name:
        return None
    return latency_ratio(other, timing, evidence.recipe.seed)


def _median_ms(nanoseconds: Sequence[int]) -> float:
    return float(np.median(nanoseconds)) / MS


def _spread(timing: Measurement | None) -> tuple[float, ...]:
    samples = [x for launch in timing.launches for x in launch.latency_ns] if timing else []
    if not samples:
        return ()
    return tuple(float(x) for x in np.percentile(np.asarray(samples) / MS, np.arange(101)))


def _launch_medians(timing: Measurement | None) -> tuple[float, ...]:
    return tuple(_median_ms(launch.latency_ns) for launch in timing.launches if launch.latency_ns) if timing else ()
