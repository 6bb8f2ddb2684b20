"""Strategies in small trainings: what moves and what does not, features once, the same bits after an interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_text_training import recipe as text_recipe
from test_training import SPLITS_VALUE, data, folders, recipe, rows, weights

from distilledge.models import text, vision
from distilledge.models.neighbours import NearestNeighbours
from distilledge.models.transfer import layer_groups
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Transfer, read_samples
from distilledge.pipeline.run import run
from distilledge.pipeline.training import feature_cache
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.teacher import finetune
from distilledge.pipeline.training.views import ToInput, evaluation_batches

pytestmark = pytest.mark.slow
__all__ = ["data"]
"""The fixture, for pytest."""


def taught(data: Path, tmp_path: Path, strategy: Any, name: str = "a", report: Any = silent, **training: Any) -> Any:
    """A teacher trained by a strategy from weights drawn by the seed; its checkpoint and directory."""
    made = recipe(teacher=training)
    own = made.model_dump(mode="json", by_alias=True)
    own["teacher"] |= {"strategy": strategy, "model": "test_efficientnet"}
    out, partial = folders(tmp_path, name)
    return finetune(Recipe.model_validate(own), SPLITS_VALUE, data, out, partial, report), out


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_gradual_unfreezing_moves_the_head_first_then_one_group_more(data: Path, tmp_path: Path) -> None:
    found = {}
    for epochs in (1, 2):
        _, out = taught(data, tmp_path, "progressive", f"p{epochs}", epochs=epochs, select="last", warmup_epochs=0)
        found[epochs] = weights(out)
    groups = layer_groups(vision.create("test_efficientnet", classes=3, size=32))
    _, still = taught(data, tmp_path, {"name": "feature-extraction"}, "f", epochs=1)
    assert moved(found[1], weights(still)) == set(groups[-1])  # after one epoch the backbone is as it was
    names = moved(found[2], weights(still))
    top = {n for n in names if "running" not in n and "num_batches" not in n}
    assert top == {*groups[-1], *groups[-2]}
    assert all(n.rpartition(".")[0] + ".weight" in groups[-2] for n in names - top)


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "progressive", "arguments": {"by": "plateau"}},
        "l2-sp",
        {"name": "ewc", "arguments": {"fisher": "target", "samples": 4}},
    ],
)
def test_interrupted_and_resumed_gives_the_same_bits(strategy: Any, data: Path, tmp_path: Path, shared: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "select": "last"}
    own = recipe(teacher=settings).model_dump(mode="json", by_alias=True)
    own["teacher"] |= {"strategy": strategy, "model": "mobilenetv1_025"}
    own["teacher"]["weights"] = str(shared / "weights" / "mobilenetv1_025_tfqat" / "model.safetensors")
    made = Recipe.model_validate(own)

    def interrupt(event: ProgressEvent) -> None:
        if (event.epoch, event.step) in ((1, 2), (3, 1)):
            os.kill(os.getpid(), signal.SIGINT)

    whole, _ = folders(tmp_path, "whole")
    finetune(made, SPLITS_VALUE, data, whole, folders(tmp_path, "whole")[1], silent)
    out, partial = folders(tmp_path, "cut")
    for _ in range(2):
        with pytest.raises(Interrupted):
            finetune(made, SPLITS_VALUE, data, out, partial, interrupt)
    finetune(made, SPLITS_VALUE, data, out, partial, silent)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_features_are_computed_once_and_the_whole_model_answers_as_the_head_did(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = taught(data, tmp_path, "feature-extraction", epochs=8, lr=1e-2)
    monkeypatch.setattr(feature_cache, "_read", _only_found)
    again, _ = taught(data, tmp_path, "feature-extraction", "b", epochs=8, lr=1e-2)
    assert again.weights_sha256 == made.weights_sha256
    assert validated(made, out, data) == pytest.approx(made.validation["accuracy"])


def _only_found(directory: Path) -> Any:
    return np.load(directory / feature_cache.FEATURES)


def validated(made: Checkpoint, out: Path, data: Path) -> float:
    """Accuracy of the saved model on validation pictures, through every layer."""
    model, spec = checkpoints.load(made, out), checkpoints.spec(made)
    held = read_samples(data, "validation")
    with torch.no_grad():
        right = [
            (model(ToInput(spec)(pictures)).argmax(1) == labels).float()
            for pictures, labels in evaluation_batches(held, data, spec, 8)  # type: ignore[arg-type]
        ]
    return float(torch.cat(right).mean())


def test_a_head_of_neighbours_is_saved_and_read_back(data: Path, tmp_path: Path) -> None:
    strategy = {"name": "feature-extraction", "arguments": {"head": "knn", "k": 3}}
    made, out = taught(data, tmp_path, strategy)
    assert made.architecture["knn"]["samples"] == 36
    assert isinstance(checkpoints.load(made, out).get_submodule("classifier"), NearestNeighbours)
    assert validated(made, out, data) == pytest.approx(made.validation["accuracy"])
    assert len(rows(out)) == 1


def test_adapters_of_pictures_are_merged_into_what_is_saved(data: Path, tmp_path: Path) -> None:
    own = recipe(teacher={"epochs": 2}).model_dump(mode="json", by_alias=True)
    own["teacher"]["strategy"] = {"name": "lora", "arguments": {"rank": 2, "alpha": 4.0}}
    out, partial = folders(tmp_path)
    made = finetune(Recipe.model_validate(own), SPLITS_VALUE, data, out, partial, silent)
    assert not any("lora" in name for name in weights(out))
    assert validated(made, out, data) == pytest.approx(made.validation["accuracy"])


@pytest.mark.parametrize("strategy", ["feature-extraction", "progressive", "l2-sp", "lora"])
def test_strategies_on_texts(strategy: str, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "data-0"
    folder.mkdir(parents=True)
    given = text_recipe()
    splits = prepare_texts(given.data, task=given.task, seed=0, out=folder)
    own = given.model_dump(mode="json", by_alias=True)
    own["teacher"]["strategy"] = strategy
    out, partial = folders(tmp_path)
    made = finetune(Recipe.model_validate(own), splits, folder, out, partial, silent)
    net = checkpoints.load(made, out)
    assert isinstance(net, text.TextNet)
    assert not any("lora" in name for name in weights(out))
    assert rows(out)[-1]["train_loss"] < rows(out)[0]["train_loss"]


TRANSFER = """
schema: 1
name: transfer
data: {path: $DISTILLEDGE_SHARED/data/x-sdd, columns: {path: file}, calibration: 16}
teacher:
  model: mobilenetv1_025
  weights: $DISTILLEDGE_SHARED/weights/mobilenetv1_025_tfqat/model.safetensors
  input: {size: 48}
  strategy: {name: feature-extraction, arguments: {head: knn, k: 5}}
  check_transfer: true
  require_positive_transfer: true
  training: {epochs: 1, batch_size: 64, lr: 1e-3}
