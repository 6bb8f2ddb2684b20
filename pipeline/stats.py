"""The statistics behind every interval of a report: closed forms and seeded bootstraps, numpy only.

All intervals are two-sided 95 %. Accuracies are fractions, drops are points (100 times a fraction), latencies keep
their unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from distilledge.models.base import Value

Metric = Literal["accuracy", "balanced_accuracy"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
P99_SAMPLES = 1000
"""Fewer samples than this hold ten or fewer above the 99th percentile: no p99 is stated."""
GRID = 2048
"""Order statistics kept by a latency bootstrap: exact up to this many samples, above to 0.05 % of the ranks."""
DRAWS = (0.025, 0.975)


class Estimate(Value):
    """A value with its 95 % interval; ``low`` and ``high`` are None where the value is exact."""

    value: float
    low: float | None = None
    high: float | None = None


class Bin(Value):
    """One bar of a reliability diagram: pictures whose top-1 probability lies in (``low``, ``low`` + width]."""

    low: float
    count: int
    confidence: float
    """Mean top-1 probability."""
    accuracy: float


class _Stratum(NamedTuple):
    """Clusters of one class as (sum of differences, pictures) types with how often each occurs."""

    types: npt.NDArray[Any]  # (T, 2)
    counts: Ints  # (T,)


# --- latency ---------------------------------------------------------------------------------------------------------


def percentile(
    launches: Sequence[npt.ArrayLike], q: float, *, seed: int = 0, replicates: int = 1000
) -> Estimate | None:
    """One of ``percentiles``."""
    return percentiles(launches, (q,), seed=seed, replicates=replicates)[0]


def percentiles(
    launches: Sequence[npt.ArrayLike], qs: Sequence[float], *, seed: int = 0, replicates: int = 1000
) -> tuple[Estimate | None, ...]:
    """Percentiles ``qs`` (0..100) of all launches together, with block-bootstrap intervals, in the samples' unit.

    Launches are resampled, then blocks within each, so that both autocorrelation and differences from launch to launch
    widen the interval. None for q >= 99 below 1,000 samples, or without samples.
    """
    series = _series(launches)
    if not series:
        return (None,) * len(qs)
    pooled = np.concatenate(series)
    draws = _quantile_draws(series, [q / 100 for q in qs], np.random.default_rng(seed), replicates)
    return tuple(
        None if q >= 99 and len(pooled) < P99_SAMPLES else estimate(nearest_rank(pooled, q / 100), drawn)
        for q, drawn in zip(qs, draws, strict=True)
    )


def median_ratio(
    numerator: Sequence[npt.ArrayLike], denominator: Sequence[npt.ArrayLike], *, seed: int = 0, replicates: int = 1000
) -> Estimate | None:
    """Ratio of the medians of two sets of launches, each resampled on its own; None without samples."""
    return percentile_ratios(numerator, denominator, (50,), seed=seed, replicates=replicates)[0]


def percentile_ratios(
    numerator: Sequence[npt.ArrayLike],
    denominator: Sequence[npt.ArrayLike],
    qs: Sequence[float],
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> tuple[Estimate | None, ...]:
    """Ratios of percentiles ``qs`` (0..100), as ``median_ratio``; None for q >= 99 below 1,000 samples of either."""
    top, bottom = _series(numerator), _series(denominator)
    if not top or not bottom:
        return (None,) * len(qs)
    rng, shares = np.random.default_rng(seed), [q / 100 for q in qs]
    above, below = (_quantile_draws(series, shares, rng, replicates) for series in (top, bottom))
    first, second = np.concatenate(top), np.concatenate(bottom)
    few = min(len(first), len(second)) < P99_SAMPLES
    return tuple(
        None if q >= 99 and few else estimate(nearest_rank(first, q / 100) / nearest_rank(second, q / 100), a / b)
        for q, a, b in zip(qs, above, below, strict=True)
    )


def nearest_rank(samples: Floats, q: float) -> float:
    """The smallest sample with at least the share ``q`` of all samples at or below it."""
    return float(np.quantile(samples, q, method="inverted_cdf"))


def block_length(series: Floats) -> int:
    """Samples in a block, from the lag-1 autocorrelation r of the ranks: n^(1/3) (sqrt(6) r / (1 - r^2))^(2/3).

    Carlstein (1986), for an AR(1) series; ranks keep a single slow sample from hiding the rest. Never below n^(1/3);
    there are 10 to 200 blocks to draw from, however long the series.
    """
    n = len(series)
    if n < 20:
        return 1
    ranks = series.argsort(kind="stable").argsort(kind="stable") - (n - 1) / 2
    r = min(0.99, max(0.0, float(ranks[:-1] @ ranks[1:] / (ranks @ ranks))))
    length = n ** (1 / 3) * max(1.0, (math.sqrt(6) * r / (1 - r * r)) ** (2 / 3))
    return int(max(math.ceil(n / 200), min(math.ceil(length), n // 10)))


def _series(launches: Sequence[npt.ArrayLike]) -> list[Floats]:
    arrays = [np.asarray(launch, np.float64) for launch in launches]
    return [a for a in arrays if a.size]


def _quantile_draws(
    series: list[Floats], qs: Sequence[float], rng: np.random.Generator, replicates: int
) -> list[Floats]:
    """Bootstrap replicates of quantiles: sums of drawn blocks' counts of samples <= t over a grid of thresholds t."""
    pooled = np.sort(np.concatenate(series))
    grid = pooled if len(pooled) <= GRID else pooled[np.linspace(0, len(pooled) - 1, GRID).round().astype(int)]
    blocks = [_block_counts(s, grid) for s in series]
    drawn = _draw_blocks([len(b) for b in blocks], rng, replicates)  # (R, blocks)
    at_or_below = drawn @ np.concatenate(blocks)  # (R, grid)
    sizes = at_or_below[:, -1:]
    return [grid[np.argmax(at_or_below >= q * sizes * (1 - 1e-6), axis=1)] for q in qs]


