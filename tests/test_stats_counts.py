"""Intervals of metrics that sums of counts make, against loops over replicates and simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilledge.models import metrics_text
from distilledge.pipeline import stats, stats_counts

METRICS = ("entity_f1", "micro_f1", "macro_f1", "answer_f1", "accuracy")
NONE = np.zeros(0, np.int64)


def counts_of(metric: str, n: int, quality: float, rng: np.random.Generator, hard: np.ndarray | None = None):
    """Counts of a model that is right on about ``quality`` of everything; samples of a high ``hard`` are lost first."""
    lost = (rng.random(n) if hard is None else hard) > quality
    if metric == "answer_f1":
        return np.where(lost, rng.choice([0, 0.5, 2 / 3], n), 1.0)[:, None]
    if metric == "accuracy":
        words = np.full(n, 10)
        return np.stack([words - lost * rng.integers(1, 6, n), words], axis=1).astype(float)
    if metric == "macro_f1":
        labels = np.arange(n) % 4
        return metrics_text.class_counts(np.where(lost, (labels + 1) % 4, labels), labels, 4).reshape(n, -1)
    there = np.arange(n) % 3 + 1
    missed = lost * rng.integers(1, there + 1)
    return np.stack([there - missed, lost * rng.integers(0, 2, n), missed], axis=1).astype(float)


def brute(first, second, metric, groups, replicates, seed):
    """The same bootstrap as a loop over drawn samples, without what is added for few disagreements."""
    rng = np.random.default_rng(seed)
    names = np.arange(len(first)) if groups is None else np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(names == g) for g in range(names.max() + 1)]
    draws = []
    for _ in range(replicates):
        rows = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        value = [stats_counts.value(c[rows], NONE, metric=metric) for c in (first, second)]
        draws.append(100 * (value[0] - value[1]))
    return np.quantile(draws, [0.025, 0.975])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_drop_is_the_bootstrap_by_hand(metric, grouped):
    rng = np.random.default_rng(3)
    hard = rng.random(600)
    first, second = counts_of(metric, 600, 0.8, rng, hard), counts_of(metric, 600, 0.7, rng, hard)
    groups = [f"g{i // 4}" for i in range(600)] if grouped else None
    found = stats_counts.drop(first, second, NONE, metric=metric, groups=groups)
    values = [stats_counts.value(c, NONE, metric=metric) for c in (first, second)]
    assert found.value == pytest.approx(100 * (values[0] - values[1]))
    low, high = brute(first, second, metric, groups, 2000, 4)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


@pytest.mark.parametrize("metric", METRICS)
def test_interval_is_the_bootstrap_by_hand(metric):
    counts = counts_of(metric, 600, 0.75, np.random.default_rng(5))
    found = stats_counts.interval(counts, NONE, metric=metric)
    zero = np.zeros_like(counts)
    low, high = brute(counts, zero, metric, None, 2000, 6)
    if metric != "accuracy":  # of which nothing over nothing is 0 too
        assert stats_counts.value(zero, NONE, metric=metric) == 0
    assert (100 * found.low, 100 * found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


@pytest.mark.parametrize("metric", METRICS)
def test_interval_covers_the_true_drop(metric):
    """Two models that differ by chance alone: 95 % of the intervals hold 0."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(100):
        pair = [counts_of(metric, 150, 0.9, rng) for _ in range(2)]
        found = stats_counts.drop(*pair, NONE, metric=metric, seed=seed)
        held += found.low <= 0 <= found.high
    assert held >= 90, held


@pytest.mark.parametrize("metric", METRICS)
def test_no_disagreement_is_not_certainty(metric):
    counts = counts_of(metric, 50, 1.0, np.random.default_rng(8))
    found = stats_counts.drop(counts, counts, NONE, metric=metric)
    assert found.value == 0
    assert found.low < 0 < found.high
    perfect = stats_counts.interval(counts, NONE, metric=metric)
    assert perfect.low < perfect.value == perfect.high == 1
    whole = [f"g{i // 5}" for i in range(50)]
    grouped = stats_counts.drop(counts, counts, NONE, metric=metric, groups=whole)
    assert grouped.high > 2 * found.high


