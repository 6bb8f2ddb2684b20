"""Fit: untrained networks that run as trained ones do, what a row says of its budgets, what is found in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_run
import numpy as np
import pytest
import torch
import typer
from launched import distilledge
from torch import nn

from distilledge.models import vision
from distilledge.models.errors import GateFailedError, UsageError
from distilledge.models.untrained import as_trained
from distilledge.pipeline.cli_search import _end, _search_of
from distilledge.pipeline.gate import P50
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.record import Check
from distilledge.pipeline.search.candidates import Candidate, candidates, check_candidates, class_count, recipe_of
from distilledge.pipeline.search.fit import Ground, file_inputs, input_spec, made_pictures
from distilledge.pipeline.search.fits import (
    FitResult,
    FitRow,
    by_candidate,
    device_checks,
    of_candidate,
    outcome_of,
    unfit,
    words,
)
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store, fingerprint
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ondevice.preprocess import preprocess


def recipe(**parts: Any) -> Recipe:
    return Recipe.model_validate({"name": "fit", "data": {"path": "synthetic"}, **parts})


def seen(size: int, folder: Path) -> torch.Tensor:
    spec = input_spec(recipe(), Candidate("mobilenetv1_025", size))
    rows = np.stack([preprocess(path, spec) for path in made_pictures(size, folder)])
    return torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenetv1_025", "resnet18", "mobilenetv3_small_050"])
def test_layers_of_an_untrained_network_are_neither_dead_nor_huge(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vision.create(name, classes=3, size=32)
    pictures = seen(32, tmp_path)
    outputs: dict[str, torch.Tensor] = {}
    as_trained(model, pictures)
    for place, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _m, _i, out, place=place: outputs.update({place: out}))
    with torch.no_grad():
        model(pictures)
    assert not model.training
    assert len(outputs) > 10
    smallest = torch.finfo(torch.float32).smallest_normal
    for place, made in outputs.items():
        alive = (made.abs().amax((0, 2, 3)) > 0).float().mean()
        assert alive > 0.5, place
        assert 1e-3 < float(made.abs().max()) < 100, place
        assert not ((made != 0) & (made.abs() < smallest)).any(), f"{place}: denormal numbers"


def test_batch_statistics_are_those_of_the_pictures() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    pictures = torch.randn(32, 3, 6, 6)
    with torch.no_grad():
        expected = model[0](pictures)
    as_trained(model, pictures)
    assert torch.allclose(model[1].running_mean, expected.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model[1].running_var, expected.var((0, 2, 3)), rtol=0.1)
    assert model[1].momentum == 0.1


def test_biases_that_begin_at_zero_are_added_and_others_kept() -> None:
    model = vision.create("mobilenetv3_small_050", classes=3, size=32)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert not all(layer.bias.any() for layer in layers if layer.bias is not None)
    with torch.no_grad():
        for layer in layers[:1]:
            layer.bias.fill_(0.5)  # type: ignore[union-attr]
    as_trained(model, torch.randn(16, 3, 32, 32))
    assert all(layer.bias.any() for layer in layers if layer.bias is not None)
    assert layers[0].bias.eq(0.5).all()  # type: ignore[union-attr]


def test_branches_that_begin_at_zero_are_switched_on() -> None:
    model = vision.create("resnet18", classes=3, size=32)
    last = [m for n, m in model.named_modules() if n.endswith("bn2")]
    assert any(not norm.weight.any() for norm in last)  # type: ignore[operator, union-attr]
    as_trained(model, torch.randn(16, 3, 32, 32))
    assert all(norm.weight.all() for norm in last)  # type: ignore[operator, union-attr]


# --- what is looked among --------------------------------------------------------------------------------------------


def test_candidates_are_every_student_at_every_size_once() -> None:
    found = candidates(recipe(search={"students": ["a", "b", "a"], "sizes": [64, 32]}))
    assert found == (Candidate("a", 64), Candidate("a", 32), Candidate("b", 64), Candidate("b", 32))
    assert candidates(recipe(student={"model": "x", "input": {"size": 40}})) == (Candidate("x", 40),)


def test_a_candidate_is_the_recipe_with_that_student_alone() -> None:
    whole = recipe(
        student={"model": "a", "weights": "hub", "training": {"epochs": 7}},
        search={"students": ["a", "b"], "weights": {"b": "none"}},
    )
    own = recipe_of(whole, Candidate("b", 48))
    assert (own.student.model, own.student.input.size, own.student.weights) == ("b", 48, "none")
    assert own.student.training == whole.student.training
    assert recipe_of(whole, Candidate("a", 48)).student.weights == "hub"
    assert own.search == Recipe(name="x").search


def test_a_search_changes_no_stage_of_a_run() -> None:
    """Cached stages of a recipe stay valid when a search is added to it."""
    plain = recipe(student={"model": "mobilenetv1_025"})
    asked = recipe(student={"model": "mobilenetv1_025"}, search={"students": ["mobilenetv1_025"], "sizes": [96, 128]})
    assert [s.fingerprint for s in steps(plain, {})] == [s.fingerprint for s in steps(asked, {})]


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"search": {"weights": {"b": "none"}}}, "of no student"),
        (
            {"student": {"model": "a", "weights": "a.pt"}, "search": {"students": ["a", "b"]}},
            "student.weights",
        ),
        ({"task": "text-classification", "search": {"sizes": [64]}}, "of pictures"),
    ],
)
def test_contradictions_are_told(parts: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check_recipe(recipe(**parts))


def test_texts_and_unknown_students_are_refused() -> None:
    with pytest.raises(UsageError, match="E2690"):
        candidates(recipe(task="text-classification"))
    with pytest.raises(UsageError, match="mobilenetv1_025"):
        check_candidates(recipe(search={"students": ["mobilenetv1_02"]}))


def test_the_number_of_classes_is_that_of_the_data(tmp_path: Path) -> None:
    assert class_count(recipe()) == 6
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        made_pictures(32, tmp_path / name)
    assert class_count(recipe(data={"path": str(tmp_path)})) == 3
    with pytest.raises(UsageError, match="--classes"):
        class_count(recipe(data={"path": str(tmp_path / "nowhere")}))


def test_lists_on_the_command_line() -> None:
    assert _search_of(["a,b", "c"], ["96 128"]) == ["search.students=[a, b, c]", "search.sizes=[96, 128]"]
    assert _search_of([], []) == []
    with pytest.raises(UsageError, match="E2692"):
        _search_of([], ["small"])


def test_the_name_in_the_store_changes_with_what_changes_the_file(tmp_path: Path) -> None:
    def key(**changed: Any) -> str:
        own = recipe(**{k: v for k, v in changed.items() if k in ("budgets", "student", "metric", "name")})
        given = Ground(own, changed.get("classes", 6), LocalDevice(), changed.get("card", {}), Store(tmp_path))
        one = Candidate(changed.get("model", "a"), changed.get("size", 32))
        return fingerprint("candidate", 1, file_inputs(given, one, own.export.targets[changed.get("target", 0)]))

    same = key()
    assert key(budgets={"default": {"max_size_mb": 1}}) == same, "a budget judges, it makes no other file"
    assert key(name="other", metric="balanced_accuracy") == same
    assert key(card={"cpu_model": "another"}) == same, "what is timed there has a name of its own"
    others = [
        key(size=64),
        key(model="b"),
        key(classes=7),
        key(target=1),
        key(student={"input": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}),
        key(card={"cpu_flags": ["avx2"], "machine": "x86_64"}),
    ]
    assert len({same, *others}) == 7


# --- judging ---------------------------------------------------------------------------------------------------------


def check(outcome: str, what: str = P50, value: float = 2.0, limit: float = 1.0) -> Check:
    return Check(what=what, value=value, low=value * 0.9, high=value * 1.1, limit=limit, outcome=outcome)  # type: ignore[arg-type]


def row(runtime: str, precision: str, *outcomes: str, model: str = "a") -> FitRow:
    checks = tuple(check(outcome, what) for outcome, what in zip(outcomes, ("p50", "size"), strict=False))
    return FitRow(model=model, size=32, runtime=runtime, precision=precision, checks=checks, outcome=outcome_of(checks))


def test_the_file_that_ships_decides() -> None:
    rows = [row("onnx", "fp32", "holds", "fails"), row("onnx", "w8a8", "holds", "holds")]
    assert of_candidate(rows, climbs=False) == "fits"
    slow = [row("onnx", "fp32", "holds", "holds"), row("onnx", "w8a8", "fails", "holds")]
    assert of_candidate(slow, climbs=False) == "over"
    assert of_candidate(slow, climbs=True) == "fits", "the ladder may ship the float file"


def test_the_ladder_may_make_a_file_that_was_not_timed() -> None:
    """int8 too slow, float too large: weights alone in int8 may be neither."""
    rows = [row("onnx", "fp32", "holds", "fails"), row("onnx", "w8a8", "fails", "holds")]
    assert of_candidate(rows, climbs=True) == "fits"
    assert of_candidate([*rows, row("tflite", "fp32", "fails", "fails")], climbs=True) == "over"


def test_one_runtime_over_is_over_and_one_undecided_undecided() -> None:
    rows = [row("onnx", "fp32", "holds"), row("tflite", "fp32", "inconclusive")]
    assert of_candidate(rows, climbs=False) == "inconclusive"
    assert of_candidate([*rows, row("openvino", "fp32", "fails")], climbs=False) == "over"
    assert list(by_candidate([*rows, row("onnx", "fp32", model="b")])) == [Candidate("a", 32), Candidate("b", 32)]


def test_checks_have_intervals_and_flags_leave_them_open() -> None:
    own = recipe(budgets={"default": {"max_latency_ms": 5.0, "max_size_mb": 4.0, "max_peak_rss_mb": 10.0}})
    file = made_run.exported("onnx", "w8a8", "student")
    timing = made_run.measurement("onnx", "w8a8", "student", median_ms=8.0)
    found = device_checks(own, file, timing, own.budget_of("onnx"))
    assert [c.outcome for c in found] == ["fails", "holds", "fails"]
    assert "1.6" in words(found[0])
    assert "limit 5" in words(found[0])
    flagged = timing.model_copy(update={"flags": ("OTHER_LOAD",)})
    loaded = device_checks(own, file, flagged, own.budget_of("onnx"))
    assert loaded[0].outcome == "inconclusive", "other load can have made it slow"
    assert outcome_of(loaded) == "over", "its memory is over all the same"
    near = own.budget_of("onnx").model_copy(update={"max_latency_ms": found[0].value, "max_peak_rss_mb": None})
    assert outcome_of(device_checks(own, file, timing, near)) == "inconclusive"
    assert device_checks(own, file, timing, near.model_copy(update={"max_latency_ms": None, "max_size_mb": None})) == ()


def test_the_exit_code_says_whether_anything_fits() -> None:
    def ended(*rows: FitRow) -> None:
        _end(FitResult(device="local", card={}, classes=2, rows=rows), climbs=False)

    ended(row("onnx", "fp32", "holds"), row("onnx", "fp32", "fails", model="b"))
    with pytest.raises(typer.Exit) as undecided:
        ended(row("onnx", "fp32", "inconclusive"), row("onnx", "fp32", "fails", model="b"))
    assert undecided.value.exit_code == 10
    with pytest.raises(GateFailedError, match="E5040"):
        ended(row("onnx", "fp32", "fails"), unfit(Candidate("b", 32), "onnx", "no such operation"))


# --- the command -----------------------------------------------------------------------------------------------------

RECIPE = """
schema: 1
name: fits
data: {path: synthetic}
student: {model: mobilenetv1_025, input: {size: 32}}
export: {targets: [{runtime: onnx, precisions: [fp32, w8a8]}]}
measure: {warmup: 2}
search: {students: [mobilenetv1_025, mobilenetv1_050]}
budgets: {default: {max_size_mb: 0.6}}
"""


@pytest.mark.slow
def test_fit_says_what_fits_and_loses_nothing(tmp_path: Path) -> None:
    """No data, no weights; killed between two candidates it goes on; a second call makes nothing."""
    (tmp_path / "fits.yaml").write_text(RECIPE)
    killed = distilledge("fit", "fits.yaml", cwd=tmp_path, DISTILLEDGE_FAILPOINT="commit.rename@3:kill")
    assert killed.returncode == -9
    store = tmp_path / "distilledge-work" / "store"
    assert len(list(store.glob("candidate-*"))) == 1
    done = distilledge("fit", "fits.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {(r["model"], r["precision"]): r for r in json.loads(done.stdout)["rows"]}
    assert {key: r["outcome"] for key, r in found.items()} == {
        ("mobilenetv1_025", "fp32"): "over",
        ("mobilenetv1_025", "w8a8"): "fits",
        ("mobilenetv1_050", "fp32"): "over",
        ("mobilenetv1_050", "w8a8"): "over",
    }
    assert all(r["p50"]["low"] <= r["p50"]["value"] <= r["p50"]["high"] for r in found.values())
    assert all(r["peak_rss_mb"] > 20 for r in found.values())
    times = {p: p.stat().st_mtime_ns for p in store.glob("*/manifest.json")}
    again = distilledge("fit", "fits.yaml", "--json", cwd=tmp_path)
    assert again.stdout == done.stdout
    assert {p: p.stat().st_mtime_ns for p in store.glob("*/manifest.json")} == times
