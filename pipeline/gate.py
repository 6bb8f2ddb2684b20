"""Gate stage: what the statistics allow to say of every student file, against teacher and own fp32.

Every check of an estimate is a non-inferiority test at its 95 % interval: it *holds* when the whole interval lies
within the limit, *fails* when the whole interval lies beyond it, and is *inconclusive* when the interval straddles the
limit, with the number of pictures or texts that would decide. A latency whose flags can have decided its limit
(``fairness.doubts``: other load, heat, a moving clock, a failed audit) is inconclusive. A small test set leaves honest
"inconclusive" verdicts, never a pass by default: with 200 pictures and no disagreement, a drop of 1 point can just be
excluded.

Each runtime *ships* its most compressed file; the run's outcome is the worst of those. The other files are steps on the
way: they are judged alike, and named when they would pass where the shipped one does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from distilledge.pipeline import stats
from distilledge.pipeline.evidence import Arrays, Evidence, gather_evidence, noun
from distilledge.pipeline.outcomes import Outcomes, distinct
from distilledge.pipeline.profile import summary
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.record import Check, ExportResult, Measurements, Scores, Verdict, Verdicts
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Exported, Measurement, Predictions
from distilledge.targets.fairness import doubts, not_compared

Outcome = Literal["pass", "fail", "inconclusive"]

DROP_TEACHER = "drop against the teacher (points)"
DROP_FP32 = "drop against the student's fp32 file (points)"
DISTINCT = "distinct answers"
P50 = "p50 latency (ms)"
SIZE = "size (MB)"
RSS = "peak RSS (MB)"

SHIP_ORDER = ("w8a8", "w8a16", "w8dyn", "w8", "fp16", "fp32")
"""The first of these that a runtime has is the file it ships."""
FLOAT = ("fp32", "fp16")
WORST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
MB = 1e6


class TargetVerdict(NamedTuple):
    """What one runtime ships, and a less compressed file that passes where that one does not."""

    runtime: str
    shipped: Verdict
    instead: Verdict | None


def judge(
    recipe: Recipe,
    scores: Scores,
    logits: Arrays,
    measurements: Measurements,
    exports: Iterable[ExportResult],
    groups: Sequence[str] | None = None,
    *,
    outcomes: Mapping[str, Outcomes] | None = None,
) -> Verdicts:
    """A verdict on every student file.

    ``logits``: name of the predictions -> (N, classes). ``groups``: one name per sample of ``scores.paths``; samples of
    one group are no independent evidence and are drawn together ("" is a group of its own). ``outcomes``: of texts, by
    the same names.
    """
    files = [file for result in exports if result.role == "student" for file in result.files]
    classes = files[0].classes if files else ()
    evidence = gather_evidence(recipe, scores, logits, measurements, groups, classes=classes, outcomes=outcomes)
    return Verdicts(items=tuple(_judge_file(evidence, file) for file in files))


def by_target(verdicts: Verdicts) -> tuple[TargetVerdict, ...]:
    """What each runtime ships, in the order of the verdicts."""
    found = []
    for runtime in dict.fromkeys(v.runtime for v in verdicts.items):
        files = sorted((v for v in verdicts.items if v.runtime == runtime), key=lambda v: SHIP_ORDER.index(v.precision))
        passing = next((v for v in files[1:] if v.outcome == "pass"), None)
        found.append(TargetVerdict(runtime, files[0], None if files[0].outcome == "pass" else passing))
    return tuple(found)


def overall(verdicts: Verdicts) -> Outcome:
    """The worst outcome of the shipped files; inconclusive where nothing was judged."""
    outcomes = {t.shipped.outcome for t in by_target(verdicts)}
    return next((o for o in WORST_FIRST if o in outcomes), "inconclusive")


def _judge_file(evidence: Evidence, file: Exported) -> Verdict:
    budget = evidence.recipe.budget_of(file.runtime)
    accuracy, accuracy_alarms = _accuracy_checks(evidence, file, budget)
    device, device_alarms = _device_checks(evidence, file, budget)
    checks, alarms = accuracy + device, accuracy_alarms + device_alarms
    drop = next((c for c in accuracy if c.what == DROP_TEACHER), None)
    return Verdict(
        name=f"student {file.runtime} {file.precision}",
        runtime=file.runtime,
        precision=file.precision,
        outcome=_outcome(checks, budget),
        accuracy_word=_word(drop, budget.max_drop_points or 0.0),
        checks=tuple(checks),
        alarms=tuple(alarms),
    )


def _outcome(checks: list[Check], budget: Budget) -> Outcome:
    """The worst check; inconclusive too where a limit is set on something that was not measured."""
    limits = {
        DROP_TEACHER: budget.max_drop_points,
        P50: budget.max_latency_ms,
        SIZE: budget.max_size_mb,
        RSS: budget.max_peak_rss_mb,
    }
    measured = {c.what for c in checks}
    outcomes = {c.outcome for c in checks}
    if "fails" in outcomes:
        return "fail"
    missing = any(limit is not None and what not in measured for what, limit in limits.items())
    return "inconclusive" if missing or "inconclusive" in outcomes else "pass"


def _word(drop: Check | None, margin: float) -> Literal["better", "not worse", "worse", "inconclusive"]:
    if drop is None or drop.low is None or drop.high is None:
        return "inconclusive"
    if drop.high < 0:
        return "better"
    if drop.high <= margin:
        return "not worse"
    return "worse" if drop.low > margin else "inconclusive"


def _accuracy_checks(evidence: Evidence, file: Exported, budget: Budget) -> tuple[list[Check], list[str]]:
    candidate = evidence.find("student", file.runtime, file.precision)
    if candidate is None or not len(evidence.labels):
        return [], [f"the file was not scored on labelled {noun(evidence.recipe)}"]
    collapse, alarms = _distinct(evidence, candidate)
    checks = [collapse]
    teacher, note = _teacher(evidence, file.runtime)
    if teacher is None:
        alarms.append("no fp32 teacher was scored: nothing to compare with")
    else:
        checks.append(_drop_check(evidence, teacher, candidate, DROP_TEACHER, budget.max_drop_points, note))
    fp32 = evidence.find("student", file.runtime, "fp32")
    if fp32 is not None and file.precision != "fp32":
        checks.append(_drop_check(evidence, fp32, candidate, DROP_FP32, budget.max_drop_points_fp32))
    return checks, alarms


def _teacher(evidence: Evidence, runtime: str) -> tuple[Predictions | None, str]:
    """The teacher's fp32 predictions in the same runtime; where it was not exported there, those of another."""
    same = evidence.find("teacher", runtime, "fp32")
    if same is not None:
        return same, ""
    other = next((p for p in evidence.predictions if p.role == "teacher" and p.precision == "fp32"), None)
    return other, f"teacher in {other.runtime}" if other else ""