def test_an_entity_of_fifty_is_two_points():
    """Half a disagreement each way on average: two are in the interval, as ``stats.paired_drop`` has it."""
    counts = np.tile([1.0, 0, 0], (50, 1))
    assert stats_counts.drop(counts, counts, NONE, metric="entity_f1").high == pytest.approx(100 * 2 / 50, abs=2.1)


@given(st.integers(0, 10_000), st.sampled_from(METRICS))
@settings(max_examples=30, deadline=None)
def test_drop_is_seeded_antisymmetric_and_holds_its_value(seed, metric):
    rng = np.random.default_rng(seed)
    first, second = counts_of(metric, 60, 0.8, rng), counts_of(metric, 60, 0.7, rng)
    forth, back = (stats_counts.drop(*p, NONE, metric=metric) for p in ((first, second), (second, first)))
    assert forth.value == pytest.approx(-back.value)
    assert forth.low <= forth.value <= forth.high
    assert forth == stats_counts.drop(first, second, NONE, metric=metric)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "exact_match"])
def test_shares_of_right_samples_keep_their_closed_forms(metric):
    rng = np.random.default_rng(9)
    first, second = (rng.random((200, 1)) < p for p in (0.9, 0.8))
    labels = rng.integers(0, 3, 200)
    known = "accuracy" if metric == "exact_match" else metric
    pair = (first[:, 0], second[:, 0])
    expected = stats.paired_drop(*pair, labels, metric=known, seed=5)
    assert stats_counts.drop(first * 1.0, second * 1.0, labels, metric=metric, seed=5) == expected
    plain = stats.metric_interval(pair[0], labels, metric=known)
    assert stats_counts.interval(first * 1.0, labels, metric=metric) == plain
    assert stats_counts.p_value(first * 1.0, second * 1.0, metric=metric) == stats.mcnemar(*pair)


def test_p_of_swaps_is_that_of_all_swaps():
    """Every one of the 2^10 ways to swap ten texts, counted."""
    rng = np.random.default_rng(10)
    first, second = counts_of("entity_f1", 10, 0.9, rng), counts_of("entity_f1", 10, 0.4, rng)
    masks = (np.arange(1024)[:, None] >> np.arange(10)) & 1 == 1
    found = []
    for mask in masks:
        a, b = np.where(mask[:, None], second, first), np.where(mask[:, None], first, second)
        found.append(metrics_text.f1(a.sum(0)) - metrics_text.f1(b.sum(0)))
    exact = np.mean(np.abs(found) >= abs(found[0]) - 1e-12)
    assert stats_counts.p_value(first, second, metric="entity_f1") == pytest.approx(exact, abs=0.03)


def test_p_is_small_for_a_real_difference_and_spread_out_for_none():
    rng = np.random.default_rng(11)
    first, second = counts_of("answer_f1", 300, 0.9, rng), counts_of("answer_f1", 300, 0.7, rng)
    assert stats_counts.p_value(first, second, metric="answer_f1") < 0.002
    assert stats_counts.p_value(first, first, metric="answer_f1") == 1
    pairs = [[counts_of("answer_f1", 80, 0.8, rng) for _ in range(2)] for _ in range(100)]
    assert sum(stats_counts.p_value(*pair, metric="answer_f1") < 0.05 for pair in pairs) <= 12


def test_many_texts_and_classes_take_seconds():
    rng = np.random.default_rng(12)
    labels = np.arange(5000) % 150
    pair = [
        metrics_text.class_counts(
            np.where(rng.random(5000) < 0.1, rng.integers(0, 150, 5000), labels), labels, 150
        ).reshape(5000, -1)
        for _ in range(2)
    ]
    started = time.perf_counter()
    stats_counts.drop(*pair, labels, metric="macro_f1")
    first, second = (rng.random((10_000, 1)) for _ in range(2))
    stats_counts.drop(first, second, NONE, metric="answer_f1")
    assert time.perf_counter() - started < 20
