"""Statistics against scipy, closed forms and simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference
from sklearn.metrics import balanced_accuracy_score

from distilledge.pipeline import stats


def ar1(n: int, r: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=n)
    out = np.empty(n)
    out[0] = noise[0] / np.sqrt(1 - r * r)
    for i in range(1, n):
        out[i] = r * out[i - 1] + noise[i]
    return out


def test_percentile_is_the_nearest_rank_and_lies_in_its_interval():
    samples = np.random.default_rng(0).gamma(9, 1e5, 1500)
    for q in (50, 90, 99):
        found = stats.percentile([samples[:700], samples[700:]], q)
        assert found is not None
        assert found.value == np.quantile(samples, q / 100, method="inverted_cdf")
        assert found.low <= found.value <= found.high
        assert found.low < found.high


def test_p99_is_refused_below_a_thousand_samples():
    assert stats.percentile([np.arange(999)], 99) is None
    assert stats.percentile([np.arange(500), np.arange(500)], 99) is not None
    assert stats.percentile([np.arange(999)], 90) is not None
    assert stats.percentile([], 50) is None
    assert stats.percentile([[]], 50) is None
    assert [e is None for e in stats.percentiles([np.arange(500)], (50, 90, 99))] == [False, False, True]


def test_percentile_is_seeded_and_exact_for_constants():
    samples = [np.random.default_rng(1).normal(10, 1, 400)]
    assert stats.percentile(samples, 50, seed=3) == stats.percentile(samples, 50, seed=3)
    assert stats.percentile(samples, 50, seed=3) != stats.percentile(samples, 50, seed=4)
    assert stats.percentile([np.full(50, 7)], 50) == stats.Estimate(value=7, low=7, high=7)


def test_blocks_keep_autocorrelation():
    """The interval of a correlated series covers the true median; drawing single samples covers it in 54 %."""
    rng = np.random.default_rng(2)
    held, widths = 0, []
    for seed in range(60):
        found = stats.percentile([ar1(1000, 0.8, rng)], 50, seed=seed, replicates=400)
        held += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    assert held >= 50, held  # measured over 200: 90 %
    independent = [stats.percentile([rng.permutation(ar1(1000, 0.8, rng))], 50, replicates=400) for _ in range(10)]
    assert np.mean(widths) > 1.6 * np.mean([e.high - e.low for e in independent])
    assert stats.block_length(ar1(1000, 0.9, rng)) > stats.block_length(rng.normal(size=1000)) >= 10


def test_launches_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    alike = stats.percentile([rng.normal(10, 0.1, 300) for _ in range(3)], 50)
    apart = stats.percentile([rng.normal(centre, 0.1, 300) for centre in (9, 10, 11)], 50)
    assert apart.high - apart.low > 10 * (alike.high - alike.low)


def test_many_samples_use_a_grid_of_order_statistics():
    samples = np.random.default_rng(4).gamma(9, 1.0, 20_000)
    found = stats.percentile([samples], 50)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.25 * samples.std() / np.sqrt(len(samples)), rel=0.3)


def test_ratio_of_medians():
    rng = np.random.default_rng(5)
    found = stats.median_ratio([rng.normal(30, 1, 500)], [rng.normal(3, 0.1, 500)])
    assert found.low < 10 < found.high
    assert found.high / found.low < 1.03
    assert stats.median_ratio([], [[1.0]]) is None


def test_wilson_is_scipys():
    for successes, n in [(0, 10), (5, 10), (10, 10), (1903, 2000)]:
        low, high = reference.binomtest(successes, n).proportion_ci(method="wilson")
        assert stats.wilson(successes, n) == pytest.approx((low, high), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(pairs):
    first, second = (np.array(x) for x in zip(*pairs, strict=True))
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    expected = reference.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_of_many_disagreements():
    first = np.arange(9000) < 4600
    assert stats.mcnemar(first, ~first) == pytest.approx(reference.binomtest(4400, 9000).pvalue, rel=1e-9)


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(6)
    labels, answers = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    correct = labels == answers
    expected = balanced_accuracy_score(labels, answers)
    assert stats.metric_value(correct, labels, "balanced_accuracy") == pytest.approx(expected)
    assert stats.metric_value(correct, labels, "accuracy") == correct.mean()


def test_metric_interval():
    labels = np.repeat([0, 1], [90, 10])
    correct = np.ones(100, bool)
    plain = stats.metric_interval(correct, labels, metric="accuracy")
    assert (plain.low, plain.high) == pytest.approx(stats.wilson(100, 100))
    balanced = stats.metric_interval(correct, labels, metric="balanced_accuracy")
    assert balanced.low < plain.low  # ten pictures of a class say little about it
    grouped = stats.metric_interval(correct, labels, metric="accuracy", groups=[str(i // 5) for i in range(100)])
    assert (grouped.low, grouped.high) == pytest.approx(stats.wilson(20, 20))


def test_paired_drop_agrees_with_agresti_and_min():
    """Wald interval on counts with half a disagreement added to each side (Agresti & Min 2005)."""
    n, b, c = 2000, 60, 40
    first, second = np.ones(n, bool), np.ones(n, bool)
    second[:b], first[b : b + c] = False, False
    found = stats.paired_drop(first, second, np.zeros(n, int), metric="accuracy", replicates=20_000)
    assert found.value == pytest.approx(100 * (b - c) / n)
    half = 1.96 * 100 * np.sqrt((b + c + 1) - (b - c) ** 2 / (n + 2)) / (n + 2)
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), abs=0.06)


def test_no_disagreement_is_not_certainty():
    right = np.ones(50, bool)
    found = stats.paired_drop(right, right, np.zeros(50, int), metric="accuracy")
    assert found.value == 0
    assert found.high == pytest.approx(4, abs=2.1)  # two pictures of fifty
    small_class = np.repeat([0, 1], [194, 6])
    many = np.ones(200, bool)
    balanced = stats.paired_drop(many, many, small_class, metric="balanced_accuracy")
    assert balanced.high > 5  # one picture of six is 8 points of balanced accuracy


@given(st.integers(0, 10_000), st.sampled_from(["accuracy", "balanced_accuracy"]))
@settings(max_examples=20, deadline=None)
def test_paired_drop_is_antisymmetric_and_holds_its_value(seed, metric):
    rng = np.random.default_rng(seed)
    first, second, labels = rng.random(120) < 0.8, rng.random(120) < 0.7, rng.integers(0, 3, 120)
    forth = stats.paired_drop(first, second, labels, metric=metric, replicates=200)
    back = stats.paired_drop(second, first, labels, metric=metric, replicates=200)
    assert forth.value == pytest.approx(-back.value)
    assert forth.low <= forth.value <= forth.high


def test_groups_widen_the_drop():
    rng = np.random.default_rng(7)
    first = np.ones(600, bool)
    second = np.repeat(rng.random(100) < 0.9, 6)  # six pictures of one part succeed or fail together
    labels, groups = np.zeros(600, int), [f"part{i // 6}" for i in range(600)]
    alone = stats.paired_drop(first, second, labels, metric="accuracy")
    whole = stats.paired_drop(first, second, labels, metric="accuracy", groups=groups)
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(6), rel=0.2)
    unnamed = stats.paired_drop(first, second, labels, metric="accuracy", groups=[""] * 600)
    assert unnamed == alone


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_interval_covers_the_true_drop(metric):
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1, 2], [60, 60, 60])
    held = 0
    for seed in range(200):
        first, second = rng.random(180) < 0.92, rng.random(180) < 0.90
        found = stats.paired_drop(first, second, labels, metric=metric, seed=seed, replicates=400)
        held += found.low <= 2.0 <= found.high
    assert 182 <= held <= 200, held  # 95 % of 200 is 190


def test_two_thousand_pictures_take_less_than_a_second():
    rng = np.random.default_rng(9)
    first, second, labels = rng.random(2000) < 0.9, rng.random(2000) < 0.9, rng.integers(0, 10, 2000)
    started = time.perf_counter()
    stats.paired_drop(first, second, labels, metric="balanced_accuracy", replicates=2000)
    assert time.perf_counter() - started < 1


def test_samples_needed_decides_when_reached():
    rng = np.random.default_rng(10)

    def drop(n: int) -> stats.Estimate:
        first, second = np.ones(n, bool), np.ones(n, bool)
        second[: n // 50], first[n // 50 : n // 25 + n // 200] = False, False
        order = rng.permutation(n)
        return stats.paired_drop(first[order], second[order], np.zeros(n, int), metric="accuracy")

    small = drop(400)
    assert small.high > 1
    needed = stats.samples_needed(small, 1.0, 400)
    assert 0 < needed < 5000
    assert drop(400 + int(1.3 * needed)).high <= 1
    assert drop(400 + needed // 3).high > 1


def test_samples_needed_gives_up_at_the_margin():
    at = stats.Estimate(value=1.0, low=0.0, high=2.0)
    assert stats.samples_needed(at, 1.0, 100) is None
    assert stats.samples_needed(stats.Estimate(value=1.0), 1.0, 100) is None
    worse = stats.Estimate(value=3.0, low=-1.0, high=7.0)
    assert stats.samples_needed(worse, 1.0, 100) == 300


def test_reliability_of_a_calibrated_model():
    rng = np.random.default_rng(11)
    confidence = rng.uniform(0.2, 1.0, 20_000)
    bins, error = stats.reliability(confidence, rng.random(20_000) < confidence)
    assert error < 0.02
    assert sum(b.count for b in bins) == 20_000
    _, always = stats.reliability(np.ones(10), np.zeros(10, bool))
    assert always == 1
