"""Domain adaptation of texts in small trainings: the same bits after an interruption, other answers, a whole run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_domains_text import Files, files, recipe_of
from test_training import folders

from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import Adaptation, read_samples
from distilledge.pipeline.run import run
from distilledge.pipeline.training import text_stage
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.teacher import finetune

pytestmark = pytest.mark.slow

CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"tokenizer": "train", "vocabulary": 300, "max_length": 24, "config": CONFIG}
TRAINING = {"epochs": 3, "batch_size": 12, "lr": 5e-3, "warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files(tmp_path_factory.mktemp("texts"), source=20, learned=20, tested=10)


@pytest.fixture(scope="module")
def data(given: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A data stage with a target: its splits and directory."""
    directory = tmp_path_factory.mktemp("store") / "data-0"
    directory.mkdir()
    made = recipe_of(given)
    return prepare_texts(made.data, task=made.task, seed=0, out=directory), directory


def recipe(given: Files, strategy: Any) -> Recipe:
    teacher = {"model": "bert", "weights": "none", "text": TEXT, "training": TRAINING, "strategy": strategy}
    return Recipe.model_validate({**recipe_of(given).model_dump(mode="json", by_alias=True), "teacher": teacher})


def interrupt(event: ProgressEvent) -> None:
    if (event.epoch, event.step) in ((1, 2), (3, 1)):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("strategy", ["dann", {"name": "coral", "arguments": {"weight": 50}}, "mmd"])
def test_interrupted_and_resumed_gives_the_same_bits(strategy: Any, given: Files, data: Any, tmp_path: Path) -> None:
    made = recipe(given, strategy)
    whole, partial = folders(tmp_path, "whole")
    found = finetune(made, *data, whole, partial, silent)
    assert found.best_epoch == 3  # the last, whatever the source says
    out, partial = folders(tmp_path, "cut")
    for _ in range(2):
        with pytest.raises(Interrupted):
            finetune(made, *data, out, partial, interrupt)
    finetune(made, *data, out, partial, silent)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    plain, partial = folders(tmp_path, "plain")
    finetune(recipe(given, "fine-tune"), *data, plain, partial, silent)
    assert (plain / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    tokenizer = (whole / "tokenizer.json").read_text(encoding="utf-8")
    assert (plain / "tokenizer.json").read_text(encoding="utf-8") == tokenizer
    assert "-" in json.loads(tokenizer)["model"]["vocab"]  # which texts of the target alone have


RECIPE = """
schema: 1
name: elsewhere
task: text-classification
data:
  path: ROOT/source.jsonl
  calibration: 16
  target: {path: ROOT/target.txt, test: ROOT/test.jsonl}
teacher:
  model: bert
  weights: none
  text: {tokenizer: train, vocabulary: 300, max_length: 24, buckets: [24], config: CONFIG}
  strategy: mmd
  training: {epochs: 6, batch_size: 12, lr: 5e-3}
student:
  model: teacher
  text: {layers: [0], max_length: 24, buckets: [24]}
  training: {epochs: 3, batch_size: 12, lr: 5e-3}
export: {targets: [{runtime: openvino, precisions: [fp32, w8a8]}]}
verify: {samples: 8, min_agreement_int8: 0, min_cosine_int8: 0}
measure: {quick: true, end_to_end: 2, warmup: 2}
gate: {on_fail: report}
"""


def test_a_whole_run_scores_the_target_and_says_what_adaptation_was_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, source=20, learned=20, tested=10)
    config = json.dumps(CONFIG).replace('"', "")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("ROOT", str(tmp_path)).replace("CONFIG", config))
    labels: dict[str, list[int]] = {}
    plain_feed = text_stage.make_feed

    def watched(stage: Any, started: Any, pairs: Any, *rest: Any) -> Any:
        labels[stage.role] = [sample.label for sample, _ in pairs]
        return plain_feed(stage, started, pairs, *rest)

    monkeypatch.setattr(text_stage, "make_feed", watched)
    record, directory = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "work")
    found = Adaptation.model_validate_json((record.directory("adaptation") / "value.json").read_bytes())
    assert (found.method, found.target.samples) == ("mmd", 30)
    assert found.source is not None
    assert found.source.samples == len(read_samples(record.directory("data"), "source-test"))
    content = json.loads((directory / "report.json").read_text())
    measured = next(f for f in content["files"] if f["role"] == "teacher")
    assert measured["metric"]["value"] == pytest.approx(
        100 * found.target.teacher.value
    )  # every score is of the target
    assert "Adaptation to the target by mmd" in (directory / "report.md").read_text()
    assert labels["student"].count(-1) == 60  # it learns from the target too, without labels; the control does not
    assert min(labels["student"][:-60]) == 0
    assert labels["control"] == labels["student"][:-60]
    again, _ = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "work")
    assert all(stage.cached for stage in again.stages)
