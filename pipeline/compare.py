"""Results of several releases against each other and against limits: pass, fail or inconclusive.

What may not be compared is refused (``comparable.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from distilledge.models.base import Value
from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.comparable import (
    JUDGED,
    Named,
    Pair,
    across,
    differences,
    flags_of,
    match,
    refuse,
    refuse_flagged,
    within,
)
from distilledge.pipeline.drift import accuracy_shifts, cusum, latency_shifts
from distilledge.pipeline.gates_file import Drift, Gates, Limits
from distilledge.pipeline.recipe_data import MetricName
from distilledge.pipeline.record import Check
from distilledge.pipeline.result_file import Accuracy, Item, Result, Timing
from distilledge.pipeline.stats import Estimate

Outcome = Literal["pass", "fail", "inconclusive"]
MB, MS = 1e6, 1e6

P50_CHANGE, P90_CHANGE, P99_CHANGE = "p50 change (%)", "p90 change (%)", "p99 change (%)"
P50, SIZE, RSS, DROP = "p50 (ms)", "size (MB)", "peak RSS (MB)", "drop (points)"
SLOWER, WORSE = "drift of p50 (CUSUM, sd)", "drift of the metric (CUSUM, sd)"
TIMED = (P50_CHANGE, P90_CHANGE, P99_CHANGE, P50, RSS)


class Comparison(Value):
    """One file on one device against the baseline and the limits."""

    name: str
    device: str
    baseline: str
    """The result it is compared with; empty: none has it."""
    release: str
    """The result it is in."""
    outcome: Outcome
    checks: tuple[Check, ...]
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Comparisons(Value):
    items: tuple[Comparison, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst; inconclusive where nothing was compared."""
        found = {item.outcome for item in self.items}
        worst: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next((o for o in worst if o in found), "inconclusive")


def compare(
    results: Sequence[Named],
    gates: Gates,
    *,
    baselines: dict[str, Named] | None = None,
    history: Sequence[Named] = (),
    allow_flagged: bool = False,
) -> Comparisons:
    """Each result after the first with the first; a single one with the baseline that was timed in the same run.

    ``baselines``: devices that have another baseline. ``history``: earlier releases, for drift. Raises ``UsageError``
    (exit 2) for what cannot be compared, ``RejectedError`` (exit 3) for flagged timings.
    """
    first, elsewhere, made = results[0], baselines or {}, []
    if len(results) == 1:
        pairs = within(first.result)
        refuse(first, first, pairs, {}, alone=True)
        refuse_flagged(first, pairs, allowed=allow_flagged)
        made = [_judged(first, first, pair, gates, [], {}) for pair in pairs]
    for number, new in enumerate(results[1:], 2):
        pairs = across(first, new, elsewhere)
        refuse(first, new, pairs, elsewhere, alone=False)
        refuse_flagged(new, pairs, allowed=allow_flagged)
        earlier = [*_ordered(history, results), *results[1:number]]
        made += [_judged(first, new, pair, gates, earlier, elsewhere) for pair in pairs]
    return Comparisons(items=tuple(made))


# --at is judged ---------------------------------------------------------------------------------------------------


def _judged(
    old: Named, new: Named, pair: Pair, gates: Gates, history: Sequence[Named], baselines: dict[str, Named]
) -> Comparison:
    item, limits = pair.item, gates.limits(pair.item.name, pair.item.device)
    base = baselines.get(item.device, old)
    notes = [] if pair.old else ["the baseline has no such file"]
    if pair.new is None:
        checks, notes = [], ["it was not measured"]
    else:
        checks = [*_timings(pair, limits), *_sizes(pair, limits), *_accuracies(pair, limits)]
        notes += _notes(pair)
        if gates.drift and pair.old:
            checks += _drifts(pair.new, pair.old, history, base.result, gates.drift)
    flags = flags_of(*pair)
    if flags:
        checks = [_undecided(c, flags) if c.what in TIMED else c for c in checks]
    outcomes = {c.outcome for c in checks}
    open_ = pair.new is None or (pair.old is None and _relative(limits)) or bool(flags)
    outcome: Outcome = "inconclusive" if open_ or "inconclusive" in outcomes else "pass"
    return Comparison(
        name=item.name,
        device=item.device,
        baseline=base.name if pair.old else "",
        release=new.name,
        outcome="fail" if "fails" in outcomes else outcome,
        checks=tuple(checks),
        flags=flags,
        notes=tuple(notes),
    )


