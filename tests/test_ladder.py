"""The quantization ladder: estimators against plain numpy, corrections on real layers, the climb as pure logic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.rounding import bias_corrected, channel_means, fake_quantised, folded, rounded
from distilledge.pipeline.compress.calibration import audit, check_own, half_shift
from distilledge.pipeline.compress.climb import choose, climb, outcome_of
from distilledge.pipeline.compress.ladder import RUNGS, spread
from distilledge.pipeline.compress.ledger import Tried
from distilledge.pipeline.gate import check_of
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_compress import Compress, Qat, Recut
from distilledge.pipeline.record import Sample
from distilledge.pipeline.stats import Estimate
from distilledge.pipeline.steps import steps
from distilledge.targets.ranges import (
    LEVELS,
    Observed,
    entropy,
    layer_error,
    minmax,
    mse,
    observe,
    percentile,
    squared_error,
)
from distilledge.targets.scheme import PLAIN, Scheme


def seen(rows: np.ndarray) -> Observed:
    return observe(lambda some: {"x": some}, [row[None] for row in rows.astype(np.float32)])["x"]


def outliers(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 1, (64, 1000))
    values[0, 0], values[1, 0] = 60.0, -40.0
    return values


# --- ranges ----------------------------------------------------------------------------------------------------------


def test_minmax_is_of_all_values_and_holds_zero() -> None:
    rows = np.random.default_rng(0).normal(5, 0.1, (7, 5000))
    assert minmax(seen(rows)) == (0.0, pytest.approx(rows.max(), rel=1e-6))


def test_percentile_is_numpys() -> None:
    values = outliers()
    low, high = np.percentile(values.astype(np.float32), (0.01, 99.99))
    assert percentile(seen(values)) == pytest.approx((low, high), rel=1e-5)


def test_mse_is_no_worse_than_any_clipping_tried_by_brute_force() -> None:
    values = outliers().ravel()
    low, high = mse(seen(outliers()))
    ones = np.ones(len(values))
    found = squared_error(values, ones, low, high)
    brute = min(squared_error(values, ones, -b, b) for b in np.linspace(2, 60, 60))
    assert found <= 1.1 * brute
    assert found < 0.9 * squared_error(values, ones, *minmax(seen(outliers())))


def test_squared_error_is_that_of_an_int8_tensor() -> None:
    values = np.random.default_rng(1).normal(0, 1, 500)
    low, high = -1.5, 2.5
    scale = (high - low) / LEVELS
    zero = np.round(-low / scale)
    stored = np.clip(np.round(values / scale) + zero, 0, LEVELS)
    expected = np.mean((values - (stored - zero) * scale) ** 2)
    assert squared_error(values, np.ones(500), low, high) == pytest.approx(expected)


def test_entropy_cuts_outliers_and_keeps_uniform_values() -> None:
    low, high = entropy(seen(outliers()))
    assert 3 < high < 15
    assert -15 < low < -3
    uniform = np.random.default_rng(2).uniform(0, 1, (64, 1000))
    assert entropy(seen(uniform))[1] > 0.9


def test_observing_does_not_depend_on_how_many_rows_fit_at_once() -> None:
    rows = np.random.default_rng(3).normal(0, 1, (5, 3, 700)).astype(np.float32)
    one = observe(lambda some: {"x": some}, [row[None] for row in rows])["x"]
    assert np.array_equal(one.low, rows.reshape(5, -1).min(1))
    assert np.array_equal(one.values, rows.reshape(5, -1)[:, ::3].ravel())


def test_layer_error_is_in_decibels() -> None:
    reference = np.array([[1.0, -1.0], [2.0, 0.0]], np.float32)
    error = layer_error("a", "Conv", 0, reference, reference * np.float32(1.1))
    assert error.sqnr_db == pytest.approx(20.0, abs=1e-4)
    assert error.kl > 0
    assert layer_error("a", "Conv", 0, reference, reference).sqnr_db == 200.0


# --- biases ----------------------------------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    for norm in layers:
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 3.0)
            norm.weight.data.uniform_(0.5, 2.0)
            norm.bias.data.normal_()
    return layers.eval()


def test_folding_changes_nothing_but_the_form() -> None:
    model, x = network(), torch.randn(4, 3, 12, 12)
    own = folded(model, x[:1])
    assert torch.allclose(own(x), model(x), atol=1e-5)
    norm = own.get_submodule("1")
    assert torch.equal(norm(torch.ones(1, 8, 2, 2)), torch.ones(1, 8, 2, 2))
    assert model.get_submodule("0").bias is None  # the caller's is not touched


def test_corrected_biases_give_each_layer_its_float_mean() -> None:
    """An independent int8 network: weights rounded, the input of each layer rounded in its float range."""
    model, x = network(), torch.randn(16, 3, 12, 12)
    corrected, plain = bias_corrected(model, x), folded(model, x[:1])
    float_means, limits = means_of(plain, x, {})
    before, _ = means_of(quantised(plain), x, limits)
    after, _ = means_of(quantised(corrected), x, limits)
    for name, mean in float_means.items():
        assert torch.allclose(after[name], mean, atol=1e-4)
    assert max(float((before[name] - mean).abs().max()) for name, mean in float_means.items()) > 1e-3
    weights = [m.weight for m in corrected.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(torch.equal(a, m.weight) for a, m in zip(weights, layers_of(plain), strict=True))


def layers_of(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@torch.no_grad()
def quantised(model: nn.Module) -> nn.Module:
    import copy

    own = copy.deepcopy(model)
    for layer in layers_of(own):
        layer.weight.copy_(rounded(layer.weight))
    return own


@torch.no_grad()
def means_of(
    model: nn.Module, x: torch.Tensor, limits: dict[int, Any]
) -> tuple[dict[int, torch.Tensor], dict[int, Any]]:
    """Means of each layer by its number; inputs rounded where ``limits`` names their range."""
    means, ranges, number = {}, {}, 0
    for module in model:  # type: ignore[attr-defined]
        if isinstance(module, nn.Conv2d | nn.Linear):
            ranges[number] = (min(0.0, float(x.min())), max(0.0, float(x.max())))
            x = fake_quantised(x, *limits[number]) if number in limits else x
            x = module(x)
            means[number] = channel_means(x)
            number += 1
        else:
            x = module(x)
    return means, ranges


# --- the climb -------------------------------------------------------------------------------------------------------


def tried(outcome: Any = "fails", agreement: float = 0.9, answers: int = 6, drop: float = 0.0) -> Tried:
    return Tried(
        rung="ptq",
        recipe="by hand",
        precision="w8a8",
        outcome=outcome,
        reason="",
        drop=Estimate(value=drop),
        agreement=agreement,
        answers=answers,
        size_mb=1.0,
        seconds=0.0,
    )


candidates = st.lists(
    st.builds(
        tried,
        outcome=st.sampled_from(("holds", "undecided", "fails")),
        agreement=st.floats(0, 1),
        answers=st.integers(1, 6),
        drop=st.floats(-5, 50),
    ),
    min_size=1,
    max_size=8,
)


@given(candidates, st.floats(0, 1))
def test_what_is_outside_the_budget_is_never_shipped_where_something_is_inside(made: list[Tried], least: float) -> None:
    found = climb(iter(made), lambda one: one, min_agreement=least)
    taken = found[choose(found)]
    outcomes = {one.outcome for one in found}
    if "holds" in outcomes:
        assert taken.outcome == "holds"
    elif "undecided" in outcomes:
        assert taken.outcome == "undecided"
        assert not any(
            one.agreement > taken.agreement and one.outcome == "undecided" and one.answers > 1 for one in found
        )
    if taken.answers < 2:
        assert taken.outcome == "holds" or all(one.answers < 2 or one.outcome != taken.outcome for one in found)


@given(candidates, st.floats(0, 1))
def test_nothing_is_tried_behind_a_rung_that_settles_it(made: list[Tried], least: float) -> None:
    asked = iter(made)
    found = climb(asked, lambda one: one, min_agreement=least)
    assert all(one.outcome != "holds" for one in found[:-1])
    assert len(found) + len(list(asked)) == len(made)
    if found[-1].outcome == "fails":
        assert len(found) == len(made)


def test_gains_are_over_the_first_rung() -> None:
    found = climb([tried(agreement=0.8), tried(agreement=0.9)], lambda one: one, min_agreement=0.98)
    assert found[0].gained is None
    assert found[1].gained == pytest.approx(0.1)


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0, 3))
def test_an_interval_that_straddles_the_limit_never_holds(value: float, below: float, above: float) -> None:
    drop = Estimate(value=value, low=value - below, high=value + above)
    found = outcome_of([check_of("drop", drop, 0.5)])
    assert (found == "holds") == (value + above <= 0.5)
    assert (found == "fails") == (value > 0.5)
    assert outcome_of([check_of("drop", drop, None)]) == "holds"


def test_every_rung_of_the_recipe_is_there() -> None:
    assert tuple(RUNGS) == Compress(qat=Qat(), surgery=Recut()).rungs
    assert Compress().rungs == tuple(name for name in RUNGS if name not in ("qat", "surgery"))
    assert spread([1, 2, 3, 4, 5], 2) == [1, 3]
    assert spread([1, 2], 5) == [1, 2]


# --- recipe and auditor ----------------------------------------------------------------------------------------------


def test_a_recipe_that_does_not_climb_keeps_its_fingerprints_and_one_that_does_has_its_own() -> None:
    card = {"machine": "x86_64", "cpu_flags": ["avx512_vnni"]}
    plain = {s.name: s for s in steps(Recipe(name="a"), card)}
    assert all("compress" not in s.inputs for s in plain.values())
    climbing = {s.name: s for s in steps(Recipe(name="a", compress=Compress(climb=True)), card)}
    changed = {name for name, s in plain.items() if climbing[name].fingerprint != s.fingerprint}
    exports = {f"export-student-{runtime}" for runtime in ("onnx", "openvino", "tflite")}
    assert exports <= changed
    assert not {n for n in changed if n.startswith(("data", "teacher", "student", "control", "export-teacher"))}


@pytest.mark.parametrize(
    "wrong",
    [
        {"export": {"targets": [{"runtime": "onnx", "precisions": ["fp32"]}]}},
        {"compress": {"climb": True, "rungs": []}},
    ],
)
def test_contradictions_of_the_ladder_are_told(wrong: dict[str, Any]) -> None:
    recipe = Recipe.model_validate({"name": "a", "compress": {"climb": True}} | wrong)
    with pytest.raises(UsageError, match="compress"):
        check_recipe(recipe)


def sample(number: int, split: Any = "train", digest: str = "") -> Sample:
    return Sample(f"{split}-{number}.png", number % 2, "", split, digest or f"{split}{number}", calibration=True)


def test_calibration_on_held_out_pictures_is_refused() -> None:
    own = [sample(i) for i in range(4)]
    check_own(own, [sample(9, "test")])
    with pytest.raises(RejectedError, match="E3060"):
        check_own([*own, sample(5, "validation")], [])
    with pytest.raises(RejectedError, match="E3061"):
        check_own(own, [sample(9, "test", digest="train2")])


def test_the_audit_names_missing_classes_and_unstable_tensors() -> None:
    steady = np.tile(np.linspace(-1, 1, 50), (4, 1))
    shaky = steady.copy()
    shaky[1::2] *= 4
    found = audit([sample(i) for i in range(4)], ("a", "b", "c"), {"steady": seen(steady), "shaky": seen(shaky)})
    assert found.per_class == {"a": 2, "b": 2, "c": 0}
    assert found.missing == ("c",)
    assert found.unstable_tensor == "shaky"
    assert found.worst == pytest.approx(2.0)
    assert half_shift(seen(steady)) == 0.0
    assert half_shift(seen(steady[:1])) is None


def test_a_scheme_says_what_it_does() -> None:
    assert PLAIN.words == ""
    words = Scheme(ranges={"x": (0.0, 1.0)}, ranges_name="MSE", own_bias=True, islands=("a", "b")).words
    assert words == ", MSE ranges, bias correction, 2 layers in float"
