"""Verdicts: what holds, fails or stays open, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_run import CLASSES, MadeRun, exported, measurement

from distilledge.pipeline import gate
from distilledge.pipeline.recipe import Budget, Measure, Recipe
from distilledge.pipeline.record import Check, ExportResult, Measurements, Scores, Verdict, Verdicts
from distilledge.targets.base import Predictions

BUDGET = Budget(max_drop_points=1.0, max_drop_points_fp32=0.5)


def answers(labels: np.ndarray, wrong: int, start: int = 0) -> np.ndarray:
    """Logits that are wrong on ``wrong`` pictures from ``start`` on."""
    logits = np.zeros((len(labels), len(CLASSES)), np.float32)
    given = labels.copy()
    given[start : start + wrong] = (given[start : start + wrong] + 1) % len(CLASSES)
    logits[np.arange(len(labels)), given] = 5
    return logits


class Case:
    """One runtime: a teacher and a student in two precisions."""

    def __init__(self, pictures: int = 3000, *, budget: Budget = BUDGET, metric: str = "accuracy") -> None:
        self.labels = np.arange(pictures) % len(CLASSES)
        self.recipe = Recipe(name="case", metric=metric, budgets={"default": budget})
        self.logits = {
            "teacher onnx fp32": answers(self.labels, 0),
            "student onnx fp32": answers(self.labels, 0),
            "student onnx w8a8": answers(self.labels, 0),
        }
        self.milliseconds = {"teacher onnx fp32": 30.0, "student onnx fp32": 4.0, "student onnx w8a8": 2.0}
        self.groups: list[str] | None = None

    def judge(self) -> dict[str, Verdict]:
        items = []
        for name in self.logits:
            role, runtime, precision = name.split()
            given = {"name": name, "role": role, "runtime": runtime, "precision": precision}
            items.append(Predictions(**given, split="test", logits=f"{name}.npy", seconds=1.0))
        scores = Scores(
            items=tuple(items),
            labels=tuple(int(x) for x in self.labels),
            paths=tuple(str(i) for i in range(len(self.labels))),
        )
        timings = tuple(
            measurement(runtime, precision, role, median_ms=ms, seed=i, samples=300)
            for i, (name, ms) in enumerate(self.milliseconds.items())
            for role, runtime, precision in [name.split()]
        )
        files = tuple(exported("onnx", p, "student") for p in ("fp32", "w8a8"))
        exports = [
            ExportResult(role="teacher", runtime="onnx", files=(exported("onnx", "fp32", "teacher"),)),
            ExportResult(role="student", runtime="onnx", files=files),
        ]
        self.verdicts = gate.judge(self.recipe, scores, self.logits, Measurements(items=timings), exports, self.groups)
        return {v.precision: v for v in self.verdicts.items}


def check(verdict: Verdict, what: str) -> Check:
    return next(c for c in verdict.checks if c.what == what)


def test_equal_answers_pass():
    verdict = Case().judge()["w8a8"]
    assert verdict.outcome == "pass"
    assert verdict.accuracy_word == "not worse"
    assert verdict.alarms == ()
    assert check(verdict, gate.DROP_TEACHER).outcome == "holds"
    assert check(verdict, gate.DROP_FP32).outcome == "holds"
    assert check(verdict, gate.P50).outcome == "no limit"
    assert verdict.name == "student onnx w8a8"


def test_the_fp32_file_is_not_compared_with_itself():
    verdict = Case().judge()["fp32"]
    assert gate.DROP_FP32 not in {c.what for c in verdict.checks}


def test_a_clear_drop_fails():
    case = Case()
    case.logits["student onnx w8a8"] = answers(case.labels, 150)  # 5 points
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "fail"
    assert verdict.accuracy_word == "worse"
    drop = check(verdict, gate.DROP_TEACHER)
    assert drop.value == pytest.approx(5.0)
    assert drop.low > 1.0


def test_a_small_test_set_is_inconclusive_and_says_what_it_needs():
    case = Case(100)
    case.logits["student onnx w8a8"] = answers(case.labels, 1)
    case.logits["teacher onnx fp32"] = answers(case.labels, 1, start=50)
    case.logits["student onnx fp32"] = case.logits["student onnx w8a8"]
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "inconclusive"
    assert verdict.accuracy_word == "inconclusive"
    drop = check(verdict, gate.DROP_TEACHER)
    assert drop.value == 0
    assert drop.low < 0 < 1.0 < drop.high
    assert "more pictures" in drop.note


def test_a_drop_at_the_margin_is_not_decided_by_more_pictures():
    case = Case(1000)
    case.logits["student onnx w8a8"] = answers(case.labels, 10)
    case.logits["student onnx fp32"] = case.logits["student onnx w8a8"]
    drop = check(case.judge()["w8a8"], gate.DROP_TEACHER)
    assert drop.outcome == "inconclusive"
    assert "would not decide" in drop.note


def test_a_better_student_is_called_better():
    case = Case()
    case.logits["teacher onnx fp32"] = answers(case.labels, 150)
    assert case.judge()["w8a8"].accuracy_word == "better"


def test_significantly_lower_within_the_margin_is_not_worse():
    case = Case(6000, budget=Budget(max_drop_points=2.0))
    case.logits["student onnx w8a8"] = answers(case.labels, 30)
    verdict = case.judge()["w8a8"]
    assert check(verdict, gate.DROP_TEACHER).low > 0
    assert verdict.accuracy_word == "not worse"


def test_without_a_margin_the_word_is_about_zero():
    case = Case(budget=Budget(max_drop_points=None, max_drop_points_fp32=None))
    case.logits["student onnx w8a8"] = answers(case.labels, 150)
    verdict = case.judge()["w8a8"]
    assert (verdict.outcome, verdict.accuracy_word) == ("pass", "worse")


def test_balanced_accuracy_sees_a_lost_rare_class():
    lost = {}
    for metric in ("accuracy", "balanced_accuracy"):
        case = Case(3000, metric=metric)
        case.labels = np.where(np.arange(3000) < 15, 1, 0)
        case.logits = {name: answers(case.labels, 0) for name in case.logits}
        case.logits["student onnx w8a8"] = answers(case.labels, 12)
        lost[metric] = case.judge()["w8a8"]
    assert check(lost["accuracy"], gate.DROP_TEACHER).value == pytest.approx(0.4)
    assert lost["accuracy"].accuracy_word == "not worse"
    assert check(lost["balanced_accuracy"], gate.DROP_TEACHER).value == pytest.approx(40)
    assert lost["balanced_accuracy"].outcome == "fail"


def test_groups_make_the_evidence_smaller():
    case = Case(1200)
    case.logits["student onnx w8a8"] = answers(case.labels, 6)
    alone = check(case.judge()["w8a8"], gate.DROP_TEACHER)
    case.groups = [f"part{i // 6}" for i in range(1200)]
    grouped = check(case.judge()["w8a8"], gate.DROP_TEACHER)
    assert alone.outcome == "inconclusive" or alone.outcome == "holds"
    assert grouped.high > alone.high


def test_a_constant_answer_is_an_alarm_and_fails_even_without_limits():
    case = Case(budget=Budget(max_drop_points=None, max_drop_points_fp32=None))
    constant = np.zeros_like(case.logits["student onnx w8a8"])
    constant[:, 2] = 1
    case.logits["student onnx w8a8"] = constant
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "fail"
    assert verdict.alarms == ("collapsed: answers pit to all 3000 pictures",)


def test_answers_that_are_no_numbers_fail():
    case = Case()
    case.logits["student onnx w8a8"] = np.full_like(case.logits["student onnx w8a8"], np.nan)
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "fail"
    assert "answers are not finite" in verdict.alarms


def test_int8_slower_than_float_is_an_alarm():
    case = Case()
    case.milliseconds["student onnx w8a8"] = 5.6
    verdict = case.judge()["w8a8"]
    assert verdict.alarms == ("int8 is slower than float (1.4x fp32)",)
    assert verdict.outcome == "pass"


@pytest.mark.parametrize(("limit", "outcome"), [(3.0, "holds"), (1.0, "fails")])
def test_latency_budget(limit, outcome):
    case = Case(budget=Budget(max_latency_ms=limit))
    p50 = check(case.judge()["w8a8"], gate.P50)
    assert p50.outcome == outcome
    assert p50.low < p50.value < p50.high
    case.recipe = case.recipe.model_copy(update={"budgets": {"default": Budget(max_latency_ms=p50.value)}})
    assert check(case.judge()["w8a8"], gate.P50).outcome == "inconclusive"


def test_size_and_memory_budgets_are_exact():
    verdicts = Case(budget=Budget(max_size_mb=4.0, max_peak_rss_mb=10.0)).judge()
    assert check(verdicts["w8a8"], gate.SIZE).outcome == "holds"
    assert check(verdicts["fp32"], gate.SIZE).outcome == "fails"
    assert check(verdicts["w8a8"], gate.RSS).outcome == "fails"


def test_a_runtimes_own_budget_wins_over_the_default():
    case = Case()
    budgets = {"default": Budget(max_size_mb=1.0), "onnx": Budget(max_size_mb=9.0)}
    case.recipe = case.recipe.model_copy(update={"budgets": budgets})
    assert check(case.judge()["w8a8"], gate.SIZE).limit == 9.0


def test_an_unmeasured_file_does_not_pass_a_latency_budget():
    case = Case(budget=Budget(max_latency_ms=100.0))
    del case.milliseconds["student onnx w8a8"]
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "inconclusive"
    assert "the file was not measured" in verdict.alarms


def test_without_a_teacher_nothing_passes():
    case = Case()
    del case.logits["teacher onnx fp32"]
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "inconclusive"
    assert verdict.accuracy_word == "inconclusive"


def test_the_first_number_of_threads_is_judged():
    case = Case(budget=Budget(max_latency_ms=3.0))
    case.recipe = case.recipe.model_copy(update={"measure": Measure(threads=(1, 0))})
    slow = measurement("onnx", "w8a8", "student", median_ms=9.0).model_copy(update={"threads": 2})
    fast = measurement("onnx", "w8a8", "student", median_ms=2.0)
    evidence = gate.Evidence(case.recipe, (), {}, case.labels, None, (slow, fast))
    assert evidence.timing("student", "onnx", "w8a8") is fast
    all_cores = case.recipe.model_copy(update={"measure": Measure(threads=(0,))})
    assert evidence._replace(recipe=all_cores).timing("student", "onnx", "w8a8") is slow


def test_the_run_is_as_good_as_what_ships():
    case = Case()
    case.logits["student onnx fp32"] = answers(case.labels, 150)
    case.judge()
    assert gate.overall(case.verdicts) == "pass"  # int8 ships, and passes
    case.logits["student onnx fp32"] = answers(case.labels, 0)
    case.logits["student onnx w8a8"] = answers(case.labels, 150)
    case.judge()
    assert gate.overall(case.verdicts) == "fail"
    (target,) = gate.by_target(case.verdicts)
    assert target.shipped.precision == "w8a8"
    assert target.instead is not None
    assert target.instead.precision == "fp32"
    assert gate.overall(Verdicts(items=())) == "inconclusive"


def test_unlabelled_pictures_are_left_out(tmp_path: Path):
    case = Case(3000)
    labels = case.labels.copy()
    case.labels = np.where(np.arange(3000) % 2, labels, -1)
    case.logits = {name: answers(labels, 0) for name in case.logits}
    verdict = case.judge()["w8a8"]
    assert verdict.outcome == "pass"
    assert check(verdict, gate.DROP_TEACHER).value == 0


def test_a_whole_made_run_is_judged(tmp_path: Path):
    run = MadeRun(tmp_path, Recipe(name="made"))
    exports = run.exports()
    scores, logits = run.scores(exports)
    verdicts = gate.judge(run.recipe, scores, logits, run.measurements(exports), exports)
    assert [v.name for v in verdicts.items][:3] == ["student onnx fp32", "student onnx fp16", "student onnx w8a8"]
    assert len(verdicts.items) == 9