def _relative(limits: Limits) -> bool:
    relative = (limits.max_regression_percent, limits.max_p99_regression_percent, limits.max_drop_points)
    return any(limit is not None for limit in relative)


def _undecided(check: Check, flags: Sequence[str]) -> Check:
    decided = check.outcome in ("holds", "fails")
    return check.model_copy(update={"outcome": "inconclusive" if decided else check.outcome, "note": " ".join(flags)})


def _notes(pair: Pair) -> Iterator[str]:
    assert pair.new is not None
    if pair.old and pair.old.name != pair.new.name:
        yield f"compared with {pair.old.name}"
    timings = [i.timing for i in pair if i and i.timing]
    versions = list(dict.fromkeys(t.runtime_version for t in timings))
    if len(versions) > 1:
        yield f"runtime: {versions[0]}, now {versions[1]}" if pair.new.timing is timings[1] else " and ".join(versions)
    if any(t.quick for t in timings):
        yield "quick: below what is reportable"
    if any("EMULATED" in t.flags for t in timings):
        yield "emulated: says nothing of hardware"


def _samples(timing: Timing) -> list[tuple[int, ...]]:
    return [launch.latency_ns for launch in timing.launches]


def _timings(pair: Pair, limits: Limits) -> Iterator[Check]:
    new, old = (i.timing if i else None for i in pair)
    changes = {
        P50_CHANGE: limits.max_regression_percent,
        P90_CHANGE: None,
        P99_CHANGE: limits.max_p99_regression_percent,
    }
    ratios: Sequence[Estimate | None] = (None,) * 3
    if new and old:
        ratios = stats.percentile_ratios(_samples(new), _samples(old), (50, 90, 99))
    for (what, limit), ratio in zip(changes.items(), ratios, strict=True):
        yield from at_most(what, _scaled(ratio, 100, -100), limit)
    p50 = stats.percentile(_samples(new), 50) if new else None
    yield from at_most(P50, _scaled(p50, 1 / MS, 0), limits.max_p50_ms)
    peaks = [launch.peak_rss_bytes for launch in new.launches] if new else []
    known = [bytes_ for bytes_ in peaks if bytes_ is not None]
    peak = max(known) / MB if known and len(known) == len(peaks) else None
    yield from at_most(RSS, None if peak is None else Estimate(value=peak), limits.max_peak_rss_mb)


def _sizes(pair: Pair, limits: Limits) -> Iterator[Check]:
    assert pair.new is not None
    was = f"was {pair.old.file.size_bytes / MB:.3f}" if pair.old else ""
    yield from at_most(SIZE, Estimate(value=pair.new.file.size_bytes / MB), limits.max_size_mb, was)


def _accuracies(pair: Pair, limits: Limits) -> Iterator[Check]:
    new, old = (i.accuracy if i else None for i in pair)
    value = _interval(new) if new else None
    name = new.metric if new else "metric"
    below = None if value is None else Estimate(value=-value.value, low=_minus(value.high), high=_minus(value.low))
    floor = None if limits.min_accuracy is None else -limits.min_accuracy
    for check in at_most(name, below, floor):
        turned = {
            "value": -check.value,
            "low": _minus(check.high),
            "high": _minus(check.low),
            "limit": limits.min_accuracy,
        }
        yield check.model_copy(update=turned)
    yield from at_most(DROP, drop(old, new) if old and new else None, limits.max_drop_points)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _interval(one: Accuracy) -> Estimate:
    metric: MetricName = one.metric  # type: ignore[assignment]
    return stats_counts.interval(np.array(one.counts), np.array(one.labels), metric=metric, groups=one.groups or None)


