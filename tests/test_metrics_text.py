"""Metrics of texts against seqeval, scikit-learn and the SQuAD evaluation script's own rules."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score as sklearn_f1

from distilledge.models import metrics_text as metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # seqeval 1.2 brings numpy aliases of its own time
    from seqeval.metrics import f1_score as seqeval_f1
    from seqeval.metrics.sequence_labeling import get_entities

KINDS = ("PER", "LOC", "a-b")
IOBES = ("O", "B", "I", "E", "S", *(f"{p}-{k}" for p in "BIES" for k in KINDS))
PLAIN = ("O", "person", "place", "Orange", "SE")


@st.composite
def sentences(draw, tags=IOBES, equal=True):
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    words = st.sampled_from(tags)
    return tuple([draw(st.lists(words, min_size=n, max_size=n)) for n in lengths] for _ in range(2))


@given(sentences())
@settings(max_examples=200, deadline=None)
def test_entities_are_seqevals(pair):
    for tags in (*pair[0], *pair[1]):
        assert [tuple(e) for e in metrics.entities(tags)] == get_entities(tags)


@given(sentences())
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore")  # seqeval warns of empty precision
def test_entity_f1_is_seqevals(pair):
    truth, predicted = pair
    counts = metrics.entity_counts(truth, predicted)
    assert counts.shape == (len(truth), 3)
    if any(metrics.entities(t) for t in (*truth, *predicted)):
        assert metrics.f1(counts.sum(0)) == pytest.approx(seqeval_f1(truth, predicted))
    else:
        assert metrics.f1(counts.sum(0)) == 0


@given(sentences(tags=PLAIN))
@settings(max_examples=100, deadline=None)
def test_plain_tags_are_runs_of_the_same_tag(pair):
    inside = [[t if t == "O" else f"I-{t}" for t in tags] for tags in pair[0]]
    assert [metrics.entities(t) for t in pair[0]] == [metrics.entities(t) for t in inside]
    for tags in pair[0]:
        for kind, start, end in metrics.entities(tags):
            assert set(tags[start : end + 1]) == {kind}
            assert tags[end + 1 : end + 2] != [kind]
            assert start == 0 or tags[start - 1] != kind


def test_entities_by_hand():
    tags = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "U-ORG", "L-ORG", "O"]
    assert metrics.entities(tags) == [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4), ("ORG", 5, 5), ("ORG", 6, 6)]
    half = ["B-PER", "O", "O", "I-LOC", "B-LOC", "U-ORG", "O", "B-PER"]
    assert metrics.entity_counts([tags], [half]).tolist() == [[3, 2, 2]]
    assert metrics.kinds(("O", "B-PER", "I-PER", "B-LOC", "place")) == ("PER", "LOC", "place")


@given(sentences())
@settings(max_examples=50, deadline=None)
def test_counts_by_kind_add_up(pair):
    names = ("_", *KINDS)
    by_kind = metrics.entity_counts_by_kind(*pair, names)
    assert by_kind.sum(axis=1).tolist() == metrics.entity_counts(*pair).tolist()


@given(n=st.integers(1, 40), classes=st.integers(2, 6), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_multi_label_f1_is_scikit_learns(n, classes, seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.random((n, classes)) < 0.4, rng.random((n, classes)) < 0.4
    counts = metrics.label_counts(truth, predicted)
    assert metrics.f1(counts.sum(0)) == pytest.approx(sklearn_f1(truth, predicted, average="micro", zero_division=0))


@given(n=st.integers(1, 40), classes=st.integers(2, 7), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_macro_f1_is_scikit_learns(n, classes, seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, n), rng.integers(0, classes, n)
    counts = metrics.class_counts(predicted, labels, classes)
    expected = sklearn_f1(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(counts.sum(0)) == pytest.approx(expected)
    both = np.stack([counts.sum(0), counts[:1].sum(0)])
    assert metrics.macro_f1(both)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("the tower", ["Eiffel Tower"], 0, 2 / 3),
        ("in 1990", ["1989", "1990"], 0, 2 / 3),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("the", ["a"], 1, 1),  # both are nothing once articles are gone
        ("a b b", ["b b b c"], 0, 2 * 2 / (2 + 4)),
        ("U.S.", ["us"], 1, 1),
        ("Beyoncé", ["Beyoncé"], 1, 1),
    ],
)
def test_answers_by_the_rules_of_squad(answer, truths, exact, overlap):
    assert metrics.exact_match(answer, truths) == exact
    assert metrics.answer_f1(answer, truths) == pytest.approx(overlap)


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=3))
@settings(max_examples=100, deadline=None)
def test_an_exact_match_is_a_full_overlap(answer, truths):
    overlap = metrics.answer_f1(answer, truths)
    assert 0 <= overlap <= 1
    assert not metrics.exact_match(answer, truths) or overlap == 1
    assert metrics.exact_match(answer, [*truths, answer]) == 1


@given(st.lists(st.tuples(*[st.integers(0, 8)] * 4), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_span_overlap_is_that_of_sets(rows):
    spans = np.array(rows)
    found = metrics.span_f1(spans[:, :2], spans[:, 2:])
    for value, (a, b, c, d) in zip(found, rows, strict=True):
        one, other = set(range(a, b + 1)), set(range(c, d + 1))
        total = len(one) + len(other)
        assert value == pytest.approx(2 * len(one & other) / total if total else 0)