student: {model: mobilenetv1_025, input: {size: 48}, training: {epochs: 1, batch_size: 64}}
distill: {control: false}
export: {targets: [{runtime: onnx, precisions: [fp32]}]}
verify: {samples: 8}
measure: {quick: true, end_to_end: 2, warmup: 2}
gate: {on_fail: report}
"""


def test_a_whole_run_says_that_transfer_helped(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real pictures, real weights, the teacher's neighbours exported to ONNX; a copy from scratch beside it."""
    from distilledge.pipeline.recipe_file import load_recipe

    monkeypatch.setenv("DISTILLEDGE_SHARED", str(shared))
    (tmp_path / "transfer.yaml").write_text(TRANSFER)
    record, directory = run(load_recipe(tmp_path / "transfer.yaml"), tmp_path / "work")
    found = Transfer.model_validate_json((record.directory("transfer") / "value.json").read_bytes())
    assert found.outcome == "helped"
    assert found.teacher.value > 0.8
    content = json.loads((directory / "report.json").read_text())
    assert content["transfer"]["gain"]["low"] > 0
    assert "Transfer helped" in (directory / "report.md").read_text()
    assert "Transfer helped" in (directory / "report.html").read_text()
    measured = next(f for f in content["files"] if f["role"] == "teacher")
    assert measured["metric"]["value"] == pytest.approx(100 * found.teacher.value)