def _block_counts(series: Floats, grid: Floats) -> npt.NDArray[np.float32]:
    """(blocks, grid): how many samples of each block are <= each threshold."""
    count = len(series) // block_length(series)
    counts = np.zeros((count, len(grid) + 1), np.float32)
    rank = np.searchsorted(grid, series, side="left")  # the first threshold >= sample
    np.add.at(counts, (_owners(len(series), count), rank), 1)
    return np.cumsum(counts[:, :-1], axis=1, dtype=np.float32)


def _owners(samples: int, blocks: int) -> Ints:
    """The block of each sample: as even as the lengths allow."""
    return np.arange(samples) * blocks // samples


def _draw_blocks(blocks: list[int], rng: np.random.Generator, replicates: int) -> npt.NDArray[np.float32]:
    """(R, all blocks): how often each block is drawn, launches first, then as many blocks as the average launch has."""
    counts, total = np.array(blocks), sum(blocks)
    starts = np.cumsum(counts) - counts
    launch = rng.integers(len(blocks), size=(replicates, len(blocks), 1))
    share = rng.random((replicates, len(blocks), -(-total // len(blocks))), np.float32)
    drawn = starts[launch] + np.minimum((share * counts[launch]).astype(np.int64), counts[launch] - 1)
    rows = np.arange(replicates)[:, None] * total
    flat = np.bincount((drawn.reshape(replicates, -1) + rows).ravel(), minlength=replicates * total)
    return flat.reshape(replicates, total).astype(np.float32)


# --- accuracy --------------------------------------------------------------------------------------------------------


def metric_value(correct: Bools, labels: Ints, metric: Metric) -> float:
    """Accuracy, or the mean of the recalls of the classes that occur, as a fraction."""
    if metric == "accuracy":
        return float(correct.mean())
    return float(np.mean([correct[labels == k].mean() for k in np.unique(labels)]))


def metric_interval(correct: Bools, labels: Ints, *, metric: Metric, groups: Sequence[str] | None = None) -> Estimate:
    """The metric with a closed-form interval: Wilson (1927) for accuracy, combined by MOVER for balanced accuracy.

    MOVER: Zou & Donner (2008), eq. 2, over the classes' Wilson intervals. Pictures of one group count as one picture,
    which is the careful end: they are taken to agree with each other fully.
    """
    strata = _strata(labels, metric)
    parts = [_recall(correct[s], clusters(groups, s)) for s in strata]
    value = float(np.mean([p.value for p in parts]))
    below = math.sqrt(sum((p.value - (p.low or 0.0)) ** 2 for p in parts)) / len(parts)
    above = math.sqrt(sum(((p.high or 0.0) - p.value) ** 2 for p in parts)) / len(parts)
    return Estimate(value=value, low=max(0.0, value - below), high=min(1.0, value + above))


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson (1927) score interval of a proportion."""
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(reference: Bools, candidate: Bools) -> float:
    """Two-sided exact p that neither model is right more often than the other on the same pictures (McNemar 1947)."""
    only_reference = int((reference & ~candidate).sum())
    only_candidate = int((candidate & ~reference).sum())
    n, k = only_reference + only_candidate, min(only_reference, only_candidate)
    term, tail = 1, 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def paired_drop(
    reference: Bools,
    candidate: Bools,
    labels: Ints,
    *,
    metric: Metric,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> Estimate:
    """How many points ``candidate`` lies below ``reference`` on the same pictures (negative: above), paired bootstrap.

    Groups are drawn whole (cluster bootstrap; a picture of its own where no group is given), for balanced accuracy
    within each class. Clusters of the same type move the drop alike, so they are drawn as counts of types: the same
    distribution, faster. A plain bootstrap of a handful of disagreements is too narrow, and of none has no width at
    all; as Agresti & Min (2005) do, half a disagreement is added in each direction, shared among the classes.
    """
    difference = reference.astype(np.int64) - candidate.astype(np.int64)
    rng = np.random.default_rng(seed)
    strata = _strata(labels, metric)
    draws = np.zeros(replicates)
    for rows in strata:
        draws += _drop_draws(_types(difference[rows], clusters(groups, rows)), len(strata), rng, replicates)
    value = metric_value(reference, labels, metric) - metric_value(candidate, labels, metric)
    return estimate(100 * value, 100 * draws / len(strata))


def samples_needed(drop: Estimate, margin: float, pictures: int) -> int | None:
    """How many more pictures would decide whether ``drop`` exceeds ``margin``, if the drop stays what it is.

    The interval's half-width shrinks with the root of the number of pictures. None where the drop is so near the margin
    that more than a hundred times as many would be needed.
    """
    if drop.low is None or drop.high is None:
        return None
    half = drop.high - drop.value if drop.value <= margin else drop.value - drop.low
    distance = abs(margin - drop.value)
    if distance == 0 or (half / distance) ** 2 > 100:
        return None
    return max(1, math.ceil(pictures * (half / distance) ** 2) - pictures)


def reliability(confidence: Floats, correct: Bools, bins: int = 10) -> tuple[tuple[Bin, ...], float]:
    """Bars of a reliability diagram and the expected calibration error (Guo et al. 2017, eq. 3), a fraction."""
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    made = []
    for index in np.unique(which):
        rows = which == index
        made.append(
            Bin(
                low=index / bins,
                count=int(rows.sum()),
                confidence=float(confidence[rows].mean()),
                accuracy=float(correct[rows].mean()),
            )
        )
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in made) / max(1, len(correct))
    return tuple(made), float(error)


def _strata(labels: Ints, metric: Metric) -> list[Ints]:
    """Rows that are weighted as one: all pictures, or those of each class."""
    if metric == "accuracy":
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == k) for k in np.unique(labels)]


def clusters(groups: Sequence[str] | None, rows: Ints) -> Ints:
    """Cluster index of each of the rows; a row without a group is a cluster of its own."""
    if groups is None:
        return np.arange(len(rows))
    names = [groups[i] or f"\0{i}" for i in rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _recall(correct: Bools, clusters: Ints) -> Estimate:
    n = int(clusters.max()) + 1
    value = float(correct.mean())
    low, high = wilson(value * n, n)
    return Estimate(value=value, low=low, high=high)


def _types(difference: Ints, clusters: Ints) -> _Stratum:
    pairs = np.stack([np.bincount(clusters, weights=difference), np.bincount(clusters)], axis=1)
    types, counts = np.unique(pairs, axis=0, return_counts=True)
    return _Stratum(types, counts.astype(np.int64))


def _drop_draws(stratum: _Stratum, strata: int, rng: np.random.Generator, replicates: int) -> Floats:
    """Replicates of one stratum's mean difference, with the half disagreement in each direction."""
    clusters = int(stratum.counts.sum())
    drawn = rng.multinomial(clusters, stratum.counts / clusters, size=replicates)  # (R, T)
    sums = drawn @ stratum.types  # (R, 2)
    added = rng.poisson(0.5 / strata, (replicates, 2)) @ np.array([1.0, -1.0])
    return np.asarray(sums[:, 0] / sums[:, 1] + added / clusters)


def estimate(value: float, draws: npt.NDArray[Any]) -> Estimate:
    """The percentile interval, which always holds the value itself."""
    low, high = np.quantile(draws, DRAWS)
    return Estimate(value=value, low=min(value, float(low)), high=max(value, float(high)))
