"""Structured pruning: networks rebuilt from their channel counts, the steps of a recipe, and a real cut."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distilledge.models import vision
from distilledge.models.errors import MissingPackageError, UsageError
from distilledge.models.pruning import changed, channels, cut, kept, resized, restated, widest
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.reshape import check_package, goal, source_of
from distilledge.pipeline.steps import steps

SIZE = 32
SLOW_ONES = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv1_025", "mobilenetv3_small_050")]
INSTALLED = importlib.util.find_spec("torch_pruning") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="torch-pruning is not installed: pip install torch-pruning")


def student(name: str = "mobilenetv1_025") -> nn.Module:
    torch.manual_seed(0)
    return vision.create(name, classes=3, size=SIZE).eval()


@given(st.integers(1, 400), st.floats(0, 0.95), st.sampled_from([1, 4, 8]))
def test_channels_are_left_in_multiples_and_never_none(count: int, share: float, multiple: int) -> None:
    left = kept(count, share, multiple)
    assert 1 <= left <= count
    assert left % multiple == 0 or left == count
    assert left <= max(multiple, count * (1 - share))


def test_a_network_is_rebuilt_from_its_record_without_the_package() -> None:
    """By hand: half of the channels between the first pointwise layer and the depthwise one behind it."""
    model, record = student(), {}
    before = channels(model)
    for name, sizes in before.items():
        if name.startswith("blocks.1.0.") and ("dw" in name or name.endswith("bn1")):
            record[name] = tuple(8 for _ in sizes)
    record["blocks.0.0.conv_pw"] = (8, 8, 1)
    record["blocks.0.0.bn2"] = (8,)
    record["blocks.1.0.conv_pw"] = (8, before["blocks.1.0.conv_pw"][1], 1)
    small = restated(resized(student(), {k: list(v) for k, v in record.items()}), SIZE)
    assert changed(model, small) == record
    assert small(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 3)
    assert vision.profile(small, SIZE).macs < vision.profile(model, SIZE).macs
    again = resized(student(), record)
    again.load_state_dict(small.state_dict())


def test_a_record_of_another_network_is_refused() -> None:
    with pytest.raises(UsageError, match="E2671"):
        resized(student(), {"no.such.layer": [8, 8, 1]})


@needs_package
@pytest.mark.parametrize("name", [*SLOW_ONES, "test_resnet"])
def test_the_least_pruned_network_within_the_limit(name: str) -> None:
    model = student(name)
    before, weights = vision.profile(model, SIZE), copy.deepcopy(model.state_dict())
    example = torch.zeros(1, 3, SIZE, SIZE)
    most = 0.5 * before.macs
    small = widest(model, example, lambda m: vision.profile(m, SIZE).macs <= most, by="magnitude", multiple=8)
    assert 0.3 * before.macs < vision.profile(small, SIZE).macs <= most
    own = channels(small)
    made = {name: sizes[1] for name, sizes in changed(model, small).items() if len(sizes) == 3}  # of convolutions
    assert made
    assert [name for name, count in made.items() if count % 8 and ".se." not in name] == []
    assert [s for s in own.values() if len(s) == 2][-1][1] == 3  # the classes
    again = resized(student(name), changed(model, small)).eval()
    again.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(again(x), small(x))
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())  # the caller's is kept


@needs_package
def test_the_smallest_weights_go_first() -> None:
    model = student()
    weight = dict(model.named_modules())["blocks.0.0.conv_pw"].weight
    for layer in ("blocks.0.0.conv_pw", "blocks.1.0.conv_dw"):
        model.get_submodule(layer).weight.data[8:] *= 1e-3  # type: ignore[operator]
    model.get_submodule("blocks.1.0.conv_pw").weight.data[:, 8:] *= 1e-3  # type: ignore[operator]
    small = cut(model, torch.zeros(1, 3, SIZE, SIZE), 0.5, by="magnitude", multiple=8)
    assert torch.equal(small.get_submodule("blocks.0.0.conv_pw").weight, weight[:8])  # type: ignore[arg-type]


@needs_package
def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(UsageError, match="E2672"):
        widest(student(), torch.zeros(1, 3, SIZE, SIZE), lambda _: False, by="bn-scale", multiple=8)


@pytest.mark.skipif(INSTALLED, reason="torch-pruning is installed")
def test_without_the_package_the_command_is_named() -> None:
    with pytest.raises(MissingPackageError, match="pip install torch-pruning"):
        check_package()


def recipe(prune: dict[str, Any] | None, **rest: Any) -> Recipe:
    return Recipe.model_validate({"name": "p", "student": {"prune": prune}, **rest})


def test_the_unpruned_student_is_the_student_of_a_recipe_without_pruning() -> None:
    plain = {s.name: s for s in steps(recipe(None), {})}
    cut_ = {s.name: s for s in steps(recipe({"macs": 0.25, "rounds": 2}), {})}
    for role in ("student", "control"):
        assert cut_[f"{role}-unpruned"].fingerprint == plain[role].fingerprint
        assert cut_[f"{role}-round-1"].inputs["from"] == plain[role].fingerprint
        assert cut_[role].inputs["from"] == cut_[f"{role}-round-1"].fingerprint
    assert cut_["export-student-onnx"].inputs["checkpoint"] == cut_["student"].fingerprint
    assert [s for s in cut_ if s.startswith("student")] == ["student-unpruned", "student-round-1", "student"]
    assert {n for n in plain if n.startswith("export")} == {n for n in cut_ if n.startswith("export")}


def test_rounds_go_down_in_equal_ratios() -> None:
    asked = recipe({"macs": 0.25, "rounds": 2})
    assert [goal(asked, number) for number in (1, 2)] == [0.5, 0.25]
    assert source_of("student-round-1", 2) == ("student-unpruned", 1)
    assert source_of("student", 2) == ("student-round-1", 2)
    assert source_of("control", 1) == ("control-unpruned", 1)


@pytest.mark.parametrize("prune", [{}, {"macs": 0.5, "latency": 0.5}])
def test_one_goal_is_wanted(prune: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one goal"):
        check_recipe(recipe(prune))
