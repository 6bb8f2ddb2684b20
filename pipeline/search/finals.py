"""What is measured of the students: finished ones by their own files, together; stopped ones as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from distilledge.models.base import Value
from distilledge.pipeline import stats_counts
from distilledge.pipeline.benchmark import QUICK_SAMPLES, samples_of
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.gate import MB, SHIP_ORDER, latency_ms, peak_rss_mb
from distilledge.pipeline.inventory import opened
from distilledge.pipeline.outcomes import classified
from distilledge.pipeline.record import ExportResult
from distilledge.pipeline.run import run_step
from distilledge.pipeline.search.candidates import Candidate
from distilledge.pipeline.search.fit import LAUNCHES, Ground
from distilledge.pipeline.search.fits import FitRow, device_checks, outcome_of
from distilledge.pipeline.search.halving import Judged
from distilledge.pipeline.search.result import Point
from distilledge.pipeline.stats import Estimate, wilson
from distilledge.pipeline.store import Stored
from distilledge.targets.base import Measurement
from distilledge.targets.devices import Device
from distilledge.targets.measure import Candidate as File
from distilledge.targets.measure import measure, score

VERSION = 1


class Final(Value):
    """One file of a finished student, in the order of ``files_of``."""

    metric: Estimate
    """Points on the validation split."""
    timing: Measurement


class Finals(Value):
    items: tuple[Final, ...]


class Own:
    """A file of a finished student: where it is, and of which."""

    def __init__(self, one: Candidate, chain: Chain, stored: Stored[ExportResult], precision: str) -> None:
        self.one, self.chain, self.stored = one, chain, stored
        exported = stored.value.precision(precision)
        assert exported is not None
        self.exported, self.runtime = exported, stored.value.runtime
        name = f"{one.model} {one.size} {self.runtime} {precision}"
        units = chain.recipe.measure.units.request(self.runtime)
        self.file = File(name=name, role="student", directory=str(stored.path), exported=exported, units=units)


def points_of(chains: Mapping[Candidate, Chain], fits: Sequence[FitRow], ground: Ground) -> list[Point]:
    """A point for every file of the students that were trained to the end; what is not there yet is exported."""
    files = [own for one, chain in chains.items() for own in files_of(one, chain)]
    first = next(iter(chains.values()))
    settings = ground.recipe.measure
    inputs: dict[str, Any] = {
        "files": {own.file.name: own.stored.fingerprint for own in files},
        "data": first.done["data"].fingerprint,
        "metric": ground.recipe.metric,
        "seed": ground.recipe.seed,
        "device": ground.card,
        "measure": {"threads": settings.threads[0], "warmup": settings.warmup},
        "units": settings.units.model_dump(mode="json"),
    }
    made = ground.store.once("finals", VERSION, inputs, Finals, lambda _out, _partial: _measured(files, ground))
    return [_point(own, found, files, fits) for own, found in zip(files, made.value.items, strict=True)]


def files_of(one: Candidate, chain: Chain) -> Iterable[Own]:
    for step in chain.steps:
        if step.kind != "export" or step.role != "student":
            continue
        if step.name not in chain.done:
            run_step(chain, step)
        if step.name in chain.done:  # else it is optional, and could not be made
            stored = chain.done[step.name]
            yield from (Own(one, chain, stored, file.precision) for file in stored.value.files)


def _measured(files: Sequence[Own], ground: Ground) -> Finals:
    """Answers of each file to the validation split; then the files of each runtime in turn, in one run."""
    with opened(ground.recipe.measure.device) as device:
        values = [_metric(own, ground, device) for own in files]
        timings = {m.name: m for m in _timed(files, ground, device)}
    pairs = zip(files, values, strict=True)
    return Finals(items=tuple(Final(metric=value, timing=timings[own.file.name]) for own, value in pairs))


def _timed(files: Sequence[Own], ground: Ground, device: Device) -> Iterable[Measurement]:
    settings = ground.recipe.measure
    for runtime in dict.fromkeys(own.runtime for own in files):
        group = [own for own in files if own.runtime == runtime]
        yield from measure(
            [own.file for own in group],
            device,
            threads=settings.threads[0],
            samples=QUICK_SAMPLES,
            min_seconds=0.0,
            launches=LAUNCHES,
            warmup=settings.warmup,
            end_to_end=0,
            quick=True,
            inputs=samples_of(*group[0].chain.inputs("validation")),
        )


def _metric(own: Own, ground: Ground, device: Device) -> Estimate:
    recipe, given = ground.recipe, own.chain.inputs("validation")
    with TemporaryDirectory(prefix="distilledge-finals-") as folder:
        found = score(own.file, device, inputs=samples_of(*given), out=Path(folder))
        logits = np.load(Path(folder) / found.logits)
    labels = np.asarray([s.label for s in given[0]], np.int64)
    rows = np.flatnonzero(labels >= 0)
    counts = classified(recipe.metric, logits[rows], labels[rows], own.exported.classes).counts
    groups = [given[0][int(i)].group for i in rows]
    named = groups if any(groups) else None
    return _points(stats_counts.interval(counts, labels[rows], metric=recipe.metric, groups=named, seed=recipe.seed))


def _points(found: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Estimate(value=100 * found.value, low=low, high=high)


def _point(own: Own, found: Final, files: Sequence[Own], fits: Sequence[FitRow]) -> Point:
    recipe, exported = own.chain.recipe, own.exported
    p50 = latency_ms(found.timing, 50, recipe.seed)
    assert p50 is not None
    checks = device_checks(recipe, exported, found.timing, recipe.budget_of(exported.runtime))
    mates = [o.exported.precision for o in files if (o.one, o.runtime) == (own.one, own.runtime)]
    fitted = _fitted(fits, own.one, own.runtime, exported.precision)
    epochs = recipe.student.training.epochs
    return Point(
        model=own.one.model,
        size=own.one.size,
        runtime=own.runtime,
        precision=exported.precision,
        epochs=own.chain.done["student"].value.epochs,
        of=epochs,
        metric=found.metric,
        p50=p50,
        fitted_p50=fitted.p50.value if fitted is not None and fitted.p50 is not None else None,
        size_mb=exported.size_bytes / MB,
        peak_rss_mb=peak_rss_mb(found.timing),
        checks=checks,
        outcome=outcome_of(checks),
        flags=found.timing.flags,
        ships=exported.precision == min(mates, key=SHIP_ORDER.index),
    )


def _fitted(fits: Sequence[FitRow], one: Candidate, runtime: str, precision: str) -> FitRow | None:
    return next((r for r in fits if (r.candidate, r.runtime, r.precision) == (one, runtime, precision)), None)


def stopped_points(
    chains: Mapping[Candidate, Chain], rounds: Mapping[Candidate, list[Judged]], fits: Sequence[FitRow]
) -> list[Point]:
    """Of students that were not trained to the end: the float network's metric then, ``fit``'s fp32 file."""
    made = []
    for one, judged in rounds.items():
        recipe, last = chains[one].recipe, judged[-1]
        for row in fits:
            if row.candidate != one or row.precision != "fp32" or row.p50 is None or row.size_mb is None:
                continue
            point = Point(
                model=one.model,
                size=one.size,
                runtime=row.runtime,
                precision="fp32",
                epochs=last.epochs,
                of=recipe.student.training.epochs,
                metric=_stopped(last, chains[one]),
                p50=row.p50,
                fitted_p50=row.p50.value,
                size_mb=row.size_mb,
                peak_rss_mb=row.peak_rss_mb,
                checks=row.checks,
                outcome=row.outcome,
                flags=row.flags,
            )
            made.append(point)
    return made


def _stopped(last: Judged, chain: Chain) -> Estimate:
    """With Wilson's interval where the metric is the share of right answers; without its pictures no other is known."""
    if chain.recipe.metric != "accuracy":
        return Estimate(value=100 * last.metric)
    many = sum(s.label >= 0 for s in chain.samples("validation"))
    low, high = wilson(last.metric * many, many)
    return Estimate(value=100 * last.metric, low=100 * low, high=100 * high)