def drop(old: Accuracy, new: Accuracy) -> Estimate:
    """Points lost, sample by sample."""
    metric: MetricName = new.metric  # type: ignore[assignment]
    counts = np.array(old.counts), np.array(new.counts)
    return stats_counts.drop(*counts, np.array(new.labels), metric=metric, groups=new.groups or None)


def _scaled(one: Estimate | None, factor: float, shift: float) -> Estimate | None:
    if one is None or one.low is None or one.high is None:
        return None
    return Estimate(value=factor * one.value + shift, low=factor * one.low + shift, high=factor * one.high + shift)


def at_most(what: str, found: Estimate | None, limit: float | None, note: str = "") -> Iterator[Check]:
    """One check, none where there is neither a value nor a limit: it holds where the whole interval is within."""
    if found is None:
        if limit is not None:
            yield Check(what=what, value=0, low=None, high=None, limit=limit, outcome="inconclusive", note="no value")
        return
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    outcome: Literal["holds", "fails", "inconclusive", "no limit"] = "no limit"
    if limit is not None:
        outcome = "holds" if high <= limit else "fails" if low > limit else "inconclusive"
    yield Check(what=what, value=found.value, low=found.low, high=found.high, limit=limit, outcome=outcome, note=note)


def _ordered(history: Sequence[Named], results: Sequence[Named]) -> list[Named]:
    """Releases before those that are compared, oldest first."""
    given = {(r.result.created, r.result.command) for r in results}
    earlier = [h for h in history if (h.result.created, h.result.command) not in given]
    return sorted(earlier, key=lambda one: one.result.created)


def _drifts(new: Item, old: Item, history: Sequence[Named], base: Result, drift: Drift) -> Iterator[Check]:
    """``history``: up to the last result, the new one among them."""
    found = list(_like(new, old, history, base))[-drift.releases :]
    if len(found) < 2:
        return
    timed = [(name, stats.nearest_rank(_pooled(i.timing), 0.5)) for name, i in found if i.timing and not flags_of(i)]
    if old.timing and len(timed) > 1 and not flags_of(old):
        shifts = latency_shifts(
            stats.nearest_rank(_pooled(old.timing), 0.5), [v for _, v in timed], drift.sigma_percent
        )
        yield _alarm(SLOWER, shifts, [name for name, _ in timed], drift)
    scored = [(name, i.accuracy.value) for name, i in found if i.accuracy]
    if old.accuracy and len(scored) > 1:
        shifts = accuracy_shifts(old.accuracy.value, [v for _, v in scored], drift.sigma_points)
        yield _alarm(WORSE, shifts, [name for name, _ in scored], drift)


def _like(new: Item, old: Item, history: Sequence[Named], base: Result) -> Iterator[tuple[str, Item]]:
    """The same file in each release that can be compared with the baseline."""
    for one in history:
        items = [i for i in one.result.items if i.role in JUDGED]
        found = match(new, [new], [i for i in items if i.device == new.device])
        if found and not list(differences(base, one.result, [Pair(found, old)], {})):
            yield one.name, found


def _pooled(timing: Timing) -> stats.Floats:
    return np.concatenate([np.asarray(s, np.float64) for s in _samples(timing)])


def _alarm(what: str, shifts: Sequence[float], names: Sequence[str], drift: Drift) -> Check:
    found = cusum(shifts, slack=drift.k, limit=drift.h)
    note = f"{len(names)} releases" + (f", alarm since {names[found.alarm]}" if found.alarm is not None else "")
    last = found.sums[-1]
    outcome: Literal["holds", "fails"] = "fails" if last > drift.h else "holds"
    return Check(what=what, value=last, low=None, high=None, limit=drift.h, outcome=outcome, note=note)
