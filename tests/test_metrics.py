"""Metrics against scikit-learn and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss, recall_score

from distilledge.models import metrics


def draw(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, classes)) * 3, generator.integers(0, classes, n)


@given(n=st.integers(1, 60), classes=st.integers(2, 7), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_classification_metrics_equal_scikit_learn(n: int, classes: int, seed: int) -> None:
    logits, labels = draw(n, classes, seed)
    labels[0] = logits[0].argmax()
    predicted = metrics.top1(logits)
    names = list(range(classes))
    assert metrics.accuracy(predicted, labels) == pytest.approx(accuracy_score(labels, predicted))
    assert (metrics.confusion(predicted, labels, classes) == confusion_matrix(labels, predicted, labels=names)).all()
    present = sorted(set(labels.tolist()))
    found = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert metrics.recalls(predicted, labels, classes)[present] == pytest.approx(found)
    assert metrics.balanced_accuracy(predicted, labels, classes) == pytest.approx(found.mean())
    probabilities = np.exp(metrics.log_softmax(logits))
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(
        log_loss(labels, probabilities, labels=names)
    )


def test_balanced_accuracy_equals_scikit_learn_where_all_classes_occur() -> None:
    logits, labels = draw(200, 5, 1)
    predicted = metrics.top1(logits)
    expected = balanced_accuracy_score(labels, predicted)
    assert metrics.balanced_accuracy(predicted, labels, 5) == pytest.approx(expected)


def test_absent_classes_and_no_samples_are_nan() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert math.isnan(metrics.accuracy(none, none))
    assert math.isnan(metrics.balanced_accuracy(none, none, 3))
    assert math.isnan(metrics.recalls(np.array([0]), np.array([0]), 2)[1])


def test_calibration_error_by_hand() -> None:
    """Four predictions at 0.9, three right; two at 0.6, both wrong: (4 |0.75 - 0.9| + 2 |0 - 0.6|) / 6."""
    confidence = np.array([0.9] * 4 + [0.6] * 2)
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert metrics.calibration_error(logits, labels, bins=10) == pytest.approx((4 * 0.15 + 2 * 0.6) / 6)
    bins = metrics.reliability(logits, labels, bins=10)
    assert [b.samples for b in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 4, 0]
    assert bins[8].accuracy == 0.75
    assert math.isnan(bins[0].confidence)
    on_the_edge = metrics.reliability(np.zeros((1, 2)), np.array([0]), bins=2)
    assert [b.samples for b in on_the_edge] == [1, 0]


@given(seed=st.integers(0, 10_000), bins=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_bins_hold_every_sample_once(seed: int, bins: int) -> None:
    logits, labels = draw(50, 4, seed)
    logits[0] = [1000, 0, 0, 0]  # confidence exactly 1
    rows = metrics.reliability(logits, labels, bins)
    assert sum(b.samples for b in rows) == 50
    assert all(b.low <= b.confidence <= b.high + 1e-12 for b in rows if b.samples)
    assert 0 <= metrics.calibration_error(logits, labels, bins) <= 1


@given(seed=st.integers(0, 10_000), shift=st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_distances_are_zero_at_equality(seed: int, shift: float) -> None:
    a, _ = draw(8, 5, seed)
    assert metrics.agreement(a, a) == 1
    assert metrics.kl(a, a + shift) == pytest.approx(0, abs=1e-9)
    assert metrics.cosine(a, a * 2) == pytest.approx(1)
    assert metrics.psnr(a, a) is None
    assert metrics.max_abs(a, a + shift) == pytest.approx(abs(shift))


def test_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert metrics.kl(np.log(p)[None], np.log(q)[None]) == pytest.approx(expected)


def test_a_tie_does_not_count_against_agreement() -> None:
    reference = np.array([[1.0, 0.995], [1.0, 0.0]])
    candidate = np.array([[0.99, 1.0], [0.0, 1.0]])
    assert metrics.agreement(reference, candidate) == 0
    assert metrics.agreement(reference, candidate, tie=0.01) == 0.5


def test_psnr_and_cosine_by_hand() -> None:
    a = np.array([[3.0, -4.0]])
    assert metrics.psnr(a, a + 0.4) == pytest.approx(20.0)
    assert metrics.cosine(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(2**-0.5)
    zeros = np.zeros((1, 2))
    assert (metrics.cosine(zeros, zeros), metrics.cosine(zeros, a)) == (1, 0)