def _distinct(evidence: Evidence, candidate: Predictions) -> tuple[Check, list[str]]:
    """A file that gives one answer to everything, or no number at all, fails whatever its metric says."""
    logits = evidence.logits[candidate.name]
    answers, truths = distinct(evidence.recipe.task, evidence.outcomes[candidate.name])
    finite = bool(np.isfinite(logits).all())
    collapsed = len(answers) < 2 <= len(truths)
    alarms = []
    if not finite:
        alarms.append("answers are not finite")
    elif collapsed:
        alarms.append(f"collapsed: answers {min(answers)} to all {len(logits)} {noun(evidence.recipe)}")
    outcome: Literal["holds", "fails"] = "fails" if collapsed or not finite else "holds"
    check = Check(what=DISTINCT, value=len(answers), low=None, high=None, limit=None, outcome=outcome)
    return check, alarms


def _drop_check(
    evidence: Evidence,
    reference: Predictions,
    candidate: Predictions,
    what: str,
    limit: float | None,
    note: str = "",
) -> Check:
    drop = evidence.drop(reference, candidate)
    check = check_of(what, drop, limit, note)
    if check.outcome != "inconclusive" or limit is None:
        return check
    more = stats.samples_needed(drop, limit, len(evidence.labels))
    what_kind = noun(evidence.recipe)
    needs = f"needs {more:,} more {what_kind}" if more else f"lies at the margin: more {what_kind} would not decide"
    return check.model_copy(update={"note": "; ".join(filter(None, (note, needs)))})


