"""Search: rounds and front as pure logic, a tiny real one that is killed and goes on, and what a run ships."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import made_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launched import distilledge

from distilledge.pipeline.chain import Chain
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import ExportResult, Verdicts
from distilledge.pipeline.report.content import collect
from distilledge.pipeline.report.table import rows
from distilledge.pipeline.search.candidates import Candidate
from distilledge.pipeline.search.fits import unfit
from distilledge.pipeline.search.halving import Corner, Judged, beats, front, schedule, survivors
from distilledge.pipeline.search.report import markdown, page, terminal
from distilledge.pipeline.search.result import Point, SearchResult
from distilledge.pipeline.search.rounds import Paused, _pausing
from distilledge.pipeline.search.search import winner, winning_recipe
from distilledge.pipeline.shipped import Shipped, shipped_of, withdraw
from distilledge.pipeline.stats import Estimate
from distilledge.pipeline.store import Store, Stored

# --- rounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "rounds", "eta", "ends"),
    [(20, 3, 2, (5, 10, 20)), (30, 3, 3, (4, 10, 30)), (1, 3, 2, (1,)), (3, 3, 2, (1, 2, 3)), (10, 1, 2, (10,))],
)
def test_each_round_trains_eta_times_as_long(epochs: int, rounds: int, eta: int, ends: tuple[int, ...]) -> None:
    assert schedule(epochs, rounds, eta) == ends


@given(st.integers(1, 300), st.integers(1, 6), st.integers(2, 5))
def test_rounds_rise_and_end_with_the_whole_training(epochs: int, rounds: int, eta: int) -> None:
    ends = schedule(epochs, rounds, eta)
    assert ends[-1] == epochs
    assert list(ends) == sorted(set(ends))
    assert ends[0] >= 1
    assert len(ends) <= rounds


def judged(metric: float, loss: float = 1.0) -> Judged:
    return Judged(epochs=1, metric=metric, loss=loss)


def test_the_better_part_goes_on_and_ties_go_by_loss_then_order() -> None:
    found = {"a": judged(0.7), "b": judged(0.9), "c": judged(0.9, 0.5), "d": judged(0.8), "e": judged(0.7)}
    assert survivors(found, 2) == ("c", "b", "d")
    assert survivors({"x": judged(0.5), "y": judged(0.5)}, 2) == ("x",)
    assert survivors({"x": judged(0.1)}, 4) == ("x",)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_nobody_who_stays_is_worse_than_one_who_goes(values: list[float], eta: int) -> None:
    found = {number: judged(value) for number, value in enumerate(values)}
    kept = survivors(found, eta)
    assert len(kept) == math.ceil(len(values) / eta)
    gone = set(found) - set(kept)
    assert all(values[a] >= values[b] for a in kept for b in gone)


def test_a_training_is_paused_at_the_first_step_after_the_round() -> None:
    from distilledge.pipeline.training.events import ProgressEvent

    heard: list[Any] = []
    told = _pausing(heard.append, 2)
    rest = {"epochs": 9, "step": 1, "steps": 3, "loss": 1.0, "samples_per_second": 1.0, "eta_seconds": 1.0}
    told(ProgressEvent(stage="student", epoch=2, **rest))
    told(ProgressEvent(stage="teacher", epoch=7, **rest))
    assert len(heard) == 2
    with pytest.raises(Paused):
        told(ProgressEvent(stage="student", epoch=3, **rest))


# --- the front -------------------------------------------------------------------------------------------------------

corners = st.lists(
    st.builds(Corner, *(st.floats(0, 100, allow_nan=False) | st.integers(0, 3).map(float) for _ in range(3))),
    max_size=25,
)


@given(corners)
def test_the_front_is_what_nothing_beats_and_beats_all_the_rest(points: list[Corner]) -> None:
    best = set(front(points))
    for index, one in enumerate(points):
        beaten = [other for other in points if beats(other, one)]
        assert (index in best) == (not beaten)
        if beaten:
            assert any(beats(points[i], one) for i in best), "whatever is off the front is beaten by one on it"
    assert bool(best) == bool(points)


@given(corners, st.floats(0.1, 10))
def test_the_front_does_not_depend_on_order_or_units(points: list[Corner], factor: float) -> None:
    found = sorted(points[i] for i in front(points))
    turned = list(reversed(points))
    assert sorted(turned[i] for i in front(turned)) == found
    doubled = [Corner(p.metric * 2, p.p50_ms * 2, p.size_mb * 2) for p in points]
    assert front(doubled) == front(points)


def test_equals_stand_side_by_side() -> None:
    assert front([Corner(1, 1, 1), Corner(1, 1, 1), Corner(1, 1, 2)]) == (0, 1)


# --- the winner ------------------------------------------------------------------------------------------------------


def point(model: str, metric: float, p50: float = 1.0, **more: Any) -> Point:
    fields = {
        "model": model,
        "size": 32,
        "runtime": "onnx",
        "precision": "w8a8",
        "epochs": 4,
        "of": 4,
        "metric": Estimate(value=metric, low=metric - 3, high=metric + 2),
        "p50": Estimate(value=p50, low=p50 * 0.9, high=p50 * 1.1),
        "fitted_p50": p50,
        "size_mb": 1.0,
        "peak_rss_mb": 60.0,
        "outcome": "fits",
        "ships": True,
    }
    return Point.model_validate({**fields, **more})


def test_the_winner_is_the_best_of_what_ships_within_budget() -> None:
    points = (
        point("best", 99.0, outcome="over"),
        point("float", 98.0, precision="fp32", ships=False),
        point("float", 80.0),
        point("open", 97.0, outcome="inconclusive"),
        point("good", 95.0),
        point("uneven", 99.0),
        point("uneven", 60.0, runtime="tflite"),
        point("same", 95.0, 2.0),
    )
    assert winner(points)[0] == ("good", 32)
    assert winner((points[0], points[3]))[0] == ("open", 32)
    assert "not decided" in winner((points[0], points[3]))[1]
    assert winner(points[:1]) == (None, "every student that was trained to the end breaks a budget: best 32")


def result(points: tuple[Point, ...]) -> SearchResult:
    parts = {
        "name": "found",
        "data": {"path": "synthetic"},
        "student": {"training": {"epochs": 4}},
        "distill": {"control": True},
        "search": {"students": ["mobilenetv1_025", "<b>x"], "sizes": [32], "weights": {"mobilenetv1_025": "hub"}},
        "smoke": {"student.training.epochs": 1},
    }
    looked = [
        {"model": "mobilenetv1_025", "size": 32, "outcome": "fits", "why": [], "kept": True}
        | {"rounds": [judged(0.8).model_dump(), judged(0.9).model_dump()]},
        {"model": "<b>x", "size": 32, "outcome": "over", "why": ["onnx w8a8: size (MB) 6, limit 1: 6.00 times"]},
    ]
    return SearchResult.model_validate(
        {
            "recipe": Recipe.model_validate(parts).model_dump(by_alias=True),
            "created": "2026-01-01T00:00:00+00:00",
            "command": "distilledge search found.yaml",
            "device": {},
            "pictures": 100,
            "schedule": [2, 4],
            "fits": [unfit(Candidate("<b>x", 32), "onnx", "no <op>").model_dump()],
            "looked": looked,
            "points": [p.model_dump() for p in points],
            "winner": ["mobilenetv1_025", 32],
            "winner_why": "95.00 points",
        }
    )


def test_the_winning_recipe_is_whole_and_runs_without_the_search(tmp_path: Path) -> None:
    (tmp_path / "winner.yaml").write_text(
        winning_recipe(result((point("mobilenetv1_025", 95.0),)), ("mobilenetv1_025", 32))
    )
    found = load_recipe(tmp_path / "winner.yaml")
    assert (found.student.model, found.student.input.size, found.student.weights) == ("mobilenetv1_025", 32, "hub")
    assert (found.name, found.student.training.epochs, found.distill.control) == ("found-winner", 4, True)
    assert found.search == Recipe(name="x").search


def test_a_report_says_what_was_stopped_and_escapes_names() -> None:
    found = result(
        (point("mobilenetv1_025", 95.0, front=True), point("<b>x", 70.0, epochs=2, ships=False, precision="fp32"))
    )
    html, text = page(found), markdown(found)
    assert "<b>x" not in html
    assert "<b>x" not in text
    assert "2 of 4" in html
    assert "2 of 4" in text
    assert "never trained" in html
    assert "SYNTHETIC" in html
    assert "validation" in terminal(found)
    assert "<script" not in html
    assert "Content-Security-Policy" in html


# --- what a run ships ------------------------------------------------------------------------------------------------


def made(tmp_path: Path, on_fail: str, **budget: float) -> made_run.MadeRun:
    limits = {"max_drop_points": None, "max_drop_points_fp32": None, **budget}
    recipe = Recipe.model_validate({"name": "made", "gate": {"on_fail": on_fail}, "budgets": {"default": limits}})
    return made_run.MadeRun(tmp_path, recipe)


def shipped(tmp_path: Path, on_fail: str, **budget: float) -> Shipped:
    """Of a run made by hand, judged by this budget."""
    own = made(tmp_path, on_fail, **budget)
    record = own.everything()
    chain = Chain(own.recipe, Store(tmp_path / "store"), (), lambda _event: None)
    kinds: list[tuple[str, Any]] = [("gate", Verdicts)]
    kinds += [(s.name, ExportResult) for s in record.stages if s.name.startswith("export-student")]
    for name, kind in kinds:
        path = record.directory(name)
        value = kind.model_validate_json((path / "value.json").read_text())
        chain.done[name] = Stored(value, path, "", cached=True, seconds=0.0)
    return shipped_of(chain, tmp_path)


def test_what_keeps_its_budget_is_named_with_its_hash(tmp_path: Path) -> None:
    found = shipped(tmp_path, "stop", max_size_mb=5.0)
    assert (found.outcome, found.withheld) == ("pass", ())
    assert [(f.runtime, f.precision) for f in found.files] == [(r, "w8a8") for r in made_run.RUNTIMES]
    file = made_run.exported("onnx", "w8a8", "student")
    assert found.files[0].files == dict(zip(file.files, file.sha256, strict=True))
    assert (tmp_path / found.files[0].directory).is_dir()


def test_nothing_is_named_where_a_runtime_breaks_a_budget(tmp_path: Path) -> None:
    """LiteRT alone is too slow: under ``stop`` nothing ships, under ``report`` the others do."""
    stopped = shipped(tmp_path / "stop", "stop", max_latency_ms=2.5)
    assert stopped.outcome == "fail"
    assert stopped.files == ()
    why = {w.runtime: (w.outcome, w.why[0]) for w in stopped.withheld}
    assert why["tflite"][0] == "fail"
    assert "limit 2.5" in why["tflite"][1]
    assert why["onnx"] == ("pass", "another runtime of the run does not pass")
    reported = shipped(tmp_path / "report", "report", max_latency_ms=2.5)
    assert [f.runtime for f in reported.files] == ["onnx", "openvino"]
    assert [w.runtime for w in reported.withheld] == ["tflite"]


def test_what_is_not_decided_is_not_shipped(tmp_path: Path) -> None:
    found = shipped(tmp_path, "report", max_drop_points=0.01)
    assert found.outcome in ("fail", "inconclusive")
    assert found.files == ()


def test_a_report_calls_no_file_shipped_that_breaks_a_budget(tmp_path: Path) -> None:
    content = collect(made(tmp_path, "stop", max_latency_ms=2.5).everything())
    by_name = {f.name: f for f in content.files}
    assert by_name["student onnx w8a8"].shipped
    slow = by_name["student tflite w8a8"]
    assert (slow.chosen, slow.shipped) == (True, False)
    cells = {row.file.name: str(row.cells[-1]) for row in rows(content)}
    assert "withheld" in cells["student tflite w8a8"]
    assert "ships" in cells["student onnx w8a8"]


def test_a_run_takes_back_what_an_earlier_one_shipped(tmp_path: Path) -> None:
    (tmp_path / "shipped.json").write_text("{}")
    withdraw(tmp_path)
    withdraw(tmp_path)
    assert not (tmp_path / "shipped.json").exists()


# --- the command -----------------------------------------------------------------------------------------------------

RECIPE = """
schema: 1
name: tiny
data:
  path: synthetic
  synthetic: {per_class: 20, size: 40, difficulty: 0.2}
  calibration: 24
