"""Domain adaptation in small trainings: the same bits after an interruption, statistics, a collapse, a whole run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_domains import prepared, sets
from test_training import folders, weights

from distilledge.models import vision
from distilledge.models.domains import adapt_batch_norm
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import Adaptation, Checkpoint, read_samples
from distilledge.pipeline.run import run
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.pretrain import pretrain
from distilledge.pipeline.training.teacher import finetune
from distilledge.pipeline.training.views import ToInput, evaluation_batches

pytestmark = pytest.mark.slow

TRAINING = {"epochs": 3, "batch_size": 4, "lr": 3e-3, "warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A data stage with a target: its splits and directory."""
    splits, directory, _ = prepared(sets(tmp_path_factory.mktemp("data"), source=10, learned=10))
    return splits, directory


def recipe(strategy: Any, **teacher: Any) -> Recipe:
    own = {"model": "test_efficientnet", "input": {"size": 32}, "strategy": strategy, "training": TRAINING}
    return Recipe.model_validate({"name": "t", "data": {"target": {"path": "x"}}, "teacher": {**own, **teacher}})


def interrupt(event: ProgressEvent) -> None:
    if (event.epoch, event.step) in ((1, 2), (3, 1)):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("strategy", ["dann", {"name": "coral", "arguments": {"weight": 50}}, "mmd"])
def test_interrupted_and_resumed_gives_the_same_bits(strategy: Any, data: Any, tmp_path: Path) -> None:
    made = recipe(strategy)
    whole, partial = folders(tmp_path, "whole")
    finetune(made, *data, whole, partial, silent)
    out, partial = folders(tmp_path, "cut")
    for _ in range(2):
        with pytest.raises(Interrupted):
            finetune(made, *data, out, partial, interrupt)
    finetune(made, *data, out, partial, silent)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    plain, partial = folders(tmp_path, "plain")
    finetune(recipe("fine-tune"), *data, plain, partial, silent)
    assert (plain / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


def test_adabn_trains_no_weight_and_has_the_targets_statistics(data: Any, tmp_path: Path) -> None:
    splits, directory = data
    plain, adapted = folders(tmp_path, "plain"), folders(tmp_path, "adabn")
    settings = {"training": {**TRAINING, "select": "last"}}
    finetune(recipe("fine-tune", **settings), *data, plain[0], plain[1], silent)
    made = finetune(recipe("adabn"), *data, adapted[0], adapted[1], silent)
    one, other = weights(plain[0]), weights(adapted[0])
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {name for name in one if "running" in name}
    model, spec = vision.create("test_efficientnet", classes=2, size=32), checkpoints.spec(made)
    model.load_state_dict(one)
    free = read_samples(directory, "target")
    given = [ToInput(spec)(p) for p, _ in evaluation_batches(free, Path(splits.root), spec, 8)]  # type: ignore[arg-type]
    adapt_batch_norm(model, lambda: given)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_views_teach_a_backbone_and_a_killed_pretraining_goes_on(name: str, data: Any, tmp_path: Path) -> None:
    training = {**TRAINING, "batch_size": 8, "lr": 1e-3, "select": "last"}
    made = recipe("fine-tune", model=name, pretraining={"training": training})
    whole, partial = folders(tmp_path, "whole")
    found = pretrain(made, *data, "teacher", None, whole, partial=partial, report=silent)
    out, partial = folders(tmp_path, "cut")
    with pytest.raises(Interrupted):
        pretrain(made, *data, "teacher", None, out, partial=partial, report=interrupt)
    with pytest.raises(Interrupted):
        pretrain(made, *data, "teacher", None, out, partial=partial, report=interrupt)
    pretrain(made, *data, "teacher", None, out, partial=partial, report=silent)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert found.validation["feature_spread"] > 0.3
    assert found.notes == ()
    assert set(found.validation) == {"accuracy", "spread", "feature_spread", "loss"}
    taught, partial = folders(tmp_path, "taught")
    short = recipe("fine-tune", model=name, training={**TRAINING, "lr": 1e-9, "epochs": 1})
    finetune(short, *data, taught, partial, silent, pretrained=(found, whole))
    for key, tensor in weights(whole).items():  # the start of the teacher, whose own training hardly moved it
        if "running" not in key and "num_batches" not in key and not key.startswith(("classifier", "head.")):
            torch.testing.assert_close(weights(taught)[key], tensor, rtol=1e-3, atol=1e-5)


def test_a_collapse_is_said(data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It starts from a network that says the same of all pictures, and learns next to nothing."""
    model = vision.create("test_vit", classes=2, size=32)
    state = model.state_dict() | {"norm.weight": torch.zeros_like(model.get_parameter("norm.weight"))}
    safetensors.torch.save_file(state | {"norm.bias": torch.ones_like(state["norm.bias"])}, tmp_path / "w.safetensors")
    training = {"epochs": 1, "batch_size": 8, "lr": 1e-8, "weight_decay": 0, "select": "last"}
    start = {"weights": str(tmp_path / "w.safetensors"), "pretraining": {"training": training}}
    out, partial = folders(tmp_path)
    found = pretrain(
        recipe("fine-tune", model="test_vit", **start), *data, "teacher", None, out, partial=partial, report=silent
    )
    assert found.validation["feature_spread"] < 0.01
    assert found.notes[0].startswith("it collapsed")
    assert "it collapsed" in caplog.text


RECIPE = """
schema: 1
name: elsewhere
data:
  path: ROOT/source
  calibration: 8
  target: {path: ROOT/target, test: ROOT/test}
teacher:
  model: test_efficientnet
  input: {size: 32}
  pretraining: {training: {epochs: 1, batch_size: 8, lr: 1e-3, select: last}}
  strategy: {name: coral, arguments: {weight: 10}}
  training: {epochs: 6, batch_size: 8, lr: 5e-3}
student: {model: test_efficientnet, input: {size: 32}, training: {epochs: 3, batch_size: 8, lr: 3e-3}}
distill: {control: false}
export: {targets: [{runtime: onnx, precisions: [fp32, w8a8]}]}
verify: {samples: 8, min_agreement_int8: 0, min_cosine_int8: 0}
measure: {quick: true, end_to_end: 2, warmup: 2}
gate: {on_fail: report}
"""


def test_a_whole_run_says_what_adaptation_was_worth(tmp_path: Path) -> None:
    root = sets(tmp_path / "data", source=12, learned=12, tested=8)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("ROOT", str(root)))
    record, directory = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "work")
    found = Adaptation.model_validate_json((record.directory("adaptation") / "value.json").read_bytes())
    assert found.method == "coral"
    assert found.target.samples == 16
    assert found.source is not None
    student = Checkpoint.model_validate_json((record.directory("student") / "value.json").read_bytes())
    assert "agreement with the teacher on 24 target pictures" in student.notes[0]
    content = json.loads((directory / "report.json").read_text())
    assert not any("collapsed" in line for line in content["fits"])
    assert content["pictures"] == 16  # every score is of the target
    assert content["adaptation"]["target"]["gain"]["value"] == pytest.approx(found.target.gain.value)
    measured = next(f for f in content["files"] if f["role"] == "teacher")
    assert measured["metric"]["value"] == pytest.approx(100 * found.target.teacher.value)
    for name in ("report.md", "report.html"):
        text = (directory / name).read_text()
        assert "Adaptation to the target by coral" in text
        assert "BatchNorm statistics are" in text
    again, _ = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "work")
    assert all(stage.cached for stage in again.stages)