def _device_checks(evidence: Evidence, file: Exported, budget: Budget) -> tuple[list[Check], list[str]]:
    size = check_of(SIZE, Estimate(value=file.size_bytes / MB), budget.max_size_mb)
    timing = evidence.timing("student", file.runtime, file.precision)
    if timing is None:
        return [size], ["the file was not measured"]
    note = "; ".join((*(("quick measurement",) if timing.quick else ()), *timing.flags))
    p50 = latency_ms(timing, 50, evidence.recipe.seed)
    checks = [size]
    rss = peak_rss_mb(timing)
    if rss is not None:
        checks.append(check_of(RSS, Estimate(value=rss), budget.max_peak_rss_mb))
    if p50 is not None:
        checks.insert(0, undecided(check_of(P50, p50, budget.max_latency_ms, note), timing))
    return checks, _slow_int8(evidence, timing) + _unit_alarms(timing)


def peak_rss_mb(timing: Measurement) -> float | None:
    """The largest of all launches; None where the device does not tell it, as a browser."""
    peaks = [launch.peak_rss_bytes for launch in timing.launches]
    return max(p for p in peaks if p is not None) / MB if peaks and None not in peaks else None


def undecided(check: Check, timing: Measurement) -> Check:
    """Inconclusive where a flag of the timing can have decided it."""
    if check.limit is None:
        return check
    low, high = (end if end is not None else check.value for end in (check.low, check.high))
    flags = doubts(timing.flags, low, high, check.limit)
    if not flags:
        return check
    note = f"{check.note}; flagged {' '.join(flags)}: decides nothing, measure again on a quiet device"
    return check.model_copy(update={"outcome": "inconclusive", "note": note})


def latency_ms(timing: Measurement, q: float, seed: int) -> Estimate | None:
    """A percentile of the model-only latency of all launches."""
    return stats.percentile([np.asarray(launch.latency_ns) / 1e6 for launch in timing.launches], q, seed=seed)


def _unit_alarms(timing: Measurement) -> list[str]:
    """What is wrong with the file on its unit; being slower than float is judged with its interval (``_slow_int8``)."""
    found = [flag for flag in timing.unit_flags if flag != "SLOWER_THAN_FLOAT"]
    return [f"{flag}: {summary(timing.placement)}" for flag in found if timing.placement is not None]


def _slow_int8(evidence: Evidence, timing: Measurement) -> list[str]:
    """Alarm where an int8 file is slower than the student's fastest float file, beyond the interval of the ratio."""
    if timing.precision in FLOAT:
        return []
    others = [evidence.timing("student", timing.runtime, precision) for precision in FLOAT]
    ratios = [
        (r, m.precision) for m in others if m is not None and (r := latency_ratio(timing, m, evidence.recipe.seed))
    ]
    slower = [(ratio, precision) for ratio, precision in ratios if (ratio.low or 0.0) > 1.0]
    if not slower:
        return []
    ratio, precision = max(slower, key=lambda pair: pair[0].value)
    flags = not_compared(timing.flags)
    doubt = f", in a measurement flagged {' '.join(flags)}" if flags else ""
    return [f"int8 is slower than float ({ratio.value:.2g}x {precision}){doubt}"]


def latency_ratio(timing: Measurement, other: Measurement, seed: int) -> Estimate | None:
    """p50 of ``timing`` over p50 of ``other``."""
    return stats.median_ratio(
        [launch.latency_ns for launch in timing.launches], [launch.latency_ns for launch in other.launches], seed=seed
    )


def check_of(what: str, estimate: Estimate, limit: float | None, note: str = "") -> Check:
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    outcome: Literal["holds", "fails", "inconclusive", "no limit"]
    if limit is None:
        outcome = "no limit"
    elif high <= limit:
        outcome = "holds"
    else:
        outcome = "fails" if low > limit else "inconclusive"
    return Check(
        what=what,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        limit=limit,
        outcome=outcome,
        note=note,
    )
