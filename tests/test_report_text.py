"""Verdicts and reports of hand-made runs of every text task."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_run import measurement
from made_text_run import LENGTHS, MadeTextRun
from made_texts import TASKS
from test_report import EVIL, Elements

from distilledge.pipeline import gate
from distilledge.pipeline.outcomes import distinct, read_all
from distilledge.pipeline.recipe import METRICS, Budget, Recipe
from distilledge.pipeline.report.content import collect
from distilledge.pipeline.report.html import page
from distilledge.pipeline.report.lengths import histogram
from distilledge.pipeline.report.markdown import markdown
from distilledge.pipeline.report.table import columns, csv_text, metric_name, terminal
from distilledge.pipeline.report.text_answers import LETTERS, _entities, _segments, _window
from distilledge.pipeline.report.vocabulary import ReportContent

BUDGETS = {"default": Budget(max_drop_points=3.0, max_drop_points_fp32=3.0)}
RUNTIMES = ("onnx",)


def recipe(task: str) -> Recipe:
    return Recipe(name="made", task=task, budgets=BUDGETS)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReportContent]:
    place = tmp_path_factory.mktemp("texts")
    return {t: collect(MadeTextRun(place / t, recipe(t)).everything(runtimes=RUNTIMES)) for t in TASKS}


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReportContent]:
    place = tmp_path_factory.mktemp("evil")
    saying = EVIL + " </style><script>alert(2)</script> \u202e\x07 " + "x" * 900
    runs = {t: MadeTextRun(place / t, recipe(t), texts=120, saying=saying) for t in TASKS}
    return {t: collect(run.everything(runtimes=RUNTIMES)) for t, run in runs.items()}


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_of_the_task_is_judged_by_its_name(contents, task):
    content = contents[task]
    assert columns(content)[3].title == f"{metric_name(content.recipe)}, %"
    shipped = next(f for f in content.files if f.shipped)
    assert shipped.metric.low <= shipped.metric.value <= shipped.metric.high
    teacher = content.files[0]
    assert shipped.drop.value == pytest.approx(teacher.metric.value - shipped.metric.value)
    assert set(shipped.others) == set(METRICS[task]) - {content.recipe.metric}
    assert content.teacher_worth.gain.value > 0
    assert 0 < content.teacher_worth.p_value <= 1


@pytest.mark.parametrize("task", TASKS)
def test_no_page_of_texts_speaks_of_pictures(contents, task):
    content = contents[task]
    for text in (Elements(page(content)).text(), markdown(content), terminal(content)):
        words = re.sub(r'(?s)"schema".*', "", text)  # the recipe itself names every field
        assert not re.findall(r"[Pp]ictures?", words)
        assert "texts" in words


@pytest.mark.parametrize("task", TASKS)
def test_parts_of_the_page(contents, task):
    text = Elements(page(contents[task])).text()
    for words in (
        "SYNTHETIC", "generated texts", "against latency", "Latency by length", "128 tokens, ms", "Data and audit",
        "What the teacher was worth", "Texts on which teacher and student disagree", "longer than 48 tokens", "Texts/s",
        "tokenizer.json travels beside it", "words: median 15",
    ):  # fmt: skip
        assert words in text, words
    assert ("expected calibration error" in text) == (task == "text-classification")
    assert ("Confusions" in text) == (task in ("text-classification", "token-classification"))
    assert ("points of F1" in text) == (task != "question-answering")


def test_f1_of_every_entity_type(contents):
    changes = {c.name: c for c in contents["token-classification"].class_changes}
    assert set(changes) == {"PART", "PLACE", "TIME"}
    assert changes["PART"].pictures == 300
    assert changes["PLACE"].teacher == 100 > changes["PART"].teacher


def test_confusions_count_words(contents):
    content = contents["token-classification"]
    teacher = np.array(content.confusions[0].matrix)
    assert teacher[2:4].sum() == 300 + teacher[2].sum()  # one B-PLACE for each text
    assert teacher.sum() > 300 * 5


@pytest.mark.parametrize("task", TASKS)
def test_gallery(contents, task):
    found = contents[task].gallery
    assert 0 < len(found.shown) <= 24
    assert all(d.teacher != d.student and not d.picture and d.lines for d in found.shown)
    assert all(d.path.startswith("test.csv:") for d in found.shown)
    assert all(0 <= p <= 1 for d in found.shown for p in (d.teacher_probability, d.student_probability))
    assert not any(d.teacher_right and d.student_right for d in found.shown)
    assert sum(d.teacher_right for d in found.shown) == found.teacher_right


def test_gallery_of_tags_shows_truth_teacher_and_student(contents):
    first = contents["token-classification"].gallery.shown[0]
    assert [line.who for line in first.lines] == ["truth", "teacher", "student"]
    words = {"".join(p.text + " " for p in line.pieces) for line in first.lines}
    assert len(words) == 1
    assert first.lines[0].pieces != first.lines[2].pieces
    html = page(contents["token-classification"])
    assert '<span class="entity e0">' in html
    assert "<small>PART</small>" in html


def test_gallery_of_answers_marks_the_spans(contents):
    for shown in contents["question-answering"].gallery.shown:
        pieces = shown.lines[1].pieces
        for who, said in (("truth", shown.label), ("teacher", shown.teacher), ("student", shown.student)):
            assert "".join(p.text for p in pieces if who in p.marks) == said


@pytest.mark.parametrize("task", TASKS)
def test_evil_texts_are_inert_and_cut(evil, task):
    html = page(evil[task])
    elements = Elements(html)
    assert not {"script", "img", "iframe", "link", "a", "form"} & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert sum(tag == "style" for tag, _ in elements.found) == 1
    assert EVIL not in html
    assert "\u202e" not in html
    assert "\x07" not in html
    assert "<img" not in markdown(evil[task])
    assert "x" * LETTERS not in html.replace("x" * LETTERS + "</span>", "")
    for shown in evil[task].gallery.shown:
        for line in shown.lines:
            assert sum(len(p.text) for p in line.pieces) <= LETTERS + 60


@pytest.mark.parametrize("task", TASKS)
def test_csv_and_json(contents, task):
    content = contents[task]
    lines = list(csv.DictReader(io.StringIO(csv_text(content))))
    assert lines[0]["metric"] == METRICS[task][0]
    assert float(lines[0]["texts"]) == 300
    for other in METRICS[task][1:]:
        assert 0 < float(lines[0][f"{other}_points"]) <= 100
    kept = json.loads(content.model_dump_json(by_alias=True))
    assert ReportContent.model_validate(kept) == content


def test_lengths_are_kept_apart_from_the_judged_latency(contents):
    content = contents["text-classification"]
    teacher = content.files[0]
    by_length = {t.length: t.p50.value for t in content.timings if t.name == teacher.name}
    assert set(by_length) == {None, *LENGTHS}
    assert teacher.p50.value == by_length[None] == pytest.approx(31, rel=0.05)
    assert by_length[128] == pytest.approx(8 * by_length[16], rel=0.1)


def test_the_page_names_the_length_that_is_judged(contents):
    content = contents["text-classification"]
    assert "of 128 tokens" not in Elements(page(content)).text()
    single = [t for t in content.timings if t.length is not None]
    for kept, lengths in ((single, True), ([t for t in single if t.length == 128], False)):
        changed = content.model_copy(update={"timings": tuple(kept)})
        text = Elements(page(changed)).text()
        assert "one text at a time, of 128 tokens" in text
        assert "Latencies are of 128 tokens" in markdown(changed)
        assert ("Latency by length" in text) == lengths


def test_single_lengths_alone_are_judged_by_the_longest():
    made = [measurement("onnx", "fp32", "student", median_ms=n / 16, samples=90, length=n) for n in LENGTHS]
    evidence = gate.Evidence(recipe("text-classification"), (), {}, np.zeros(0, np.int64), None, tuple(made))
    assert evidence.timing("student", "onnx", "fp32").length == 128


@pytest.mark.parametrize("task", TASKS)
def test_a_constant_answer_is_an_alarm(tmp_path: Path, task: str):
    run = MadeTextRun(tmp_path, recipe(task), texts=40)
    run.data()
    exports = run.exports(RUNTIMES)
    constant = run.constant("student onnx w8a8")
    scores, logits = run.scores(exports, constant)
    measurements = run.measurements(exports)
    outcomes = read_all(scores.items, run.work / "store" / "score-0123456789abcdef", run.recipe.metric)
    verdicts = gate.judge(run.recipe, scores, logits, measurements, exports, outcomes=outcomes)
    verdict = next(v for v in verdicts.items if v.precision == "w8a8")
    assert verdict.outcome == "fail"
    said = {
        "text-classification": "leak", "multi-label-classification": "no label", "token-classification": "O",
        "question-answering": "tokens 40 to 40",
    }[task]  # fmt: skip
    assert f"collapsed: answers {said} to all 40 texts" in verdict.alarms
    fine = next(v for v in verdicts.items if v.precision == "fp32")
    assert not [a for a in fine.alarms if a.startswith("collapsed")]
    assert len(distinct(task, outcomes["student onnx fp32"])[0]) > 1


def test_undecided_texts_are_called_texts(tmp_path: Path):
    tight = Recipe(name="made", task="token-classification", budgets={"default": Budget(max_drop_points=0.1)})
    content = collect(MadeTextRun(tmp_path, tight, texts=60).everything(runtimes=RUNTIMES))
    notes = [c.note for f in content.files if f.verdict for c in f.verdict.checks if c.outcome == "inconclusive"]
    assert notes
    assert all("more texts" in note for note in notes)


def test_groups_of_texts_widen_the_interval(tmp_path: Path):
    """Eight texts of one writer are no eight witnesses."""
    run = MadeTextRun(tmp_path, recipe("token-classification"), texts=160)
    record = run.everything(runtimes=RUNTIMES)
    alone = collect(record).files[0].metric
    run.data(group_size=8)
    grouped = collect(record).files[0].metric
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.2 * (alone.high - alone.low)


def test_window_holds_the_word_and_four_hundred_letters():
    words = tuple(f"word{i}" for i in range(1000))
    low, high = _window(words, 500)
    assert low <= 500 < high
    assert len(" ".join(words[low:high])) <= LETTERS
    assert _window(words[:5], 0) == (0, 5)
    pieces = _entities(words, ["B-X" if i == low - 1 else "I-X" if i <= low else "O" for i in range(1000)], low, high)
    assert pieces[0].text == pieces[-1].text == "…"
    assert pieces[1].marks == ("X",)


def test_segments_of_overlapping_spans():
    pieces = _segments("abcdefgh", [(2, 5), (4, 6), (-1, -1)], 1, 7)
    assert [(p.text, p.marks) for p in pieces] == [
        ("b", ()), ("cd", ("truth",)), ("e", ("truth", "teacher")), ("f", ("teacher",)), ("g", ()),
    ]  # fmt: skip


def test_cut_texts_are_counted(tmp_path: Path):
    long = MadeTextRun(tmp_path, recipe("text-classification"), texts=20, saying="pump " * 80)
    content = collect(long.everything(runtimes=RUNTIMES))
    assert [(t.role, t.max_length, t.cut, t.texts) for t in content.tokenizers] == [
        ("teacher", 48, 20, 20), ("student", 48, 20, 20),
    ]  # fmt: skip
    said = "Test texts that are cut: 20 of 20 by the teacher (at 48 tokens)"
    assert said in Elements(page(content)).text()


def test_histogram_of_nothing():
    assert histogram({}, "words") is None
    assert histogram({"edges": [0, 1], "counts": [0]}, "words") is None
