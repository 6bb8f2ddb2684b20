"""Student surgery: what is cut out, what is kept, that a checkpoint says so, and that the files hold none of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from test_qat import RECIPE, distilledge, entries, ledger
from torch import nn

from distilledge.models import vision
from distilledge.models.base import Surgery
from distilledge.models.errors import UsageError
from distilledge.models.surgery import counts, operated, variants
from distilledge.models.vision_catalogue import int8_friendliness
from distilledge.models.vision_names import build
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.checkpoint import input_spec
from distilledge.pipeline.recipe import Data, Input, Recipe
from distilledge.pipeline.recipe_check import check_models, check_recipe
from distilledge.pipeline.record import Checkpoint
from distilledge.pipeline.steps import steps
from distilledge.pipeline.training.operate import operate
from distilledge.targets import get

SIZE, CLASSES = 32, ("a", "b", "c")
PLAIN = Surgery(activation="relu6", squeeze_excite="drop")


def ghost(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes=3, size=SIZE)


def student(name: str = "mobilenetv3_small_050") -> nn.Module:
    torch.manual_seed(0)
    return vision.create(name, classes=len(CLASSES), size=SIZE).eval()


@pytest.mark.parametrize(
    ("name", "smooth", "hard", "blocks"),
    [
        ("efficientnet_b0", 49, 0, 16),
        ("tf_efficientnetv2_b0", 55, 0, 16),
        ("mobilenetv3_small_100", 0, 19, 9),
        ("mobilenetv3_large_100", 0, 21, 8),
        ("mobilenetv4_conv_small", 0, 0, 0),
    ],
)
def test_parts_are_counted_and_all_of_them_go(name: str, smooth: int, hard: int, blocks: int) -> None:
    model = ghost(name)
    found = counts(model)
    assert (found["smooth"], found["hard-swish"], found["squeeze-excite"]) == (smooth, hard, blocks)
    if not blocks:
        with pytest.raises(UsageError, match="E2670"):
            operated(model, PLAIN)
        return
    inner = sum(isinstance(m, nn.SiLU | nn.ReLU) for n, m in model.named_modules() if n.endswith(".se.act1"))
    before = found["smooth"] + found["hard-swish"] + found["relu"]
    left = counts(operated(model, PLAIN))
    assert left == {**dict.fromkeys(left, 0), "relu": before - inner}
    assert int8_friendliness(model)[0] == "good"


def test_squeeze_excite_can_stay_with_a_gate_that_int8_bears() -> None:
    found = counts(operated(ghost("efficientnet_b0"), Surgery(squeeze_excite="hard-sigmoid")))
    assert found["squeeze-excite"] == found["hard-sigmoid"] == found["relu"] == 16
    assert found["sigmoid"] == 0
    assert found["smooth"] == 49 - 16  # those outside of the blocks were not asked for


def test_hard_swish_replaces_what_is_smooth_and_stays_where_it_is() -> None:
    assert counts(operated(ghost("efficientnet_b0"), Surgery(activation="hard-swish")))["hard-swish"] == 49
    with pytest.raises(UsageError, match="E2670"):
        operated(ghost("mobilenetv3_small_100"), Surgery(activation="hard-swish"))


def test_every_weight_that_is_left_is_the_pretrained_one() -> None:
    before = {name: tensor.clone() for name, tensor in student().state_dict().items()}
    after = operated(student(), PLAIN).state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    gone = set(before) - set(after)
    assert gone
    assert all(".se." in name for name in gone)


def test_the_mode_of_a_replaced_module_is_that_of_the_network() -> None:
    assert not any(m.training for m in operated(student(), PLAIN).modules())


def test_variants_are_those_that_change_something_mildest_first() -> None:
    assert variants(ghost("mobilenetv1_025")) == ()
    assert variants(ghost("mobilenetv3_small_100")) == (PLAIN,)
    mild = Surgery(activation="hard-swish", squeeze_excite="hard-sigmoid")
    assert variants(ghost("efficientnet_b0")) == (mild, PLAIN)
    for surgery in variants(ghost("tf_efficientnetv2_b0")):
        operated(ghost("tf_efficientnetv2_b0"), surgery)


def record(model: nn.Module, folder: Path, **architecture: Any) -> Checkpoint:
    spec = input_spec(Input(size=SIZE), Data(), vision.input_defaults("mobilenetv3_small_050"))
    return Checkpoint(
        role="student",
        model="mobilenetv3_small_050",
        classes=CLASSES,
        input_spec=spec.to_dict(),
        architecture=architecture,
        weights_sha256=checkpoints.save_weights(model.state_dict(), folder),
        parameters=0,
        macs=0,
        validation={},
        best_epoch=1,
        epochs=1,
        seconds=0.0,
        samples_per_second=0.0,
        precision="fp32",
    )


def test_a_checkpoint_is_rebuilt_from_what_it_says(tmp_path: Path) -> None:
    model, x = operated(student(), PLAIN), torch.randn(2, 3, SIZE, SIZE)
    made = record(model, tmp_path, surgery=PLAIN.model_dump(mode="json"))
    again = checkpoints.load(Checkpoint.model_validate_json(made.model_dump_json()), tmp_path)
    assert torch.equal(again(x), model(x))


def test_a_trained_student_is_cut_for_the_ladder(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    made = record(student(), before)
    found = operate((made, before), PLAIN, after)
    assert found.architecture == {"surgery": PLAIN.model_dump(mode="json")}
    assert found.parameters < sum(p.numel() for p in student().parameters())
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(checkpoints.load(found, after)(x), operated(student(), PLAIN)(x))
    with pytest.raises(UsageError, match="E2670"):
        operate((found, after), PLAIN, before)


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "s", "student": {"model": "mobilenetv3_small_050", **fields}})


def test_fingerprints_change_where_the_student_does_and_nowhere_without_surgery() -> None:
    plain = {s.name: s for s in steps(recipe(), {})}
    assert all("surgery" not in str(s.inputs) and "prune" not in str(s.inputs) for s in plain.values())
    cut = {s.name: s for s in steps(recipe(surgery={"activation": "relu6"}), {})}
    same = {name for name, step in plain.items() if cut[name].fingerprint == step.fingerprint}
    assert {"data", "teacher"} <= same
    assert not {"student", "control"} & same


def test_contradictions_are_told_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="replaces nothing"):
        check_recipe(recipe(surgery={}))
    text = {"name": "s", "task": "text-classification", "student": {"surgery": {"activation": "relu6"}}}
    with pytest.raises(UsageError, match="for pictures"):
        check_recipe(Recipe.model_validate(text))
    small = {"model": "mobilenetv1_025", "surgery": {"activation": "relu6"}}
    with pytest.raises(UsageError, match="E2670"):
        check_models(Recipe.model_validate({"name": "s", "student": small}))


def test_the_page_holds_what_is_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    surgery = importlib.import_module("surgery")
    page, results = (root / "docs" / "students.md").read_text(), surgery.recorded(root / "benchmarks" / "results")
    assert page == surgery.filled(page, results)
    assert results["bars"] == surgery.bars(results["rows"])
    assert len([row for row in results["rows"] if row["table"] == "sizes"]) >= 8


@pytest.mark.slow
def test_the_exported_graph_holds_none_of_it(tmp_path: Path) -> None:
    from distilledge.pipeline.export import describe

    found = {}
    for name, model in (("as it is", student()), ("cut", operated(student(), PLAIN))):
        folder = tmp_path / name
        folder.mkdir()
        target = get("onnx")
        path = target.export(model, describe(record(model, folder), target), folder)
        found[name] = {node.op_type for node in onnx.load(path).graph.node}
    assert {"HardSwish", "HardSigmoid"} & found["as it is"]
    assert not {"HardSwish", "HardSigmoid", "Sigmoid", "Div"} & found["cut"]
    assert "Clip" in found["cut"]


@pytest.mark.slow
def test_the_ladder_cuts_a_trained_student_and_distills_it_again(tmp_path: Path) -> None:
    rung = "rungs: [surgery], surgery: {epochs: 2}, min_agreement: 1.0"
    made = RECIPE.replace("rungs: [qat], qat: {epochs: 2}, min_agreement: 0.0", rung)
    made = made.replace(
        "    - {runtime: openvino, precisions: [w8a8]}\n    - {runtime: tflite, precisions: [w8a8]}\n", ""
    )
    (tmp_path / "tiny.yaml").write_text(made)
    done = distilledge("verify", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (trained,) = entries(tmp_path, "surgery")
    value = json.loads((trained / "value.json").read_text())["checkpoint"]
    assert value["architecture"]["surgery"] == PLAIN.model_dump()
    assert value["epochs"] == 2
    (exported,) = (path for path in entries(tmp_path, "export") if ledger(path) is not None)
    found = [(one["rung"], one["twin"] and one["twin"]["of"]) for one in ledger(exported)["tried"]]
    assert found[0] == ("surgery", "torch after surgery")
    assert all(one["twin"]["cosine"] > 0.9 for one in ledger(exported)["tried"])
