"""Logits to answers, counts and metrics: with a real tokenizer, against references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_texts import CLASSES, TASKS, logits_of, made_encoder, made_rows
from sklearn.metrics import f1_score

from distilledge.models import metrics_text
from distilledge.pipeline import outcomes as judged
from distilledge.pipeline import stats_counts
from distilledge.pipeline.decode import LONGEST_ANSWER, TAB, best_span, first_pieces
from distilledge.pipeline.outcomes import distinct, outcomes, read_outcomes, validation_metrics, write_outcomes
from distilledge.pipeline.recipe import METRICS
from distilledge.pipeline.record import TextRow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("tokenizers")
    return {task: made_encoder(directory / task, task) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_perfect_logits_score_one_on_every_metric(task, encoder):
    rows, labels = made_rows(task, 40)
    logits = logits_of(task, rows, labels, encoder[task], wrong=[])
    for metric in METRICS[task]:
        found = outcomes(task, metric, logits, rows, encoder[task], CLASSES[task], labels=labels)
        assert found.answers == found.truths
        assert stats_counts.value(found.counts, np.array(labels), metric=metric) == pytest.approx(1)
        assert set(found.others) == set(METRICS[task]) - {metric}
        assert all(v == pytest.approx(1) for v in found.others.values())
        assert ((found.confidence > 0) & (found.confidence <= 1)).all()


@pytest.mark.parametrize("task", TASKS)
def test_wrong_answers_cost_points_and_nothing_else(task, encoder):
    rows, labels = made_rows(task, 40)
    wrong = [3, 8, 21]
    logits = logits_of(task, rows, labels, encoder[task], wrong=wrong)
    found = outcomes(task, METRICS[task][0], logits, rows, encoder[task], CLASSES[task], labels=labels)
    assert [i for i in range(40) if found.answers[i] != found.truths[i]] == wrong
    assert stats_counts.value(found.counts, np.array(labels), metric=METRICS[task][0]) < 1


@pytest.mark.parametrize("task", TASKS)
def test_disk_keeps_every_metric(task, encoder, tmp_path: Path):
    rows, labels = made_rows(task, 30)
    logits = logits_of(task, rows, labels, encoder[task], wrong=[1, 2])
    path = tmp_path / "0.outcomes.npz"
    write_outcomes(path, task, logits, rows, encoder[task], CLASSES[task], labels=labels)
    for metric in METRICS[task]:
        kept = read_outcomes(path, metric)
        made = outcomes(task, metric, logits, rows, encoder[task], CLASSES[task], labels=labels)
        for before, after in zip(made, kept, strict=True):
            if isinstance(before, np.ndarray):
                np.testing.assert_array_equal(before, after)
            else:
                assert before == after


def test_macro_f1_counts_are_scikit_learns(encoder):
    task = "text-classification"
    rows, labels = made_rows(task, 50)
    logits = np.random.default_rng(0).normal(size=(50, len(CLASSES[task])))
    found = outcomes(task, "macro_f1", logits, rows, None, CLASSES[task], labels=labels)
    expected = f1_score(labels, logits.argmax(1), average="macro", zero_division=0)
    assert stats_counts.value(found.counts, np.array(labels), metric="macro_f1") == pytest.approx(expected)


def test_words_without_pieces_are_outside(encoder):
    """Words beyond max_length are never seen: their entities count as missed."""
    task = "token-classification"
    row = TextRow(text=("pump",) * 60, labels=(0,) * 58 + (1, 2))
    logits = np.zeros((1, encoder[task].spec.max_length, len(CLASSES[task])), np.float32)
    found = outcomes(task, "entity_f1", logits, [row], encoder[task], CLASSES[task])
    assert found.answers[0].split(TAB) == ["O"] * 60
    assert found.counts.tolist() == [[0, 0, 1]]


def test_a_word_has_the_tag_of_its_first_piece():
    assert first_pieces((None, 0, 0, 2, 2, 1, None)) == {0: 1, 2: 3, 1: 5}


def test_best_span_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for length in (1, 5, 40, 90):
        logits, allowed = rng.normal(size=(length, 2)), rng.random(length) < 0.7
        pairs = [
            (logits[i, 0] + logits[j, 1], i, j)
            for i in range(length)
            for j in range(i, min(length, i + LONGEST_ANSWER))
            if allowed[i] and allowed[j]
        ]
        assert best_span(logits, allowed) == (max(pairs)[1:] if pairs else None)


def test_no_answer_is_taken_only_where_the_set_has_such_rows(encoder):
    task = "question-answering"
    rows, labels = made_rows(task, 4)
    logits = logits_of(task, rows, labels, encoder[task], wrong=[])
    logits[0, 0] = 50  # [CLS]
    answered = outcomes(task, "answer_f1", logits, rows, encoder[task], CLASSES[task])
    assert answered.answers == answered.truths
    rows[0] = rows[0].model_copy(update={"answers": ()})
    none = outcomes(task, "exact_match", logits, rows, encoder[task], CLASSES[task])
    assert (none.answers[0], none.truths[0]) == ("", "")
    assert none.counts[:, 0].tolist() == [1, 1, 1, 1]
    assert none.spans[0].tolist() == [-1, -1]


@pytest.mark.parametrize("task", TASKS)
def test_answers_that_are_no_numbers_are_still_counted(task, encoder):
    rows, labels = made_rows(task, 8)
    logits = np.full_like(logits_of(task, rows, labels, encoder[task], wrong=[]), np.nan)
    found = outcomes(task, METRICS[task][0], logits, rows, encoder[task], CLASSES[task], labels=labels)
    assert np.isfinite(found.counts).all()
    answers, truths = distinct(task, found)
    assert len(answers) == 1 < len(truths)


def test_a_constant_place_in_every_context_is_one_answer(encoder):
    task = "question-answering"
    rows, _ = made_rows(task, 12)
    logits = np.zeros((12, encoder[task].spec.max_length, 2), np.float32)
    logits[:, 40] = 9
    answers, truths = distinct(task, outcomes(task, "answer_f1", logits, rows, encoder[task], CLASSES[task]))
    assert answers == {"tokens 40 to 40"}
    assert len(truths) > 1


def test_a_sample_of_the_rows(encoder):
    task = "text-classification"
    rows, labels = made_rows(task, 20)
    logits = logits_of(task, rows, labels, encoder[task], wrong=[4])
    found = outcomes(task, "accuracy", logits, rows, None, CLASSES[task], labels=labels)
    part = judged.of_rows(found, np.array([4, 5]))
    assert part.counts[:, 0].tolist() == [0, 1]
    assert part.answers == found.answers[4:6]


# --- during training -------------------------------------------------------------------------------------------------


def test_validation_of_classes_is_that_of_pictures():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(60, 4)), rng.integers(-1, 4, 60)
    found = validation_metrics("text-classification", logits, labels, "abcd")
    kept = labels >= 0
    assert found["accuracy"] == (logits.argmax(1)[kept] == labels[kept]).mean()
    assert found["macro_f1"] == pytest.approx(f1_score(labels[kept], logits.argmax(1)[kept], average="macro"))
    assert found == validation_metrics("image-classification", logits, labels, "abcd")


def test_validation_of_label_sets():
    z = np.array([[2.0, -1.0], [-3.0, 0.5], [1.0, 1.0]])
    found = validation_metrics("multi-label-classification", z, np.array([[1, 0], [1, 1], [-1, -1]]), "ab")
    assert found["exact_match"] == 0.5
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
    p = 1 / (1 + np.exp(-z[:2]))
    expected = -np.log([p[0, 0], 1 - p[0, 1], p[1, 0], p[1, 1]]).mean()
    assert found["loss"] == pytest.approx(expected)


def test_validation_of_tags_leaves_out_what_is_no_first_piece():
    classes = ("O", "B-x", "I-x")
    targets = [np.array([-100, 1, -100, 2, 0, -100]), np.array([-100, 0, -1, -100])]
    logits = [np.eye(3)[[2, 1, 0, 2, 0, 1]] * 9, np.eye(3)[[0, 1, 1, 1]] * 9]
    found = validation_metrics("token-classification", logits, targets, classes)
    assert found["accuracy"] == 0.75
    assert found["entity_f1"] == pytest.approx(2 / 3)  # one right, one too many
    padded = np.zeros((2, 8, 3))
    padded[0, :6], padded[1, :4] = logits
    rows = [np.pad(t, (0, 8 - len(t)), constant_values=-100) for t in targets]
    assert validation_metrics("token-classification", padded, np.stack(rows), classes) == found


def test_validation_of_spans():
    logits = [np.zeros((9, 2)), np.zeros((6, 2)), np.zeros((6, 2))]
    logits[0][2, 0] = logits[0][5, 1] = logits[1][1, 0] = logits[1][1, 1] = 20.0
    found = validation_metrics("question-answering", logits, np.array([[2, 5], [1, 2], [-1, -1]]), ("start", "end"))
    assert found["exact_match"] == 0.5
    assert found["answer_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["loss"] == pytest.approx(5, abs=0.01)  # one of four positions is 20 nats off


def test_validation_agrees_with_the_judging_of_a_file(encoder):
    """The tags that training sees are the words' own: the same F1 as the exported file's."""
    task = "token-classification"
    rows, labels = made_rows(task, 30)
    logits = logits_of(task, rows, labels, encoder[task], wrong=[2, 9, 20])
    targets = []
    for row in rows:
        encoded = encoder[task].encode_aligned({"text": list(row.text), "context": None})
        target = np.full(len(encoded.ids), -100)
        for word, place in first_pieces(encoded.words).items():
            target[place] = row.labels[word]
        targets.append(target)
    found = outcomes(task, "entity_f1", logits, rows, encoder[task], CLASSES[task])
    rate = validation_metrics(task, logits, targets, CLASSES[task])
    assert rate["entity_f1"] == pytest.approx(metrics_text.f1(found.counts.sum(0)))
    assert rate["accuracy"] == pytest.approx(found.others["accuracy"])
