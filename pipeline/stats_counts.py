"""Intervals of any metric that sums of counts make: one paired bootstrap over texts, or over groups of texts.

``counts`` are (N, k), a row for each sample; a metric is a function of their sums, so that replicates are a product of
matrices. Shares of right samples keep the closed forms of ``stats``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from distilledge.models import metrics_text
from distilledge.pipeline import stats
from distilledge.pipeline.recipe import MetricName
from distilledge.pipeline.stats import Estimate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REPLICATES = 2000
AT_ONCE = 4_000_000
"""Weights of a bootstrap that are held in memory at once."""


class Aggregate(NamedTuple):
    """A metric as a function of summed counts."""

    value: Callable[[Floats, Floats], Floats]
    """Sums (R, k) and numbers of samples (R,) -> (R,), fractions."""
    hit: int = 0
    """Column, of every ``width``, that one right answer more adds to."""
    miss: int | None = None
    """Column that one right answer less adds to; None: it takes from ``hit``."""
    width: int = 0
    """Columns of a class; 0: all of them are of one."""


def _mean(sums: Floats, samples: Floats) -> Floats:
    return np.asarray(sums[:, 0] / samples)


def _ratio(sums: Floats, _samples: Floats) -> Floats:
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def _f1(sums: Floats, _samples: Floats) -> Floats:
    return np.asarray(metrics_text.f1(sums))


def _macro_f1(sums: Floats, _samples: Floats) -> Floats:
    return np.asarray(metrics_text.macro_f1(sums.reshape(len(sums), -1, 3)))


AGGREGATES: dict[MetricName, Aggregate] = {
    "accuracy": Aggregate(_ratio),  # by token: right ones, all
    "macro_f1": Aggregate(_macro_f1, miss=2, width=3),
    "micro_f1": Aggregate(_f1, miss=2),
    "entity_f1": Aggregate(_f1, miss=2),
    "answer_f1": Aggregate(_mean),
}
"""Of metrics whose counts are no single 0 or 1."""


def closed(counts: Floats, metric: MetricName) -> stats.Metric | None:
    """The metric of ``stats`` that counts of one 0 or 1 for each sample have."""
    if metric == "balanced_accuracy":
        return "balanced_accuracy"
    return "accuracy" if counts.shape[1] == 1 and metric in ("accuracy", "exact_match") else None


def value(counts: Floats, labels: Ints, *, metric: MetricName) -> float:
    """The metric of all samples, as a fraction. ``labels``: the classes that balanced accuracy averages over."""
    if known := closed(counts, metric):
        return stats.metric_value(counts[:, 0] > 0.5, labels, known)
    return float(AGGREGATES[metric].value(counts.sum(axis=0)[None], np.array([float(len(counts))]))[0])


def interval(
    counts: Floats, labels: Ints, *, metric: MetricName, groups: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """The metric with its interval, as fractions.

    A bootstrap of counts that are all right has no width: a right and a wrong answer are added to each replicate on
    average, which at the ends is the rule of three.
    """
    if known := closed(counts, metric):
        return stats.metric_interval(counts[:, 0] > 0.5, labels, metric=known, groups=groups)
    clusters = _clusters(counts, groups)
    rng = np.random.default_rng(seed)
    sums = _draw(clusters, rng, REPLICATES)
    _shift(sums[:, :-1], None, AGGREGATES[metric], rng, rate=1.0, size=_size(clusters))
    found = _values(sums[:, :-1], sums[:, -1], metric)
    return stats.estimate(value(counts, labels, metric=metric), np.clip(found, 0, 1))


def drop(
    reference: Floats,
    candidate: Floats,
    labels: Ints,
    *,
    metric: MetricName,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """How many points ``candidate`` lies below ``reference`` on the same samples, as ``stats.paired_drop`` says it."""
    if known := closed(reference, metric):
        first, second = reference[:, 0] > 0.5, candidate[:, 0] > 0.5
        return stats.paired_drop(first, second, labels, metric=known, groups=groups, seed=seed)
    clusters = _clusters(np.hstack([reference, candidate]), groups)
    rng = np.random.default_rng(seed)
    sums = _draw(clusters, rng, REPLICATES)
    better, worse = np.hsplit(sums[:, :-1], 2)
    _shift(better, worse, AGGREGATES[metric], rng, rate=0.5, size=_size(clusters))
    draws = _values(better, sums[:, -1], metric) - _values(worse, sums[:, -1], metric)
    difference = value(reference, labels, metric=metric) - value(candidate, labels, metric=metric)
    return stats.estimate(100 * difference, 100 * draws)


def p_value(
    reference: Floats, candidate: Floats, *, metric: MetricName, groups: Sequence[str] | None = None, seed: int = 0
) -> float:
    """Two-sided p that the two models are the same: exact McNemar, or answers swapped at random (Noreen 1989)."""
    if closed(reference, metric):
        return stats.mcnemar(reference[:, 0] > 0.5, candidate[:, 0] > 0.5)
    clusters = _clusters(np.hstack([reference, candidate]), groups)
    width = reference.shape[1]
    first, second = clusters.types[:, :width], clusters.types[:, width:-1]
    swapped = np.random.default_rng(seed).binomial(clusters.counts, 0.5, (REPLICATES, len(first)))
    moved = swapped @ (second - first)
    samples = np.full(REPLICATES, float(len(reference)))
    draws = _values(reference.sum(0) + moved, samples, metric) - _values(candidate.sum(0) - moved, samples, metric)
    labels = np.zeros(len(reference), np.int64)
    found = value(reference, labels, metric=metric) - value(candidate, labels, metric=metric)
    return float((1 + (np.abs(draws) >= abs(found) - 1e-12).sum()) / (1 + REPLICATES))


class _Clusters(NamedTuple):
    """Summed counts of groups, equal ones once; the last column is the number of samples."""

    types: Floats
    """(T, k + 1)."""
    counts: Ints
    """How many groups are of each type (T,)."""


def _clusters(counts: Floats, groups: Sequence[str] | None) -> _Clusters:
    whole = np.hstack([counts, np.ones((len(counts), 1))])
    if groups is not None:
        owner = stats.clusters(groups, np.arange(len(counts)))
        summed = np.zeros((int(owner.max()) + 1, whole.shape[1]))
        np.add.at(summed, owner, whole)
        whole = summed
    types, numbers = np.unique(whole, axis=0, return_counts=True)
    return _Clusters(types, numbers.astype(np.int64))


def _size(clusters: _Clusters) -> float:
    """Samples of an average group."""
    return float(clusters.counts @ clusters.types[:, -1] / clusters.counts.sum())


def _draw(clusters: _Clusters, rng: np.random.Generator, replicates: int) -> Floats:
    """Sums of as many groups as there are, drawn with replacement (R, k + 1); equal groups are drawn as numbers."""
    total, rows = int(clusters.counts.sum()), max(1, AT_ONCE // len(clusters.counts))
    shares = clusters.counts / total
    parts = [
        rng.multinomial(total, shares, size=min(rows, replicates - start)) @ clusters.types
        for start in range(0, replicates, rows)
    ]
    return np.concatenate(parts)


def _shift(
    first: Floats, second: Floats | None, kind: Aggregate, rng: np.random.Generator, *, rate: float, size: float
) -> None:
    """Add ``rate`` disagreements on average in each direction, in place; without ``second`` answers right and wrong.

    As ``stats.paired_drop`` does, each as large as a group: a bootstrap of a handful of disagreements is too narrow.
    Classes share the rate; one that a replicate does not hold gets none.
    """
    width = kind.width or first.shape[1]
    classes = first.shape[1] // width
    up, down = rng.poisson(rate / classes, (2, len(first), classes)) * size
    if classes > 1:
        held = first.reshape(len(first), classes, width).sum(axis=2) > 0
        up, down = up * held, down * held
    hits = slice(kind.hit, None, width)
    first[:, hits] += up
    if second is not None:
        second[:, hits] += down
    if kind.miss is None:
        first[:, hits] -= 0 if second is not None else down
        return
    misses = slice(kind.miss, None, width)
    first[:, misses] += down
    if second is not None:
        second[:, misses] += up


def _values(sums: npt.NDArray[Any], samples: Floats, metric: MetricName) -> Floats:
    return AGGREGATES[metric].value(cast(Floats, sums), samples)
