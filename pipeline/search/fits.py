"""What ``fit`` found: a row for each file, judged by the budgets that say nothing of accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from distilledge.models.base import Value
from distilledge.pipeline.gate import MB, P50, RSS, SHIP_ORDER, SIZE, check_of, latency_ms, peak_rss_mb, undecided
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.record import Check, ExportResult
from distilledge.pipeline.search.candidates import Candidate
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Exported, Measurement

Outcome = Literal["fits", "over", "inconclusive"]
WORST_FIRST: tuple[Outcome, ...] = ("over", "inconclusive", "fits")


class FitRow(Value):
    """One file with random weights."""

    model: str
    size: int
    """Pixels of each side."""
    runtime: str
    precision: str
    p50: Estimate | None = None
    """Milliseconds, model only."""
    size_mb: float | None = None
    peak_rss_mb: float | None = None
    """None where the device does not tell it."""
    checks: tuple[Check, ...] = ()
    outcome: Outcome
    """``over``: a limit is exceeded with the whole interval; ``inconclusive``: the interval holds a limit, or a flag of
    the timing can have decided it."""
    flags: tuple[str, ...] = ()
    error: str = ""
    """Why it cannot be run there."""

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.model, self.size)

    @property
    def word(self) -> str:
        """The outcome, or that there is nothing to keep."""
        return self.outcome if self.checks or self.error else "no limit"

    @property
    def why(self) -> str:
        """Each limit that is not certainly kept, and by how much."""
        return self.error or "; ".join(words(c) for c in self.checks if c.outcome in ("fails", "inconclusive"))


class FitResult(Value):
    device: str
    card: dict[str, Any]
    classes: int
    rows: tuple[FitRow, ...]


def row_of(recipe: Recipe, one: Candidate, files: ExportResult, timing: Measurement, budget: Budget) -> FitRow:
    exported = files.precision(timing.precision)
    assert exported is not None
    checks = device_checks(recipe, exported, timing, budget)
    return FitRow(
        model=one.model,
        size=one.size,
        runtime=files.runtime,
        precision=timing.precision,
        p50=latency_ms(timing, 50, recipe.seed),
        size_mb=exported.size_bytes / MB,
        peak_rss_mb=peak_rss_mb(timing),
        checks=checks,
        outcome=outcome_of(checks),
        flags=timing.flags,
    )


def unfit(one: Candidate, runtime: str, error: str) -> FitRow:
    return FitRow(model=one.model, size=one.size, runtime=runtime, precision="-", outcome="over", error=error)


def device_checks(recipe: Recipe, exported: Exported, timing: Measurement, budget: Budget) -> tuple[Check, ...]:
    """Latency, size and memory against their limits; what the device does not tell is inconclusive where it is asked
    for."""
    found = {
        P50: (latency_ms(timing, 50, recipe.seed), budget.max_latency_ms),
        SIZE: (Estimate(value=exported.size_bytes / MB), budget.max_size_mb),
        RSS: (None if (rss := peak_rss_mb(timing)) is None else Estimate(value=rss), budget.max_peak_rss_mb),
    }
    checks = []
    for what, (estimate, limit) in found.items():
        if limit is None:
            continue
        if estimate is None:
            note = "the device does not tell it"
            checks.append(
                Check(what=what, value=0.0, low=None, high=None, limit=limit, outcome="inconclusive", note=note)
            )
            continue
        check = check_of(what, estimate, limit)
        checks.append(undecided(check, timing) if what == P50 else check)
    return tuple(checks)


def outcome_of(checks: Sequence[Check]) -> Outcome:
    outcomes = {check.outcome for check in checks}
    if "fails" in outcomes:
        return "over"
    return "inconclusive" if "inconclusive" in outcomes else "fits"


def words(check: Check) -> str:
    """Such as ``p50 latency (ms) 3.2 (3.1 to 3.4), limit 2: 1.6 times``."""
    if check.note and not check.value:
        return f"{check.what}: {check.note}"
    interval = "" if check.low is None or check.high is None else f" ({check.low:.3g} to {check.high:.3g})"
    limit = check.limit or 0.0
    times = f": {check.value / limit:.2f} times" if limit else ""
    note = f" [{check.note.strip('; ')}]" if check.note else ""
    return f"{check.what} {check.value:.3g}{interval}, limit {limit:g}{times}{note}"


def of_candidate(rows: Sequence[FitRow], *, climbs: bool) -> Outcome:
    """Whether a student may be trained: the worst of its runtimes.

    In a runtime the file decides that it ships, the most compressed one. Where the quantization ladder may choose
    another, also one that was not timed here, only a limit that no file keeps is against it.
    """
    worst: list[Outcome] = []
    for runtime in dict.fromkeys(row.runtime for row in rows):
        own = sorted((r for r in rows if r.runtime == runtime), key=_ships)
        worst.append(_best_of_each(own) if climbs else own[0].outcome)
    return next(o for o in WORST_FIRST if o in worst)


def _best_of_each(own: Sequence[FitRow]) -> Outcome:
    """The worst limit, each judged by the file that keeps it best."""
    if any(row.error for row in own):
        return "over"
    by_limit = zip(*(row.checks for row in own), strict=True)
    best = [next(o for o in reversed(WORST_FIRST) if o in [outcome_of([c]) for c in checks]) for checks in by_limit]
    return next((o for o in WORST_FIRST if o in best), "fits")


def _ships(row: FitRow) -> int:
    return SHIP_ORDER.index(row.precision) if row.precision in SHIP_ORDER else -1


def by_candidate(rows: Sequence[FitRow]) -> dict[Candidate, list[FitRow]]:
    found: dict[Candidate, list[FitRow]] = {}
    for row in rows:
        found.setdefault(row.candidate, []).append(row)
    return found