teacher:
  model: mobilenetv1_050
  input: {size: 32}
  training: {epochs: 1, batch_size: 16, lr: 2e-3}
student:
  model: mobilenetv1_025
  input: {size: 32}
  training: {epochs: 2, batch_size: 16, lr: 2e-3, warmup_epochs: 0}
distill: {control: false}
export: {targets: [{runtime: onnx, precisions: [fp32]}]}
verify: {samples: 8}
measure: {quick: true, end_to_end: 2, warmup: 2}
search: {sizes: [32, 24], rounds: 2}
budgets: {default: {max_size_mb: 2.0}}
gate: {on_fail: report}
"""


def kept(work: Path) -> dict[str, str]:
    """Weights and files, by stage and name: the same to the bit however often a search was killed."""
    found = {}
    for path in sorted(work.glob("store/*/manifest.json")):
        for name, facts in json.loads(path.read_text())["files"].items():
            if name.endswith((".safetensors", ".onnx")):
                found[f"{path.parent.name}/{name}"] = facts["sha256"]
    return found


@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_winner_is_found_by_run(tmp_path: Path) -> None:
    """Killed within an epoch of the first round and behind one: the same weights as undisturbed, to the bit."""
    whole, work = (tmp_path / name / "distilledge-work" for name in ("whole", "killed"))
    for folder in (whole.parent, work.parent):
        folder.mkdir()
        (folder / "tiny.yaml").write_text(RECIPE)
    done = distilledge("search", "tiny.yaml", "--json", cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    for entry in (*whole.glob("store/candidate-*"), *whole.glob("store/fit-*")):
        shutil.copytree(entry, work / "store" / entry.name)  # what fits is not what is tested here
    for point in ("train.step@9:kill", "train.epoch@2:kill"):
        killed = distilledge("search", "tiny.yaml", cwd=work.parent, DISTILLEDGE_FAILPOINT=point)
        assert killed.returncode == -9, (point, killed.stderr)
        assert not (work / "searches" / "tiny" / "winner.yaml").exists()
    again = distilledge("search", "tiny.yaml", "--json", cwd=work.parent)
    assert again.returncode == 0, again.stderr
    assert kept(work) == kept(whole)
    found, undisturbed = (json.loads(one.stdout)["result"] for one in (again, done))
    assert found["looked"] == undisturbed["looked"]
    assert sorted([r["epochs"] for r in one["rounds"]] for one in found["looked"]) == [[1], [1, 2]]
    assert {p["epochs"] for p in found["points"]} == {1, 2}, "the stopped student is shown beside the finished one"
    folder = work / "searches" / "tiny"
    assert all((folder / name).stat().st_size > 500 for name in ("search.json", "search.html", "search.md"))
    planned = distilledge("plan", str(folder / "winner.yaml"), "--json", cwd=work.parent)
    cached = {row["stage"] for row in json.loads(planned.stdout) if row["cached"]}
    assert {"data", "teacher", "student", "export-student-onnx"} <= cached, planned.stderr
